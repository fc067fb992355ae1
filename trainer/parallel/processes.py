"""Run a function in several processes, each with its own log; return the leader's result. No process outlives the call
or a killed caller; if one fails all do, and the caller gets the first cause."""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from trainer.errors import TrainerError
from trainer.parallel.team import Team
from trainer.spec import Report
from trainer.stopping import Stopped, ask_to_stop, is_asked, stoppable

PATIENCE = 3.0
"""Seconds to wait for an earlier cause after an exception in one process."""


class ProcessError(RuntimeError):
    """Raised for an exception other than TrainerError in a process; the text names the process and its log."""

    def __init__(self, text: str, raised_at: float) -> None:
        super().__init__(text)
        self.raised_at = raised_at


class Work(Protocol):
    """What each process runs; it is pickled."""

    def __call__(self, *, team: Team, report: Report) -> Any:
        """The leader's result and reports go to the caller."""


@dataclass(slots=True)
class Member:
    """The caller's side of a process."""

    rank: int
    size: int
    log: Path
    process: Any
    pipe: Any
    done: bool = False
    result: Any = None

    @property
    def name(self) -> str:
        """Its name in messages, counted from 1."""
        return f"process {self.rank + 1} of {self.size}"

    def receive(self, report: Report) -> None:
        """Handle one message. Raises TrainerError or ProcessError if the process failed."""
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            if is_asked():
                raise Stopped from None
            raise TrainerError(_describe_death(self)) from None
        if kind == "report":
            report(content)
        elif kind == "refused":
            raise TrainerError(content)
        elif kind == "stopped":
            self.done = True
            if self.rank == 0:  # it has written the checkpoint
                raise Stopped
        elif kind == "failed":
            what, raised_at = content
            text = f"{what} (in {self.name}; end of its log {self.log}:\n{_log_tail(self.log)})"
            raise ProcessError(text, raised_at)
        else:
            self.done, self.result = True, content


def run_together(size: int, work: Work, *, sharded: bool, logs: Path, report: Report) -> Any:
    """Run `work` in `size` processes; the leader's result. TrainerError as raised, or if one died or GPUs are missing;
    ProcessError for any other exception; Stopped if this process was asked to stop."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < size:
        raise TrainerError(
            f"train.processes is {size}, but this machine has {gpus} GPUs, and each process needs one of its own. "
            f"Set train.processes={gpus} or fewer."
        )
    members: list[Member] = []

    def ask_members() -> None:
        for member in members:
            member.process.terminate()

    with tempfile.TemporaryDirectory(prefix="prefloop-") as folder:
        try:
            for rank in range(size):
                members.append(_start(rank, size, work, sharded, Path(folder) / "meeting", logs))
            with stoppable(ask_members):
                return _listen(members, report)
        finally:
            for member in members:
                member.process.kill()
                member.process.join()
                member.pipe.close()


def _start(rank: int, size: int, work: Work, sharded: bool, meeting: Path, logs: Path) -> Member:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    log = logs / f"process-{rank + 1}.log"
    arguments = (rank, size, work, sharded, meeting, log, theirs)
    process = context.Process(target=_member, args=arguments, name=f"prefloop-train-{rank + 1}")
    process.start()
    theirs.close()
    return Member(rank, size, log, process, ours)


def _listen(members: Sequence[Member], report: Report) -> Any:
    """Wait until all are done or one fails; then raise the first cause, a TrainerError before others."""
    failures: list[ProcessError] = []
    deadline = float("inf")
    while not all(member.done for member in members) and time.monotonic() < deadline:
        open_pipes = {member.pipe: member for member in members if not member.done}
        for pipe in wait(list(open_pipes), PATIENCE if failures else None):
            try:
                open_pipes[pipe].receive(report)
            except ProcessError as error:
                open_pipes[pipe].done = True
                failures.append(error)
                deadline = min(deadline, time.monotonic() + PATIENCE)
    if failures:
        raise min(failures, key=lambda error: error.raised_at)
    return members[0].result


def _describe_death(member: Member) -> str:
    code = member.process.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}"
    tail = _log_tail(member.log) or "    (none)"
    return (
        f"Training stopped: {member.name} {how}. If it was killed, the machine may have run out of memory: use fewer "
        "train.processes, or lower train.row_tokens. The last checkpoint is kept, and the same command resumes from "
        f"it. The end of its log {member.log}:\n{tail}"
    )


def _log_tail(log: Path, count: int = 12) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"    {line}" for line in lines[-count:])


def _member(rank: int, size: int, work: Work, sharded: bool, meeting: Path, log: Path, pipe: Connection) -> None:
    """Entry point of a process."""
    _end_with_caller()
    _write_to(log)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: None if ask_to_stop() else os._exit(1))
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, about which Python would warn when this process is ended

    def report(event: dict[str, Any]) -> None:
        if rank == 0:
            pipe.send(("report", event))

    try:
        from trainer.parallel.distributed import joined

        with joined(rank, size, sharded=sharded, meeting=meeting) as team:
            result = work(team=team, report=report)
    except Stopped:
        pipe.send(("stopped", None))
    except TrainerError as error:
        pipe.send(("refused", str(error)))
    except Exception as error:  # noqa: BLE001  the process boundary: any failure is reported to the caller
        raised_at = time.monotonic()  # one clock for all processes of a machine
        traceback.print_exc()
        sys.stderr.flush()
        pipe.send(("failed", (f"{type(error).__name__}: {error}", raised_at)))
    else:
        pipe.send(("done", result if rank == 0 else None))


def _end_with_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None, "this runs in a process that was spawned"

    def watch() -> None:
        caller.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
