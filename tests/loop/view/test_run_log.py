"""What a command prints and logs: as much as was asked for, in the form asked for, and all of it in the file."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from loop.campaign.context import Campaign
from loop.cli.main import app
from loop.engines.vllm_engine import is_news
from loop.redact import remember_secrets
from loop.store.lineage import settings_of
from loop.view.display import Display
from loop.view.metrics_file import MetricsFile, openmetrics
from loop.view.progress import Snapshot, Work
from loop.view.run_log import Entry, Output
from loop.view.status import iteration_state
from loop.workers.pool import WorkerPool
from tests.helpers.made_runs import Made, make_run

MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00"


def printed(output: Output) -> str:
    """What a terminal that is none gets of a stage with a warning, an event and a result of two lines."""
    shown = Display(output)
    shown.console = Console(file=io.StringIO(), soft_wrap=True, highlight=False, width=200)
    shown.say("\niteration 1 of 2\n  sampling", details={"iteration": 1})
    shown.event({"time": 1.5, "event": "worker_started", "worker": "engine", "text": "of the event", "level": 7})
    shown.warn("it is late")
    with shown.bar("train", 4, "steps") as stage:
        stage.note("loading")
        stage.set(4)
    text = shown.console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_more_or_less_is_printed() -> None:
    normal, quiet, verbose = (printed(Output(verbosity)) for verbosity in ("normal", "quiet", "verbose"))
    assert normal.startswith(
        "\niteration 1 of 2\n  sampling\n  warning: it is late\n  train: loading\n  train: 4 steps in"
    )
    assert quiet == "  warning: it is late\n"
    assert "  event worker_started worker=engine text=of the event level=7\n" in verbose
    assert verbose.replace("  event worker_started worker=engine text=of the event level=7\n", "") == normal


def test_lines_have_their_times_where_that_is_asked_for() -> None:
    lines = printed(Output(timestamps=True)).splitlines()
    assert len(lines) == 5
    assert all(re.fullmatch(rf"{MOMENT} .+", line) for line in lines)
    assert lines[1].endswith(" sampling")


def test_json_lines_are_one_object_each_with_level_text_and_numbers() -> None:
    rows = [json.loads(line) for line in printed(Output(json_lines=True)).splitlines()]
    assert [row["level"] for row in rows] == ["info", "warning", "info", "info"]
    assert (rows[0]["text"], rows[0]["iteration"]) == ("iteration 1 of 2 sampling", 1)
    assert (rows[-1]["stage"], rows[-1]["done"], rows[-1]["unit"]) == ("train", 4, "steps")
    assert all(re.fullmatch(MOMENT, row["time"]) for row in rows)
    event = json.loads(Entry("debug", "shown", {"text": "of the event", "level": 7}).as_json_line())
    assert (event["text"], event["level"]) == ("shown", "debug")


def test_the_log_gets_everything_and_also_what_ended_the_run(tmp_path: Path) -> None:
    remember_secrets({"judge": {"args": {"api_key": "sk-very-secret-key"}}})
    shown = Display(Output("quiet"))
    shown.say("before there is a file")
    default = tmp_path / "run" / "logs" / "run.log"

    def work() -> None:
        with shown.log.open_at(default):
            shown.event({"time": 1.5, "event": "stage_started", "stage": "pair"})
            shown.say("the key is sk-very-secret-key\x1b[2J")
            raise ValueError("no pairs\nat all")

    with pytest.raises(ValueError, match="no pairs"):
        work()
    shown.say("after it")
    lines = default.read_text(encoding="utf-8").splitlines()
    assert [line.split(maxsplit=2)[1] for line in lines] == ["info", "debug", "info", "error", "error"]
    assert lines[0].endswith(" before there is a file")
    assert "secret" not in lines[2]
    assert lines[2].endswith("␛[2J")
    named = tmp_path / "named.log"
    shown = Display(Output(log_file=named, json_lines=True))
    with shown.log.open_at(default):
        shown.say("elsewhere")
    assert json.loads(named.read_text(encoding="utf-8"))["text"] == "elsewhere"
    assert len(default.read_text(encoding="utf-8").splitlines()) == len(lines)


def test_a_log_that_cannot_be_written_and_opposite_options_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        Display(Output(log_file=tmp_path / "file" / "log"))
    with pytest.raises(FileExistsError):
        Display(Output(metrics_file=tmp_path / "file" / "metrics"))
    told = CliRunner().invoke(app, ["run", "quickstart", "-q", "-v", "--runs", str(tmp_path / "runs")])
    assert "--quiet and --verbose contradict each other" in str(told.exception)
    assert not (tmp_path / "runs").exists()


def test_an_accepted_change_of_settings_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", Made(iterations=2, train=2, gate=2, test=2))
    changed, shown = settings_of(run, ["iterations=3", "judge.args.api_key=sk-1"]), Display()
    Campaign(run, changed, WorkerPool(run, changed.base, shown), shown).begin_work()
    out = capsys.readouterr().out
    assert "iterations was 2 and is now 3\n" in out
    assert "judge.args.api_key" in out
    assert "sk-1" not in out


# ---- numbers for a monitoring system ----

WORK = Work("train", "steps", done=12, total=48, per_second=0.4, tokens_per_second=512.0)
SNAPSHOT = Snapshot(
    name='a "run"',
    planned=4,
    iteration=2,
    attempt=1,
    complete=False,
    stages={"sample": "finished", "train": "started", "eval": "waiting"},
    scores=(),
    typical={},
    alarms=(),
)


def values_in(path: Path) -> dict[str, float]:
    """The samples of a file, as a monitoring system parses it."""
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    families = list(parser.text_string_to_metric_families(path.read_text(encoding="utf-8")))
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_the_metrics_file_is_openmetrics_and_holds_the_work_and_the_last_results(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Made(iterations=1, train=2, gate=4, test=4))
    path = tmp_path / "metrics.prom"
    file = MetricsFile(path)
    assert values_in(path) == {}
    file.write(SNAPSHOT, WORK)
    found = values_in(path)
    assert (found["prefloop_current_iteration"], found["prefloop_planned_iterations"]) == (2, 4)
    assert [found[f"prefloop_stage_{name}"] for name in ("sample", "train", "eval")] == [1, 0.5, 0]
    assert (found["prefloop_work_done"], found["prefloop_work_left_seconds"]) == (12, 90)
    assert 'run="a \\"run\\""' in path.read_text(encoding="utf-8")
    state = iteration_state(run, 1)
    file.evaluated(state)
    file.write(SNAPSHOT, replace(WORK, done=13))  # too early
    assert values_in(path) == found
    file.write(SNAPSHOT, None, now=True)
    found = values_in(path)
    assert state.test is not None
    assert found["prefloop_eval_test_sampled"] == state.test.sampled_accuracy.value
    assert "prefloop_work_done" not in found


def test_a_stage_updates_the_metrics_file(tmp_path: Path) -> None:
    shown = Display(Output("quiet", metrics_file=tmp_path / "metrics.prom"))
    shown.look = lambda: SNAPSHOT
    with shown.bar("train", 48, "steps") as stage:
        assert values_in(tmp_path / "metrics.prom")["prefloop_work_total"] == 48
        assert shown.metrics is not None
        shown.metrics.written -= 60
        stage.set(24)
        assert values_in(tmp_path / "metrics.prom")["prefloop_work_done"] == 24


def test_a_number_keeps_all_its_digits() -> None:
    assert 'prefloop_a_b{run="my"} 0.1234567890123\n' in openmetrics("my", {"a/b": 0.1234567890123})


# ---- the engine's own log ----


def test_the_warning_per_weight_is_left_out_of_the_engines_log() -> None:
    def record(text: str, *values: Any) -> bool:
        import logging

        return is_news(logging.LogRecord("vllm", logging.WARNING, "utils.py", 1, text, values, None))

    told = "Attempted to load weight %s with dtype %s into parameter with dtype %s"
    assert not record(told, "norm.weight", "float32", "bfloat16")
    assert record("Attempted to load nested weight %s", "norm.weight")
