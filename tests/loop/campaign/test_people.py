"""People as the judge: the run writes what to label, stops with its own exit code, and goes on with the labels."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from judges import JudgeError
from loop.campaign.context import Campaign, Iteration, ModelRoles
from loop.campaign.stages.people import label_by_people, labels_of
from loop.commands.judge_label import take_labels
from loop.commands.plan_check import check_judge
from loop.config.load import load_config
from loop.config.settings import JudgeConfig
from loop.errors import AwaitingLabels, UserError
from loop.measure.alarms import alarms
from loop.measure.signal import Tally
from loop.pairing.io import judged_groups
from loop.prompts.row import read_table
from loop.store import tables
from loop.store.model_refs import Model
from loop.store.run_folder import RunFolder
from loop.view.display import Display
from loop.workers.pool import WorkerPool
from loop.workers.sampling_service import SampleTask
from loop.workers.shards import Shard
from tests.helpers.campaigns import Cli, events, read, refusal, rows
from tests.helpers.inprocess import Here

WAITING = 3


@pytest.fixture
def human_judge(settings: dict[str, Any]) -> dict[str, Any]:
    """One iteration, its responses labelled by people, its evaluation by the judge of the other tests."""
    settings["eval"]["judge"] = settings["judge"]
    settings["judge"] = {"name": "external"}
    return settings | {"iterations": 1}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def put(folder: Path, labels: list[dict[str, Any]]) -> None:
    """What people do with the file that they have downloaded."""
    text = "".join(json.dumps(row) + "\n" for row in labels)
    (folder / "labels.jsonl").write_text(text, encoding="utf-8")


def put_in(file: Path, labels: list[dict[str, Any]]) -> None:
    """A file of labels."""
    file.write_text("".join(json.dumps(row) + "\n" for row in labels), encoding="utf-8")


def parity(row: dict[str, Any]) -> dict[str, Any]:
    """People who label as the judge of the other tests does."""
    return {"id": row["id"], "check": row["check"], "label": "wrong" if len(row["response"]) % 2 else "right"}


@pytest.mark.slow
def test_a_run_waits_for_labels_and_goes_on_with_them(here: Here, human_judge: dict[str, Any], reference: Path) -> None:
    config, run = here.write(human_judge), here.runs / "campaign"
    folder = run / "iter-001" / "judge"
    ended = here("run", config)
    assert ended.code == WAITING, ended.err
    assert ended.err.strip().startswith(
        "prefloop: Iteration 1 is waiting for human labels: 64 responses to label. Open"
    )
    assert all(name in ended.err for name in ("to-label.html", "to-label.jsonl", "judge/labels.jsonl"))
    sheet = lines(folder / "to-label.jsonl")
    sampled = rows(*sorted((reference / "iter-001" / "sample").glob("*.parquet")))
    assert [row["response"] for row in sheet] == [row["text"] for row in sampled]

    put(folder, [parity(row) for row in sheet])
    here.run(config)
    scores = [(v["response_id"], v["score"]) for v in rows(*sorted(folder.glob("*.parquet")))]
    theirs = rows(*sorted((reference / "iter-001" / "judge").glob("*.parquet")))
    assert scores == [(v["response_id"], v["score"]) for v in theirs]
    for name in ("iter-001/pair/pairs.parquet", "iter-001/train/model/model.safetensors", "iter-001/eval/metrics.json"):
        assert (run / name).read_bytes() == (reference / name).read_bytes()
    assert read(folder / "manifest.json")["inputs"]["judge"]["name"] == "external"
    assert read(run / "iter-001" / "eval" / "manifest.json")["inputs"]["judge"]["name"].endswith(":Parity")

    put(folder, [parity(row) | {"label": "right"} for row in sheet])
    assert "labels was" in refusal(here("run", config))


# ---- the same inside the driver, on the samples of the reference campaign ----


class Bench:
    """The sampled first iteration of a campaign whose judge is people."""

    def __init__(self, cli: Cli, settings: dict[str, Any], reference: Path, **args: Any) -> None:
        settings["judge"]["args"] = args
        loaded = load_config(cli.write(settings))
        run = RunFolder(cli.runs / "bench")
        shutil.copytree(reference / "prompts", run.prompts().path)
        shutil.copytree(reference / "iter-001" / "sample", run.stage(1, "sample").path)
        display = Display(to_stderr=True)
        self.campaign = Campaign(run, loaded, WorkerPool(run, loaded.base, display), display, verify=False)
        models = ModelRoles(*[Model(run.root, "hash", 0)] * 3)
        self.it = Iteration(self.campaign, 1, loaded.base, models, {})
        self.campaign.judge = {"name": "external", "version": "1", "args": args}
        self.folder = run.stage(1, "judge")
        prompts = tuple(read_table(tables.read(run.prompts().path / "train.parquet")))
        self.shards = [
            Shard(SampleTask("shard", path, prompts, (), 1.0, 12, (), path, ""), verdicts)
            for path, verdicts in run.judged_shards(1, "train")
        ]

    def label(self) -> str | None:
        return label_by_people(self.it, self.shards)

    def sheet(self) -> list[dict[str, Any]]:
        """What is to be labelled, once it has been written."""
        with pytest.raises(AwaitingLabels):
            self.label()
        return lines(self.folder.to_label)

    def verdicts(self) -> list[dict[str, Any]]:
        return rows(*(shard.verdicts for shard in self.shards))


def test_with_some_labels_the_run_waits_for_the_rest(cli: Cli, human_judge: dict[str, Any], reference: Path) -> None:
    bench = Bench(cli, human_judge, reference)
    sheet = bench.sheet()
    put(bench.folder.path, [parity(row) for row in sheet[:10]])
    with pytest.raises(AwaitingLabels, match=r"64 responses to label \(10 done\)\. .*missing=abstain"):
        bench.label()
    assert [event["labelled"] for event in events(bench.campaign.run.root, "waiting_for_people")] == [0, 10]
    assert not any(shard.verdicts.exists() for shard in bench.shards)


def test_what_has_no_label_abstains_where_the_user_says_so(
    cli: Cli, human_judge: dict[str, Any], reference: Path
) -> None:
    bench = Bench(cli, human_judge, reference, missing="abstain")
    sheet = bench.sheet()  # without any label there is nothing to go on with
    put(bench.folder.path, [parity(row) for row in sheet[:10]])
    assert bench.label() == labels_of(bench.folder)
    verdicts = bench.verdicts()
    assert [v["response_id"] for v in verdicts] == [row["id"] for row in sheet]
    assert [v["score"] for v in verdicts[:10]] == [float(parity(row)["label"] == "right") for row in sheet[:10]]
    assert {(v["kind"], v["why"]) for v in verdicts[10:]} == {("abstain", "not labelled")}


def test_other_labels_are_other_verdicts_until_the_stage_is_finished(
    cli: Cli, human_judge: dict[str, Any], reference: Path
) -> None:
    bench = Bench(cli, human_judge, reference, ask="pair")
    sheet = bench.sheet()
    digests = set()
    for label in ("first", "second"):
        put(bench.folder.path, [{"id": row["id"], "check": row["check"], "label": label} for row in sheet])
        digests.add(bench.label())
        won = {v["response_id"] for v in bench.verdicts() if v["score"] == 1}
        assert won == {row["id"].split()[label == "second"] for row in sheet}
    assert len(digests) == 2


def test_labels_of_several_files_are_handed_to_the_run_that_waits(
    cli: Cli, human_judge: dict[str, Any], reference: Path
) -> None:
    bench = Bench(cli, human_judge, reference)
    sheet = bench.sheet()
    run = bench.campaign.run
    bench.campaign.begin_work()  # which writes the settings
    files = [cli.folder / name for name in ("one.jsonl", "two.jsonl", "other.jsonl")]
    put_in(files[0], [parity(row) for row in sheet[:10]])
    put_in(files[1], [parity(row) for row in sheet[5:]])
    first, second = take_labels(run, files[0]), take_labels(run, files[1])
    assert (first.labelled, first.added, first.items) == (10, 10, len(sheet))
    assert (second.labelled, second.added) == (len(sheet), len(sheet) - 10)
    assert lines(bench.folder.labels) == [parity(row) for row in sheet]
    assert bench.label() == labels_of(bench.folder)
    changed = {"right": "wrong", "wrong": "right"}[parity(sheet[0])["label"]]
    put_in(files[2], [parity(sheet[0]) | {"label": changed}])
    with pytest.raises(JudgeError, match=r"labels\.jsonl with .*other\.jsonl: lines 1 and .* contradict each other"):
        take_labels(run, files[2])
    put_in(files[2], [parity(sheet[0]) | {"check": "0"}])
    with pytest.raises(JudgeError, match=r"other\.jsonl, line 1: check of .* was edited"):
        take_labels(run, files[2])
    assert lines(bench.folder.labels) == [parity(row) for row in sheet]
    bench.folder.to_label.unlink()
    with pytest.raises(UserError, match="waits for no labels"):
        take_labels(run, files[0])


def test_labels_by_pair_do_not_sound_as_if_the_judge_could_not_tell(
    cli: Cli, human_judge: dict[str, Any], reference: Path
) -> None:
    bench = Bench(cli, human_judge, reference, ask="pair")  # one pair of each prompt's four responses
    sheet = bench.sheet()
    labels = ["unsure", *["first"] * (len(sheet) - 1)]
    put(
        bench.folder.path,
        [{"id": r["id"], "check": r["check"], "label": w} for r, w in zip(sheet, labels, strict=True)],
    )
    bench.label()
    assert [v["kind"] for v in bench.verdicts()].count("abstain") == 2 * len(sheet) + 2
    tally = Tally(1.0)
    for _ in tally.watch(judged_groups([(shard.task.path, shard.verdicts) for shard in bench.shards])):
        pass
    signal = tally.numbers()
    assert signal["abstained"] == pytest.approx(2 / (2 * len(sheet)))
    assert "abstained" not in {alarm.name for alarm in alarms([signal], bench.it.config.alarms)}


def test_an_edited_text_is_refused_by_file_and_line(cli: Cli, human_judge: dict[str, Any], reference: Path) -> None:
    bench = Bench(cli, human_judge, reference)
    sheet = bench.sheet()
    put(bench.folder.path, [sheet[0], sheet[1] | {"response": sheet[1]["response"] + "!", "label": "right"}])
    with pytest.raises(
        JudgeError, match=r"judge/labels\.jsonl, line 2: response of '1-train-.*' was edited; restore the original"
    ):
        bench.label()
    bench.folder.labels.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"labels\.jsonl is not a text file in UTF-8"):
        bench.label()


# ---- settings ----


def test_people_who_would_have_to_evaluate_are_refused_with_the_way_out(cli: Cli, settings: dict[str, Any]) -> None:
    settings["judge"] = {"name": "external"}
    told = refusal(cli("run", cli.write(settings)))
    assert "eval.judge={name: exact}" in told
    settings["eval"]["judge"] = {"name": "exact"}
    settings["judge"]["examples"] = "labelled.jsonl"
    assert "people (external) cannot be asked" in refusal(cli("plan", cli.write(settings)))
    assert not cli.runs.exists()


def test_the_plan_names_the_judge_of_the_evaluation(cli: Cli, human_judge: dict[str, Any]) -> None:
    planned = cli("plan", cli.write(human_judge))
    assert planned.code == 0, planned.err
    assert "judge    external\n" in planned.out
    assert "\n         in the evaluation " in planned.out


# ---- labelled examples before the start ----


@pytest.mark.slow
def test_a_judge_that_misses_labelled_examples_stops_the_run_before_it_starts(
    cli: Cli, settings: dict[str, Any]
) -> None:
    examples = cli.folder / "labelled.jsonl"
    labelled = [("even", "right"), ("odd", "wrong"), ("four", "wrong")]
    given = [{"prompt": "?", "response": text, "label": label} for text, label in labelled]
    examples.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    settings["judge"]["examples"] = "labelled.jsonl"
    told = refusal(cli("run", cli.write(settings)))
    assert f"agrees with 2 of 3 labelled examples in {examples}" in told
    assert "at line 3: 'four' is labelled wrong, but the judge gave right (parity; extracted '4')" in told
    assert not (cli.runs / "campaign" / "prompts").exists()
    config = load_config(cli.write(settings)).base
    lenient = JudgeConfig(**settings["judge"] | {"examples": str(examples), "examples_agreement": 0.6})
    assert check_judge(lenient, config).endswith(f", 3 of {examples} as labelled")  # what `plan --check` prints
