"""Trackers are told every number once, under its name and at its place; none of them can harm a campaign."""

import importlib.util
import json
import shutil
import sys
import time
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest

from loop.config.load import load_config
from loop.config.settings import TrackersConfig
from loop.errors import UserError
from loop.measure.alarms import RULES
from loop.redact import flat_settings, redacted
from loop.store.files import append_line, read_json, read_lines
from loop.store.run_folder import RunFolder
from loop.trackers.points import COLUMNS, Point, new_points, sample_table
from loop.trackers.tracker_service import TrackerService, naming, read_sent
from loop.view.status import collect
from tests.helpers import own_trackers
from tests.helpers.campaigns import Cli, copy_run, rows

LINES = "tests.helpers.own_trackers:Lines"
installed = importlib.util.find_spec


@pytest.fixture
def run(cli: Cli, reference: Path) -> RunFolder:
    return RunFolder(copy_run(reference, cli))


def service(run: RunFolder, *names: str, **settings: Any) -> TrackerService:
    return TrackerService(run.root, TrackersConfig(names=[*names], **settings))


def silent(**said: Any) -> None:
    assert said == {}


def steps_of(run: RunFolder, k: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.stage(k, "train").steps.read_text(encoding="utf-8").splitlines()]


# ---- what they are told ----


def test_every_number_is_told_once_in_the_order_of_the_campaign(reference: Path) -> None:
    run = RunFolder(reference)
    points = list(new_points(run, {}, samples=1))
    first, second = steps_of(run, 1), steps_of(run, 2)
    trained = [point for point in points if point.axis == "train/step"]
    assert [point.at for point in trained] == list(range(len(first) + len(second)))
    assert [point.values["train/loss"] for point in trained] == [step["loss"] for step in first + second]
    assert [point.values["train/iteration"] for point in trained] == [1] * len(first) + [2] * len(second)
    others = [point.series for point in points if point.axis == "iteration"]
    parts = {0: ("decided", "samples"), 1: ("labelled", "decided", "samples"), 2: ("labelled", "decided", "samples")}
    assert others == [f"{k} {part}" for k, names in parts.items() for part in names]
    assert [point.series for point in points].index("1 labelled") < [point.axis for point in points].index("train/step")


def test_the_numbers_of_an_iteration_are_those_of_its_files(reference: Path) -> None:
    run = RunFolder(reference)
    values = {
        name: value for point in new_points(run, {}, samples=0) if point.at == 2 for name, value in point.values.items()
    }
    evaluated, decision = read_json(run.stage(2, "eval").metrics), read_json(run.promotion(2))
    assert values["eval/test/sampled"] == evaluated["test"]["sampled_accuracy"]["value"]
    assert values["eval/gate/greedy_low"] == evaluated["gate"]["greedy_accuracy"]["low"]
    assert values["promote/gain"] == decision["gain"]["value"]
    assert values["promote/promoted"] == 1
    assert values["pair/pairs"] == len(rows(run.stage(2, "pair").pairs))
    assert values["sample/responses"] == 64
    assert values["judge/score"] == 64
    state = collect(run).state_of(2)
    signal = {name: value for name, value in state.signal.items() if value is not None}
    assert {"solve_rate", "mixed", "entropy", "displacement"} <= signal.keys()
    assert {name: values[f"signal/{name}"] for name in signal} == signal
    raised = [alarm.name for alarm in state.alarms]
    assert values["alarms/raised"] == len(raised)
    assert {name.partition("/")[2] for name in values if name.startswith("alarms/")} == {"raised", *RULES}
    assert all(values[f"alarms/{name}"] == (name in raised) for name in RULES)


def test_a_series_goes_on_behind_the_last_number(reference: Path) -> None:
    run = RunFolder(reference)
    everything = list(new_points(run, {}, samples=1))
    for cut in (0, 1, 3, len(everything) - 2, len(everything)):
        told = {point.series: point.number for point in everything[:cut]}
        assert [(p.series, p.number) for p in new_points(run, told, samples=1)] == [
            (p.series, p.number) for p in everything[cut:]
        ]


def test_a_round_in_progress_is_told_step_by_step_and_not_by_half_a_line(run: RunFolder) -> None:
    folder = run.stage(2, "train")
    folder.manifest_path.unlink()
    run.promotion(2).unlink()
    lines = folder.steps.read_text(encoding="utf-8").splitlines()
    folder.steps.unlink()
    folder.work.mkdir()
    folder.running_steps.write_text(f"{lines[0]}\n{lines[1][:-5]}", encoding="utf-8")
    before = len(steps_of(run, 1))
    running = [point for point in new_points(run, {}, samples=0) if point.series == "2 train 1"]
    assert [(point.number, point.at) for point in running] == [(0, before)]


def test_the_table_shows_the_same_gate_prompts_every_time(reference: Path) -> None:
    run = RunFolder(reference)
    first, second = (sample_table(run, k, 2) for k in (1, 2))
    assert len(first.rows) == len(second.rows) == 2 * 3
    assert [row[1:4] for row in first.rows] == [row[1:4] for row in second.rows]
    assert [row[3] for row in first.rows] == ["greedy", "sampled", "sampled"] * 2
    gate = {row["response_id"]: row for shard, _ in run.judged_shards(1, "gate") for row in rows(shard)}
    assert {row[4] for row in first.rows} <= {row["text"] for row in gate.values()}
    assert {len(row) for row in first.rows} == {len(COLUMNS)}
    assert len(first.markdown.splitlines()) == 2 + 6


def test_a_table_as_text_keeps_its_cells_apart() -> None:
    from loop.trackers.points import SampleTable

    text = SampleTable("samples/gate", [["a|b", "c\nd", *[""] * 7]]).markdown
    assert text.splitlines()[-1].startswith("| a\\|b | c<br>d |")


# ---- once, whatever happens ----


def test_a_service_that_is_started_again_tells_the_rest_only(run: RunFolder) -> None:
    first = service(run, LINES, project="sums")
    first._start(LINES)
    points = list(new_points(run, {}, samples=4))
    for point in points[:5]:
        append_line(run.tracker_log, {"tracker": LINES, "series": point.series, "number": point.number})
    for _ in range(2):
        service(run, LINES, project="sums").sync(silent, last=True)
    logged = [*own_trackers.lines(run.root, "log"), *own_trackers.lines(run.root, "table")]
    assert len(logged) == len(points) - 5
    assert len(list(own_trackers.lines(run.root, "settings"))) == 1
    assert {row["project"] for row in own_trackers.lines(run.root, "start")} == {"sums"}
    assert len({line["id"] for line in map(json.loads, run.tracker_log.read_text().splitlines()) if "id" in line}) == 1


def test_what_is_told_is_noted_before_it_is_told(run: RunFolder) -> None:
    telling = service(run, LINES)
    telling._start(LINES)
    noted: list[dict[str, Any]] = []
    telling.trackers[LINES].log = lambda *_, **__: noted.append(read_lines(run.tracker_log)[-1])
    telling._tell(LINES)
    told = [(p.series, p.number) for p in new_points(run, {}, samples=4) if p.table is None]
    assert [(note["series"], note["number"]) for note in noted] == told


def test_a_cut_line_of_the_notes_is_forgotten(run: RunFolder) -> None:
    append_line(run.tracker_log, {"tracker": "x", "series": "1 train 1", "number": 3})
    with run.tracker_log.open("a", encoding="utf-8") as file:
        file.write('{"tracker": "x", "series": "1 tr')
    assert read_sent(run) == ({"x": {"1 train 1": 3}}, {})


# ---- what goes wrong ----


def test_a_tracker_that_fails_is_given_up_with_one_warning_and_the_others_go_on(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHINY_API_KEY", "sk-very-secret")
    said: list[dict[str, Any]] = []
    names = [f"tests.helpers.own_trackers:{name}" for name in ("NotInstalled", "LosesItsTongue", "Lines")]
    telling = service(run, *names, samples=0)
    for last in (False, False, True):
        telling.sync(lambda **what: said.append(what), last)
    first, second = (one["warning"] for one in said)
    assert "No module named 'shiny_tracker'" in first
    assert "take tests.helpers.own_trackers:NotInstalled out of the setting trackers" in first
    assert "ConnectionError: refused: (hidden) is no key; the campaign continues" in second
    assert "sk-very-secret" not in capsys.readouterr().err
    told = read_sent(run)[0]
    assert sum(n + 1 for n in told[names[1]].values()) == 3
    assert sum(n + 1 for n in told[names[2]].values()) == len(list(new_points(run, {}, samples=0)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("[tensorbord]", "there is no tracker 'tensorbord'; did you mean tensorboard?"),
        ("[wandb,wandb]", "names a tracker twice"),
        ("wandb", "expected a section with the keys names, project, run_name, samples"),
        ("{names: wandb}", "'wandb' is not a list of names such as"),
        ("[1]", "[1] is not a list of names"),
        ("{samples: -1}", "trackers.samples is -1, expected a whole number of at least 0"),
    ],
)
def test_a_wrong_setting_is_explained(settings: dict[str, Any], cli: Cli, given: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(cli.write(settings), [f"trackers={given}"])
    assert words in str(error.value)


def test_the_plan_names_the_trackers(cli: Cli, settings: dict[str, Any]) -> None:
    config = cli.write(settings)
    assert "tracked" not in cli("plan", config).out
    assert "tracked  wandb, tensorboard\n" in cli("plan", config, "trackers=[wandb,tensorboard]").out


def test_a_list_is_short_for_names(settings: dict[str, Any], cli: Cli) -> None:
    settings["trackers"] = ["tensorboard", "my.trackers:Mine"]
    trackers = load_config(cli.write(settings)).base.trackers
    assert (trackers.names, trackers.project, trackers.samples) == (["tensorboard", "my.trackers:Mine"], "prefloop", 4)


class Absent(MetaPathFinder):
    """Packages that cannot be found."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra(run: RunFolder, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ("tensorboard", "tensorboardX", "wandb")
    for module in [one for one in sys.modules if one.startswith((*absent, "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr("torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(absent), *sys.meta_path])
    said: list[dict[str, Any]] = []
    service(run, name).sync(lambda **what: said.append(what), last=True)
    ((text,),) = (one.values() for one in said)
    assert f"the tracker {name} was dropped: No module named " in text
    assert f"pip install 'prefloop[{name}]'" in text


# ---- secrets ----


def test_secret_values_of_the_environment_never_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MY_TOKEN_LONGER", "0123456789abcdef-and-more")
    monkeypatch.setenv("KEY", "x")
    assert redacted("a 0123456789abcdef x") == "a (hidden) x"
    assert redacted("0123456789abcdef-and-more") == "(hidden)"
    given = {"judge": {"args": {"headers": {"auth": "0123456789abcdef"}}}, "seed": 1, "none": None, "empty": {}}
    flat = {"judge.args.headers.auth": "(hidden)", "seed": "1", "none": "None", "empty": "{}"}
    assert flat_settings(given) == flat


# ---- a campaign with trackers ----


@pytest.mark.soak
def test_a_killed_campaign_tells_every_step_once(cli: Cli, run: RunFolder) -> None:
    for stage in ("train", "eval"):
        shutil.rmtree(run.stage(2, stage).path)
    run.promotion(2).unlink()
    names = f"trackers={{names: ['{LINES}', 'tests.helpers.own_trackers:NotInstalled'], samples: 1}}"
    words = (names, "--until", "2/train")
    running = cli.pause_at("os.rename:*/iter-002/train/manifest.json", run.root, *words)
    steps = len(steps_of(run, 1)) + len(steps_of(run, 2))
    lines = run.trackers / "lines.jsonl"
    running.wait_for("the last step", lambda: lines.exists() and f'"train/step": {steps - 1}' in lines.read_text())
    running.kill()
    ended = cli("run", run.root, *words)
    assert ended.code == 0, ended.err
    assert ended.out.count("the tracker tests.helpers.own_trackers:NotInstalled is given up") == 1
    told = [row["values"] for row in own_trackers.lines(run.root, "log")]
    assert [values["train/step"] for values in told if "train/step" in values] == list(range(steps))
    assert [values["iteration"] for values in told if "promote/promoted" in values] == [1]
    assert len(list(own_trackers.lines(run.root, "start"))) == 2
    assert len(list(own_trackers.lines(run.root, "settings"))) == 1
    assert len(list(own_trackers.lines(run.root, "finish"))) == 1


def test_a_tracker_that_hangs_stops_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from loop.trackers import driver as trackers

    monkeypatch.setattr(trackers, "PATIENCE", 0.5)
    monkeypatch.setattr(trackers, "EVERY", 0.01)
    said: list[str] = []
    started = time.monotonic()
    settings = TrackersConfig(names=["tests.helpers.own_trackers:Hangs"])
    with trackers.Trackers(run, settings, said.append) as hanging:
        while not run.log("trackers").exists():
            time.sleep(0.01)
    assert time.monotonic() - started < 60
    assert len(said) == 1
    assert "still busy" in said[0]
    assert not hanging.thread.is_alive()  # type: ignore[union-attr]
    assert hanging.worker._process is None


# ---- the real ones, where they are installed ----


@pytest.mark.skipif(not installed("tensorboard"), reason="the package tensorboard is not installed")
def test_tensorboard_files_hold_the_numbers_and_the_samples(run: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        service(run, "tensorboard", samples=1).sync(silent, last=True)
    found = EventAccumulator(str(run.trackers / "prefloop"))
    found.Reload()
    losses = [step["loss"] for k in (1, 2) for step in steps_of(run, k)]
    assert [event.step for event in found.Scalars("train/loss")] == list(range(len(losses)))
    assert [event.value for event in found.Scalars("train/loss")] == pytest.approx(losses)
    assert [event.step for event in found.Scalars("eval/test/sampled")] == [0, 1, 2]
    assert "samples/gate/text_summary" in found.Tags()["tensors"]


@pytest.mark.skipif(not installed("wandb"), reason="the package wandb is not installed")
def test_wandb_offline_holds_the_numbers_and_no_secret(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SHINY_API_KEY", "sk-very-secret-canary")
    service(run, "wandb", samples=1).sync(silent, last=True)
    (file,) = run.trackers.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert all(name in content for name in (b"train/loss", b"eval/test/sampled", b"promote/gain"))
    everything = b"".join(path.read_bytes() for path in run.trackers.rglob("*") if path.is_file())
    assert b"sk-very-secret-canary" not in everything


def test_a_resumed_campaign_joins_the_run_it_had() -> None:
    first = naming("wandb", "my", "abc", known=False, folder=Path("x"))
    assert first == naming("wandb", "my", "abc", known=True, folder=Path("x"))
    assert (first["id"], first["resume"], first["name"]) == ("abc", "allow", "my")
    assert "run_id" not in naming("mlflow", "my", "abc", known=False, folder=Path("x"))
    assert naming("mlflow", "my", "abc", known=True, folder=Path("x"))["run_id"] == "abc"


def test_points_are_plain_numbers(reference: Path) -> None:
    points: list[Point] = list(new_points(RunFolder(reference), {}, samples=0))
    assert all(type(value) in (int, float) for point in points for value in point.values.values())
    json.dumps([point.values for point in points], allow_nan=False)
