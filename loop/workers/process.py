"""Driver side of the workers: start, send jobs, detect crashes and stalls, retry, stop."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from loop import interrupt
from loop.errors import UserError
from loop.redact import REMEMBERED
from loop.workers import entry
from loop.workers.entry import Arguments, Progress, Sign

HANGING = (
    "If a judge needs that long, raise judge.seconds_per_response; if it may hang, set `isolated = True` in its class "
    "(docs/judges.md), and only that response gets an error."
)
"""What to do about a judge that hangs."""
LESS_MEMORY = "train.row_tokens, train.gradient_checkpointing, engine.memory_gib and engine.batch lower what is needed"

OnProgress = Callable[[Progress], None]
PATIENCE = 5.0
"""Seconds that a worker has to end by itself."""


@dataclass(slots=True)
class Job:
    """One call of a worker's service; it can be repeated."""

    name: str
    method: str
    details: Arguments
    on_progress: OnProgress = lambda _: None
    tries: int = 0
    place: str = ""
    """Where the last try failed, if that is known."""
    result: Any = None
    done: bool = False


@dataclass(slots=True)
class Worker:
    """A process that serves one job at a time; messages use its `name`."""

    name: str
    service: str
    arguments: Arguments
    log: Path
    stall_seconds: float
    retries: int
    on_event: Callable[..., None]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the process, in addition to the driver's."""
    starts: int = 0
    job: Job | None = None
    _process: Any = None
    _pipe: Any = None
    _sign: Sign = field(default_factory=Sign)
    _seen: tuple[int, Any] = (0, None)
    """The number of the last sign, and the last progress."""
    _seen_at: float = 0.0
    _number: int = 0
    _stopping: bool = False

    @property
    def running(self) -> bool:
        """Whether its process has been started and is alive."""
        return self._process is not None and self._process.is_alive()

    def start(self) -> None:
        """Start the process unless it is running."""
        if self.running:
            return
        context = multiprocessing.get_context("spawn")
        multiprocessing.resource_tracker.ensure_running()  # starting it would end the blocking of signals
        with interrupt.postponed(), _no_main_module(), _environment(self.environment):
            self._pipe, theirs = context.Pipe()
            self._sign = context.RawValue(Sign)
            process = context.Process(
                target=entry.main,
                args=(theirs, self._sign, self.service, self.arguments, self.log, os.getpid(), frozenset(REMEMBERED)),
                name=f"prefloop-{self.name}",
            )
            process.start()
            self._process = process
            theirs.close()
        self.starts += 1
        self.on_event("worker_started", worker=self.name, pid=self._process.pid, starts=self.starts)

    def submit(self, job: Job) -> None:
        """Give the worker a job; it must be idle."""
        assert self.job is None, f"{self.name} is busy with {self.job}"
        self.start()
        self.job = job
        self._number += 1
        self._seen, self._seen_at = (self._sign.number, None), time.monotonic()
        try:
            self._pipe.send((self._number, job.method, job.details))
        except OSError:
            self._retry("its process had ended")

    @property
    def handles(self) -> list[Any]:
        """Handles to wait on while a job runs."""
        return [self._pipe, self._process.sentinel]

    def poll(self) -> Job | None:
        """Process the worker's messages; return the job once it is done. UserError if it fails."""
        while self.job is not None:
            try:
                if not self._pipe.poll():
                    break
                kind, number, content = self._pipe.recv()
            except (EOFError, OSError):
                item, code = self._sign.item, self._exit_code()
                self._retry(f"{describe_exit(code)}{item and f' at {item}'}", item and f"{code} {item}")
                return None
            if number == self._number and (finished := self._receive(kind, content)):
                return finished
        if self.job is not None:
            self._notice_stall()
        return None

    def _notice_stall(self) -> None:
        """Retry the job if the worker is in the same item for too long, or silent without one."""
        if self._sign.number != self._seen[0]:
            self._seen, self._seen_at = (self._sign.number, self._seen[1]), time.monotonic()
        quiet, item, limit = time.monotonic() - self._seen_at, self._sign.item, self._sign.limit
        if item and quiet > limit:
            self._retry(f"it was still at {item} after {limit:g} s", item, HANGING)
        elif not item and quiet > self.stall_seconds:
            self._retry(f"it reported nothing for {self.stall_seconds:.0f} seconds", f"silent after {self._seen[1]}")

    def _receive(self, kind: str, content: Any) -> Job | None:
        job = self.job
        assert job is not None
        self._seen, self._seen_at = (self._sign.number, content if kind == "progress" else None), time.monotonic()
        if kind == "progress":
            job.on_progress(content)
            return None
        if kind == "refused":
            raise UserError(content)
        if kind == "failed":
            self._retry(*content)
            return None
        job.result, job.done, self.job = content, True, None
        return job

    def _exit_code(self) -> int | None:
        self._process.join(5)
        return self._process.exitcode

    def _retry(self, why: str, place: str = "", advice: str = "") -> None:
        """Replace the worker and give the new one the same job. UserError after too many tries, or if the last one
        failed at the same place, which another would as well."""
        job = self.job
        assert job is not None
        self.kill()
        self.job = None
        job.tries += 1
        again, job.place = bool(place) and place == job.place, place
        self.on_event("worker_lost", worker=self.name, job=job.name, why=why, tries=job.tries)
        if again or job.tries > self.retries:
            output = f"its output is in {self.log}." if place else f"the end of {self.log}:\n{last_lines(self.log)}"
            raise UserError(
                f"The {self.name} worker failed {job.tries} times at {job.name}: {why}"
                f"{', the last two times at the same place' if again else ''}. {advice and advice + ' '}Everything "
                f"finished is kept; {output}"
            )
        self.submit(job)

    def kill(self) -> None:
        """Kill this process, by its own pid."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def stop(self) -> None:
        """Ask a busy worker to end; a trainer writes a checkpoint first, for which `close` then waits."""
        if self._process is not None and self.job is not None:
            self._process.terminate()
            self._stopping = True

    def close(self) -> None:
        """Close the pipe, which ends an idle worker; kill it if it does not end."""
        if self._process is not None:
            if not self._stopping:
                self._pipe.close()
            patience = PATIENCE if self.job is None or self._stopping else 0.0
            self._process.join(min(patience, interrupt.seconds_left()))
            self.kill()


def describe_exit(code: int | None) -> str:
    """How a process ended; one that was killed was most likely killed for want of memory."""
    if code == -signal.SIGKILL:
        return f"the process was killed (SIGKILL), most likely as memory was full; {LESS_MEMORY}"
    if code is not None and code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with code {code}"


_MAIN_MODULE = threading.Lock()


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Inside, a new process does not import the driver's main module: a script that starts a campaign would start it
    again in every worker."""
    with _MAIN_MODULE:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def wait(workers: list[Worker], timeout: float = 1.0) -> list[tuple[Worker, Job]]:
    """Wait until a busy worker sends something; return the finished jobs."""
    busy = [w for w in workers if w.job is not None]
    multiprocessing.connection.wait([handle for w in busy for handle in w.handles], timeout)
    return [(w, job) for w in busy if (job := w.poll()) is not None]


def call(worker: Worker, job: Job) -> Any:
    """Run one job to its end and return its result."""
    call_all([(worker, job)])
    return job.result


def call_all(jobs: Sequence[tuple[Worker, Job]]) -> None:
    """Run one job on each worker at the same time, to the end of all."""
    for worker, job in jobs:
        worker.submit(job)
    while not all(job.done for _, job in jobs):
        wait([worker for worker, _ in jobs])


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """A process that is started inside finds these variables from its first moment, before it loads any library."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def last_lines(log: Path, count: int = 12) -> str:
    """The end of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"    {line}" for line in lines[-count:])
