"""The parent's side of an isolated judge's child process, which is started, not forked: it inherits only stderr."""

import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from judges.isolation.child_main import OUT_OF_MEMORY
from judges.types import Prompt, Response

START_SECONDS = 120.0
"""How long a child may take to import and build a judge."""

LOOK_SECONDS = 0.2
"""How often to poll a silent child: a process that it forked may hold its pipe open after its death."""

_BOOT = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); "
    "from judges.isolation.child_main import main; main(sys.argv[2])"
)
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Item = tuple[Prompt, Response]


class Loss(NamedTuple):
    """Why a child is lost, and whether its current response may be retried once, alone."""

    why: str
    again: bool


class Child:
    """A child process; `batch` holds the numbers of the items it still has to judge."""

    def __init__(self) -> None:
        self.batch: deque[int] = deque()
        self.alone = self.ready = False
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._deadline = self._limit = 0.0

    def give(self, recipe: bytes, items: Sequence[Item], batch: Sequence[int], limit: float) -> None:
        """Send the items numbered in `batch`; `limit` is the time for each in seconds."""
        if self._process is None or self._process.poll() is not None:
            self.end()
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self.batch, self.alone, self.ready = deque(batch), False, False
        self._deadline, self._limit = time.monotonic() + START_SECONDS, limit
        with suppress(BrokenPipeError):  # it has ended; `loss` reports that
            pickle.dump((recipe, [items[number] for number in batch]), self._process.stdin)
            self._process.stdin.flush()

    def _start(self) -> None:
        """Start a process that inherits only stderr, in its own group, so that all of it can be killed."""
        root = str(Path(__file__).resolve().parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, "\n".join([root, *sys.path]), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**_ONE_THREAD, **os.environ},
            start_new_session=True,
        )
        os.set_blocking(self.output, False)
        self._received = b""

    @property
    def output(self) -> int:
        """File descriptor of the child's messages."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def messages(self) -> Iterator[list[Any]]:
        """Messages received since the last call."""
        while True:
            try:
                received = os.read(self.output, 1 << 16)
            except BlockingIOError:
                break
            if not received:
                break
            self._received += received
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            self._deadline = time.monotonic() + self._limit
            yield json.loads(line)

    def loss(self) -> Loss | None:
        """Why the child is lost; None if it is not."""
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            return Loss(_ending(code), again=True)
        if time.monotonic() < self._deadline:
            return None
        seconds = self._limit if self.ready else START_SECONDS
        return Loss(f"took longer than {seconds:g} s and was killed", again=False)

    def seconds_left(self) -> float:
        """Time until its deadline or the next poll."""
        return max(0.0, min(self._deadline - time.monotonic(), LOOK_SECONDS))

    def end(self) -> None:
        """Kill the process and everything it has started, by process group."""
        process, self._process = self._process, None
        self.batch.clear()
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for a group that has just ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def _ending(code: int) -> str:
    if code == OUT_OF_MEMORY:
        return "needed more memory than it may use"
    if code >= 0:
        return f"ended its process with code {code}"
    try:
        return f"ended its process by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended its process by signal {-code}"


def await_message(busy: list[Child]) -> list[Child]:
    """Wait until a busy child has sent a message or is late; return all of them, since checking one is cheap."""
    with selectors.DefaultSelector() as selector:
        for child in busy:
            selector.register(child.output, selectors.EVENT_READ)
        selector.select(min(child.seconds_left() for child in busy))
    return busy
