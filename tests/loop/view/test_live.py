"""What is shown while a campaign runs: the right numbers, on every kind of terminal, and of a writer that is gone."""

import io
import json
import os
import pty
import re
import select
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from loop.config.load import load_config
from loop.format import duration
from loop.store.run_folder import RunFolder
from loop.store.run_records import Event
from loop.view import display as display_module
from loop.view.display import Bar, Display, is_live, train_progress
from loop.view.frame import bar, frame, time_left
from loop.view.progress import (
    Notice,
    Snapshot,
    Work,
    Writer,
    last_sign,
    look,
    read_writer,
    seconds_left,
    stage_in_progress,
    work_in_progress,
)
from loop.view.watch import COMPLETE, STOPPED, Watcher, watch
from tests.helpers.campaigns import Cli, copy_run, rows, times

DONE = dict.fromkeys(("sample", "judge", "pair"), "finished")
SECONDS = {"sample": 60.0, "judge": 0.0, "pair": 1.0, "train": 100.0, "eval": 40.0}
SNAPSHOT = Snapshot(
    name="my",
    planned=4,
    iteration=2,
    attempt=1,
    complete=False,
    stages=DONE | {"train": "started", "eval": "waiting"},
    scores=((0, {"sampled": 0.035, "greedy": None}), (1, {"sampled": 0.502, "greedy": 0.53})),
    typical=SECONDS,
    alarms=(Notice(0.0, "the engine worker was lost\nat shard 3"),),
)
WORK = Work("train", "steps", done=12, total=48, per_second=0.4, tokens_per_second=512.0, note="loss 0.412")


@pytest.fixture
def run(cli: Cli, reference: Path) -> RunFolder:
    return RunFolder(copy_run(reference, cli))


# ---- how long it takes ----


def test_the_rest_is_this_stage_by_its_rate_and_all_others_by_their_mean() -> None:
    assert seconds_left(SNAPSHOT, WORK) == pytest.approx(36 / 0.4 + 40 + 2 * 201)
    assert seconds_left(SNAPSHOT, None) == pytest.approx(100 + 40 + 2 * 201)
    assert seconds_left(replace(SNAPSHOT, typical={}), WORK) is None
    assert seconds_left(replace(SNAPSHOT, complete=True), None) == 0.0
    assert time_left(replace(SNAPSHOT, typical={}, iteration=1), WORK) == "first iteration, time left unknown"


def test_the_typical_seconds_are_those_of_finished_iterations(reference: Path) -> None:
    run = RunFolder(reference)
    state = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    seen = look(run, load_config(run.config))
    walls = [it["seconds"]["train"]["wall"] for it in state[1:]]
    assert seen.typical["train"] == pytest.approx(sum(walls) / 2)
    assert (seen.iteration, seen.complete, seen.planned) == (2, True, 2)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.14, "3.1 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (7300, "2 h 01 min")],
)
def test_durations_are_described(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# ---- the frame ----


def test_a_frame_says_where_the_campaign_stands() -> None:
    lines = [line.text for line in frame(SNAPSHOT, WORK, width=100, ascii_only=True)]
    assert lines[0] == "my, iteration 2 of 4: about 8 min 52 s left"
    assert lines[1] == "[x] sample [x] judge [x] pair [>] train [ ] eval"
    assert re.fullmatch(r"train =+\.+ 12/48 steps, loss 0\.412, 1 min 30 s left, 0\.4/s, 512 tokens/s", lines[2]), (
        lines[2]
    )
    assert lines[2].count("=") * 3 == lines[2].count(".") - 2
    assert lines[3:5] == ["test sampled %  0: 3.5  1: 50.2", "test greedy %   0: -  1: 53.0"]
    assert lines[5].endswith("the engine worker was lost at shard 3")


@settings(max_examples=40)
@given(width=st.integers(1, 200), done=st.integers(0, 60), iterations=st.integers(0, 60), title=st.text(max_size=30))
def test_no_line_is_wider_than_the_terminal(width: int, done: int, iterations: int, title: str) -> None:
    scores = tuple((k, {"sampled": 0.5, "greedy": 0.5}) for k in range(iterations))
    snapshot, work = replace(SNAPSHOT, scores=scores), replace(WORK, done=done, title=title.replace("\n", ""))
    assert all(len(line.text) <= width for line in frame(snapshot, work, width=width))


def test_a_narrow_terminal_keeps_what_matters_most() -> None:
    assert bar(WORK, 50) == "train 12/48 steps, loss 0.412, 1 min 30 s left"
    assert bar(WORK, 20) == "train 12/48 steps"
    assert frame(SNAPSHOT, None, width=33)[2].text == "test sampled %  0: 3.5  1: 50.2"
    assert frame(SNAPSHOT, None, width=30)[2].text == "test sampled %  …  1: 50.2"


# ---- the terminal ----


def a_terminal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Iterator[tuple[Console, int]]:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"} | environment).items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as file:
        yield Console(file=file, soft_wrap=True, highlight=False), ours
    os.close(ours)


def shown_on(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """All that a terminal gets of a stage."""
    for console, end in a_terminal(monkeypatch, **environment):
        shown = Display()
        shown.console, shown.look = console, lambda: SNAPSHOT
        with shown.bar("train", 48, "steps") as stage:
            stage.resume_at(0)
            stage.count(tokens=100, detail="loss 0.412")
            stage.set(12)
        console.file.flush()
        shown_there = b""
        while select.select([end], [], [], 0.2)[0]:  # a terminal hands over a piece at a time
            shown_there += os.read(end, 100_000)
        return shown_there.decode()
    raise AssertionError


def test_a_terminal_gets_the_view_and_tmux_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for term in ("xterm-256color", "screen", "tmux-256color"):
        shown = shown_on(monkeypatch, TERM=term)
        assert "\x1b[" in shown
        assert "my, iteration 2 of 4" in shown
        assert "12/48 steps" in shown
        assert shown.rstrip().endswith("s")
        assert "train: 12 steps in " in shown


def test_without_colours_the_view_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_on(monkeypatch, NO_COLOR="1")
    assert "my, iteration 2 of 4" in shown
    assert not re.search(r"\x1b\[(\d+;)*3[0-9]", shown)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true"}, {"TERM": "unknown"}], ids=str)
def test_where_nothing_can_be_redrawn_there_are_lines(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    shown = shown_on(monkeypatch, **environment)
    assert "\x1b" not in shown
    assert shown.splitlines()[-1].startswith("  train: 12 steps in ")


def test_a_file_is_no_terminal_even_if_colours_are_forced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("CI", raising=False)
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        assert not is_live(Console(file=file))


def test_lines_come_now_and_then_and_hold_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "LINE_EVERY", 0.0)
    shown = Display()
    shown.console = Console(file=io.StringIO(), soft_wrap=True, highlight=False, width=200)
    with shown.bar("sample", 64, "responses") as stage:
        stage.note("starting the engine")
        stage.resume_at(16)
        stage.started -= 10
        stage.count(tokens=480, shards=(1, 4))
        stage.set(32)
    shown.warn("it said \x1b[31mred\x07")
    text = shown.console.file.getvalue()  # type: ignore[attr-defined]
    assert "  sample: starting the engine\n" in text
    assert re.search(r"  sample: 32/64 responses, .* left, .*/s, \d+ tokens/s, shard 2 of 4\n", text)
    assert " 48 tokens/s" in text
    assert text.endswith("  warning: it said ␛[31mred␇\n")
    assert "\x1b" not in text


def test_the_rate_counts_from_where_a_resume_began() -> None:
    stage = Bar("sample", 100, "responses", lambda _: None)
    stage.resume_at(50)
    stage.started -= 10
    stage.set(60)
    assert stage.work.per_second == pytest.approx(1.0, rel=0.01)
    assert stage.work.seconds_left == pytest.approx(40, rel=0.01)


def test_the_rate_does_not_count_the_start_of_an_engine() -> None:
    stage = Bar("sample", 100, "responses", lambda _: None)
    stage.resume_at(0)
    stage.note("starting the engine")
    stage.started -= 100
    stage.set(0)
    stage.started -= 10
    stage.set(20)
    assert stage.work.per_second == pytest.approx(2.0, rel=0.01)


def a_step(done: int, *, ended: bool, seconds: float = 2.0) -> dict[str, Any]:
    """What the trainer reports when a step is done, or within it."""
    message = {"phase": "train", "done": done, "total": 36}
    return message | ({"tokens": 900, "loss": 1.033, "seconds": seconds} if ended else {})


def test_nothing_is_wild_when_the_first_step_of_a_restarted_round_is_done() -> None:
    stage = Bar("train", 0, "steps", lambda _: None)
    show = train_progress(stage, lambda _: None)
    show({"phase": "load", "done": 0, "total": 1})
    show(a_step(20, ended=False))  # a sign of life from within the first step of this process
    show(a_step(20, ended=False))
    assert (stage.work.done, stage.work.per_second, stage.work.tokens_per_second) == (20, None, None)
    stage.started -= 2.0
    show(a_step(21, ended=True))
    assert stage.work.per_second == pytest.approx(0.5, rel=0.05)
    assert stage.work.tokens_per_second == pytest.approx(450, rel=0.05)
    assert stage.work.seconds_left == pytest.approx(30, rel=0.05)


def test_a_step_that_is_reported_at_its_end_alone_counts_with_its_own_seconds() -> None:
    stage = Bar("train", 0, "steps", lambda _: None)
    train_progress(stage, lambda _: None)(a_step(1, ended=True))
    assert stage.work.per_second == pytest.approx(0.5, rel=0.05)
    assert stage.work.tokens_per_second == pytest.approx(450, rel=0.05)


def test_tokens_per_second_are_those_of_whole_shards() -> None:
    stage = Bar("sample", 100, "responses", lambda _: None)
    stage.resume_at(0)
    stage.started -= 10
    stage.set(25)
    stage.count(tokens=5000, shards=(1, 4))
    stage.started -= 10  # half of the next shard is done, and its tokens are not known yet
    stage.counted -= 10
    stage.set(40)
    assert stage.work.tokens_per_second == pytest.approx(500, rel=0.05)
    assert stage.work.per_second == pytest.approx(2.0, rel=0.05)


def test_a_long_name_is_cut_rather_than_the_time_left() -> None:
    lines = frame(replace(SNAPSHOT, name="sweep-beta=0.1-learning_rate=1e-06-seed=1"), WORK, width=60)
    assert len(lines[0].text) <= 60
    assert lines[0].text.endswith("…, iteration 2 of 4: about 8 min 52 s left")
    assert lines[1].text == "[x] sample [x] judge [x] pair [>] train [ ] eval"


# ---- from outside ----


def stop_in_stage(run: RunFolder, stage: str, **started: Any) -> None:
    """Make the run look as if it were in this stage of iteration 2, its events ending there."""
    run.promotion(2).unlink()
    for name in ("train", "eval"):
        run.stage(2, name).manifest_path.unlink()
    run.stage(2, "eval").metrics.unlink()
    folder = str(run.stage(2, stage).path.relative_to(run.root))
    run.event("stage_started", stage=stage, iteration=2, folder=folder, title=stage, **started)


def mark_writer(run: RunFolder, pid: int, host: str = "") -> None:
    run.lock.write_text(f"pid {pid} on {host or socket.gethostname()}", encoding="utf-8")


def nobody() -> int:
    """A process that has ended."""
    import subprocess
    import sys

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_shards_of_an_unfinished_stage_are_counted(run: RunFolder) -> None:
    stop_in_stage(run, "eval", total=42, unit="responses")
    shards = run.stage(2, "eval").responses
    shards[-1].unlink()
    before = time.time()
    for path in shards[:-1]:
        os.utime(path, (before + 10, before + 10))
    work = work_in_progress(run)
    assert work is not None
    stored = rows(*shards[:-1])
    assert (work.title, work.done, work.total) == ("eval", len(stored), 42)
    assert work.per_second == pytest.approx(len(stored) / 10, rel=0.05)
    tokens = sum(len(row["token_ids"]) for row in stored)
    assert work.tokens_per_second == pytest.approx(tokens / 10, rel=0.05)
    run.event("engine_ready")  # and from then on the rates count
    for path in shards[:-1]:
        os.utime(path, (time.time() + 5, time.time() + 5))
    work = work_in_progress(run)
    assert work is not None
    assert work.tokens_per_second == pytest.approx(tokens / 5, rel=0.05)


def test_a_stage_is_marked_before_it_has_written_anything(run: RunFolder) -> None:
    shutil.rmtree(run.stage(2, "sample").path.parent)
    loaded = load_config(run.config)
    assert set(look(run, loaded).stages.values()) == {"waiting"}
    run.event("stage_started", stage="sample", iteration=2, folder="iter-002/sample", title="sample and judge")
    marked = {"sample": "started", "judge": "started", "pair": "waiting", "train": "waiting", "eval": "waiting"}
    assert look(run, loaded).stages == marked
    run.event("stage_finished", stage="sample", iteration=2, seconds={})
    assert set(look(run, loaded).stages.values()) == {"waiting"}


def test_steps_of_an_unfinished_round_are_counted_and_half_a_line_is_not(run: RunFolder) -> None:
    stop_in_stage(run, "train", total=0, unit="steps")
    folder = run.stage(2, "train")
    lines = folder.steps.read_text(encoding="utf-8").splitlines()
    folder.steps.unlink()
    folder.work.mkdir()
    assert work_in_progress(run) == Work("train", "steps", note="preparing")
    run.event("stage_planned", iteration=2, total=48)
    folder.running_steps.write_text("\n".join(lines[:2]) + '\n{"step": 2, "lo', encoding="utf-8")
    work = work_in_progress(run)
    assert work is not None
    seconds = sum(json.loads(line)["seconds"] for line in lines[:2])
    assert (work.done, work.total, work.per_second) == (2, 48, pytest.approx(2 / seconds))
    assert work.note == f"loss {json.loads(lines[1])['loss']:.3f}"


def test_between_two_stages_nothing_is_worked_on() -> None:
    started, planned, finished = (Event(0.0, what) for what in ("stage_started", "stage_planned", "stage_finished"))
    assert stage_in_progress([]) is None
    assert stage_in_progress([planned, started]) == started
    assert stage_in_progress([finished, started]) is None


def test_a_watch_sees_a_running_a_silent_and_a_dead_writer(run: RunFolder) -> None:
    stop_in_stage(run, "train", total=0, unit="steps")
    mark_writer(run, os.getpid())
    seen = Watcher(run).see()
    assert (seen.ended, seen.snapshot.alarms) == (None, ())
    assert seen.snapshot.stages["train"] == "started"
    old = time.time() - 3600
    for path in run.root.rglob("*"):
        os.utime(path, (old, old))
    assert last_sign(run) == pytest.approx(old, abs=1)
    assert (
        f"nothing has changed for 1 h 00 min; process {os.getpid()} runs" in Watcher(run).see().snapshot.alarms[-1].text
    )
    mark_writer(run, 7, "elsewhere")
    os.utime(run.lock, (old, old))
    far = Watcher(run).see()
    assert far.ended is None
    assert "is on elsewhere, where it cannot be looked at" in far.snapshot.alarms[-1].text
    pid = nobody()
    mark_writer(run, pid)
    dead = Watcher(run).see()
    assert dead.ended == STOPPED
    assert f"process {pid} has ended. Continue with: prefloop run {run}" in dead.snapshot.alarms[-1].text


def test_a_writer_is_read_from_the_lock(run: RunFolder) -> None:
    mark_writer(run, 12, "there")
    assert read_writer(run) == Writer(12, "there")
    run.lock.write_text("", encoding="utf-8")
    assert read_writer(run) is None


def test_warnings_and_a_rejection_that_stops_are_seen(run: RunFolder) -> None:
    for number in range(5):
        run.event("warning", text=f"number {number}")
    run.event("worker_lost", worker="engine", job="shard 3", why="it was killed", tries=1)
    run.promotion(2).unlink()
    seen = look(run, load_config(run.config))
    texts = [alarm.text for alarm in seen.alarms]
    assert texts == ["number 3", "number 4", "the engine worker was lost at shard 3: it was killed"]
    assert not seen.complete
    run.event("campaign_stopped", iteration=1)
    assert look(run, load_config(run.config)).complete


@pytest.mark.parametrize("age", [0, 3600], ids=["fresh", "stalled"])
def test_watch_follows_to_the_end_in_plain_lines_and_writes_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, age: int
) -> None:
    decision = run.promotion(2).read_bytes()
    run.promotion(2).unlink()
    mark_writer(run, os.getpid())
    for path in (path for path in run.root.rglob("*") if path.is_file()):
        os.utime(path, (time.time() - age,) * 2)
    before = times(run.root)
    looked = iter([None, None, lambda: run.promotion(2).write_bytes(decision)])

    def later(_: float) -> None:
        if happens := next(looked):
            happens()

    monkeypatch.setattr("loop.view.watch.time.sleep", later)
    console = Console(file=io.StringIO(), width=80)
    assert watch(run, console, once=False) == COMPLETE
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("campaign, iteration 2 of 2: about 0.0 s left") == 1
    assert ("nothing has changed for" in text) == bool(age)
    assert "campaign, iteration 2 of 2: complete" in text
    assert "\x1b" not in text
    after = times(run.root)
    after.pop("iter-002/promotion.json")
    assert after == before


def test_a_watch_tells_of_a_stage_line_by_line(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    decision = run.promotion(2).read_bytes()
    stop_in_stage(run, "eval", total=42, unit="responses")
    mark_writer(run, os.getpid())
    gone = run.stage(2, "eval").responses[-1]
    content, steps = gone.read_bytes(), iter(range(3))
    gone.unlink()
    before = work_in_progress(run)

    def later(_: float) -> None:
        step = next(steps)
        if step == 0:
            gone.write_bytes(content)
        elif step == 2:
            run.promotion(2).write_bytes(decision)

    monkeypatch.setattr("loop.view.watch.time.sleep", later)
    monkeypatch.setattr("loop.view.watch.LINE_EVERY", -1.0)
    console = Console(file=io.StringIO(), width=80)
    assert watch(run, console, once=False) == COMPLETE
    told = [line for line in console.file.getvalue().splitlines() if line.startswith("eval ")]  # type: ignore[attr-defined]
    assert before is not None
    assert [f"{before.done}/42" in told[0], *("42/42 responses" in line for line in told[1:])] == [True] * 3


def test_watch_ends_at_ctrl_c(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.promotion(2).unlink()
    mark_writer(run, os.getpid())

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("loop.view.watch.time.sleep", interrupted)
    assert watch(run, Console(file=io.StringIO()), once=False) == COMPLETE


def test_the_command_shows_one_frame_or_what_is_wrong(cli: Cli, run: RunFolder) -> None:
    ended = cli("watch", "campaign", "--once")
    assert ended.code == 0
    assert ended.out.splitlines()[0] == "campaign, iteration 2 of 2: complete"
    run.promotion(2).unlink()
    mark_writer(run, nobody())
    ended = cli("watch", "campaign")
    assert ended.code == 1
    assert "Continue with: prefloop run" in ended.out
    assert "There is no run 'nowhere'" in cli("watch", "nowhere").err
