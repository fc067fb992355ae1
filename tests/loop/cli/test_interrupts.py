"""Ctrl-C and SIGTERM: one line, the exit code of the signal, nobody left behind, however often they are sent."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loop import interrupt
from loop.store.stage import STAGES
from tests.helpers.campaigns import Cli, Running, assert_same_results, copy_run, descendants, events, is_alive, read

ROOT = Path(__file__).parents[3]
LIMIT = 5.0
"""Seconds that a command may take to end."""
LONGEST = 10.0
"""Seconds after which a campaign of the long proof is interrupted at the latest."""

COMMAND = """
import sys, threading, time
from loop import interrupt
interrupt.LIMIT, seconds = float(sys.argv[1]), float(sys.argv[2])
interrupt.listen()
from loop.cli import main as cli
def work():
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        BODY
        print("clean", flush=True)
cli.app = work
cli.main()
"""


def command(body: str = "time.sleep(seconds)", *, limit: float = 4.5, seconds: float = 0.3) -> subprocess.Popen[str]:
    """A command that works until it is interrupted and then cleans up."""
    code = COMMAND.replace("BODY", body)
    arguments = [sys.executable, "-c", code, str(limit), str(seconds)]
    process = subprocess.Popen(
        arguments, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_heed
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    return process


def _heed() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


KEPT = "Finished work is kept; run the same command to continue.\n"


@pytest.mark.parametrize(
    ("signals", "distance", "code"),
    [
        ([signal.SIGINT] * 2, 0.1, 130),
        ([signal.SIGINT] * 10, 0.02, 130),
        ([signal.SIGTERM, signal.SIGINT, signal.SIGTERM], 0.05, 143),
    ],
)
def test_clean_up_is_not_interrupted_by_later_signals(signals: list[int], distance: float, code: int) -> None:
    process = command()
    for number in signals:
        process.send_signal(number)
        time.sleep(distance)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "clean\n"), err
    what = "interrupted" if code == 130 else "ended by SIGTERM"
    assert err == f"\nprefloop: {what}. {KEPT}"


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(60)",
        "threading.Event().wait()",
        "[sum(range(1000)) for _ in iter(int, 1)]",
        "__import__('subprocess').run(['sleep', '20'], stdout=2)",
    ],
)
def test_a_clean_up_that_hangs_is_ended(body: str) -> None:
    process = command(body, limit=0.5)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    process.wait(timeout=30)
    assert process.returncode == 143
    assert time.monotonic() - started < LIMIT
    process.kill()
    assert process.stderr is not None
    line = os.read(process.stderr.fileno(), 10_000).decode()
    assert line.count("prefloop: ") == 1
    assert "Traceback" not in line


@pytest.mark.parametrize(
    "body", ["raise ValueError('broken by the interruption')", "raise SystemExit(1)", "raise FileNotFoundError(2, 'x')"]
)
def test_whatever_an_interruption_becomes_it_is_told_as_one(body: str) -> None:
    process = command(body)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, f"\nprefloop: interrupted. {KEPT}")


def test_an_interruption_before_the_command_has_begun_is_told_as_one() -> None:
    code = "import time; from loop import interrupt; interrupt.listen(); print('importing', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_heed,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, f"\nprefloop: interrupted. {KEPT}")


def test_an_interruption_while_the_packages_are_looked_for_leaves_no_traceback() -> None:
    code = (
        "import time; from loop.cli import start; "
        "start.replaced_packages = lambda: print('looking', flush=True) or time.sleep(60); start.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_heed,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (-signal.SIGINT, "")  # a shell shows 130


def test_a_signal_that_the_caller_switched_off_stays_off() -> None:
    code = "import signal; from loop import interrupt; interrupt.listen(); print(signal.getsignal(signal.SIGINT).name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN) and None,
    )
    assert done.stdout == "SIG_IGN\n", done.stderr


def test_an_interruption_waits_for_the_end_of_a_block_that_starts_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_STATE", interrupt._State())
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupt.postponed():  # noqa: PT012
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= interrupt.SIGNALS
        interrupt._receive(signal.SIGINT, None)
        reached.append("the end")
    assert reached == ["the end"]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & interrupt.SIGNALS
    assert 0 < interrupt.seconds_left() <= interrupt.CLEAN_UP
    interrupt._receive(signal.SIGTERM, None)  # the second one changes nothing
    assert interrupt.received() == signal.SIGINT


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one interrupted command."""

    signals: str
    stage: str
    seconds: float
    code: int
    left: int
    """Workers that run 5 seconds after the first signal."""
    traceback: bool

    def __str__(self) -> str:
        return f"{self.signals:<40} {self.stage:<28} {self.seconds:5.2f} s  code {self.code:<4} left {self.left}"


def interrupted(cli: Cli, config: Path, numbers: Sequence[int], clock: random.Random) -> Trial:
    """Start the campaign, and send signals at random distances after a random time."""
    running = cli.start("run", config)
    running.wait_for("the command listens", lambda: _threads(running) > 1)
    if clock.random() < 0.15:
        time.sleep(clock.uniform(0.0, 2.0))
    else:
        _wait(running, cli.runs / "campaign", clock)
    longest = clock.choice((0.05, 0.5, 2.0 if len(numbers) < 4 else 0.2))
    whole_group, distances = clock.random() < 0.5, [0.0, *(clock.uniform(0.0, longest) for _ in numbers[1:])]
    started = time.monotonic()
    sending = threading.Thread(target=_send, args=(running, numbers, distances, whole_group))
    sending.start()
    try:
        ended = running.end(timeout=30)
    except subprocess.TimeoutExpired:
        running.process.kill()
        ended = running.end()
    seconds = time.monotonic() - started
    sending.join()
    while time.monotonic() < started + LIMIT and any(map(is_alive, running.workers)):
        time.sleep(0.05)
    found = events(cli.runs / "campaign") if (cli.runs / "campaign" / "events.jsonl").exists() else []
    stages = [f"{row['iteration']}/{row['stage']}" for row in found if row["event"] == "stage_started"]
    to = "group" if whole_group else "driver"
    names = f"{len(numbers)} {signal.Signals(numbers[0]).name} within {sum(distances):.2f} s to {to}"
    left = sum(map(is_alive, running.workers))
    stage = f"{stages[-1] if stages else 'start'}, {len(running.workers)} children"
    return Trial(names, stage, seconds, ended.code, left, "Traceback" in ended.out + ended.err)


def _send(running: Running, numbers: Sequence[int], distances: Sequence[float], whole_group: bool) -> None:
    """Send the signals to a command until it has ended."""
    for number, distance in zip(numbers, distances, strict=True):
        time.sleep(distance)
        running.workers |= descendants(running.process.pid)
        if is_alive(running.process.pid):
            (os.killpg if whole_group else os.kill)(running.process.pid, number)


def _wait(running: Running, run: Path, clock: random.Random) -> None:
    """Until a random time after the start, or a random time after the start of one of the next stages."""
    stages, deadline = _started(run) + clock.choice((1, 1, 2)), time.monotonic() + clock.uniform(0.0, LONGEST)
    if clock.random() < 0.7:
        deadline += 60.0
        while _started(run) < stages and time.monotonic() < deadline and running.process.poll() is None:
            time.sleep(0.02)
        deadline = time.monotonic() + clock.uniform(0.0, 2.0)
    while time.monotonic() < deadline and running.process.poll() is None:
        running.workers |= descendants(running.process.pid)
        time.sleep(0.05)


def _started(run: Path) -> int:
    return len(events(run, "stage_started")) if (run / "events.jsonl").exists() else 0


def _threads(running: Running) -> int:
    return len(os.listdir(f"/proc/{running.process.pid}/task"))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("number", "count", "code"), [(signal.SIGINT, 40, 130), (signal.SIGTERM, 20, 143)], ids=["ctrl-c", "term"]
)
def test_interrupts_at_random_moments_end_the_command_and_change_nothing(
    cli: Cli, settings: dict[str, Any], reference: Path, tmp_path: Path, number: int, count: int, code: int
) -> None:
    config, run, clock = cli.write(settings), cli.runs / "campaign", random.Random(number)
    trials: list[Trial] = []
    while len(trials) < count:
        if clock.random() < 0.5:
            shutil.rmtree(run, ignore_errors=True)
        if not run.exists():
            cut(copy_run(reference, cli), clock)
        sent = [number] * (clock.choice((2, 3, 10)) if number == signal.SIGINT else 1)
        trial = interrupted(cli, config, sent, clock)
        if trial.code == 0:  # it had finished before
            assert_same_results(run, reference)
            shutil.rmtree(run)
            continue
        trials.append(trial)
        print(f"{len(trials):>3} {trial}", flush=True)
        resumed = Cli(tmp_path / str(len(trials)))
        resumed.folder.mkdir()
        if run.exists():
            copy_run(run, resumed)
        assert_same_results(resumed.run(config), reference)
        shutil.rmtree(resumed.folder)
    print(f"{count} interrupted, slowest {max(trial.seconds for trial in trials):.2f} s after the first signal")
    assert [trial for trial in trials if trial.code != code or trial.left or trial.traceback] == []
    assert [trial for trial in trials if trial.seconds > LIMIT] == []


def cut(run: Path, clock: random.Random) -> None:
    """Remove a random stage of a finished run and all that comes after it."""
    k, first = clock.choice((1, 2)), clock.randrange(len(STAGES))
    for folder in [run / f"iter-{k:03d}" / stage for stage in STAGES[first:]] + [run / "iter-002"] * (k == 1):
        shutil.rmtree(folder)
    (run / f"iter-{k:03d}" / "promotion.json").unlink()


@pytest.mark.slow
def test_an_interrupted_round_continues_after_its_last_step(
    cli: Cli, settings: dict[str, Any], reference: Path
) -> None:
    settings["train"] |= {"checkpoint_every": 0}
    config, run = cli.write(settings), cli.runs / "campaign"
    running = cli.start("run", config)
    steps = run / "iter-001" / "train" / "work" / "steps.jsonl"
    running.wait_for("the second step", lambda: steps.exists() and len(steps.read_bytes().splitlines()) > 1)
    running.process.send_signal(signal.SIGTERM)
    ended = running.end()
    assert (ended.code, "Traceback" in ended.err) == (143, False), ended.err
    running.expect_no_worker()
    assert events(run, "campaign_interrupted")[-1]["signal"] == "SIGTERM"
    cli.run(config)
    notes = read(run / "iter-001" / "train" / "manifest.json")["counts"]["notes"]
    assert any(note.startswith("resumed at step") for note in notes)
