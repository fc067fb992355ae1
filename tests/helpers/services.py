"""Services for the tests of workers: each misbehaves in one way, some only as long as a marker file is missing."""

import os
import re
import signal
import time
from pathlib import Path

from loop.errors import UserError
from loop.workers.entry import Report
from trainer.stopping import Stopped, is_asked, stoppable


class Toy:
    """Jobs that work, crash, hang or refuse."""

    def __init__(self, marker: Path) -> None:
        self.marker, self.calls = marker, 0

    def _first(self) -> bool:
        """Whether no worker has come here before."""
        if self.marker.exists():
            return False
        self.marker.touch()
        return True

    def add(self, report: Report, a: int, b: int) -> tuple[int, int, int]:
        """The sum, the calls so far, and whose work it is."""
        self.calls += 1
        print(f"adding {a} and {b}")
        return a + b, self.calls, os.getpid()

    def variable(self, report: Report, name: str) -> str | None:
        """A variable of this process's environment."""
        return os.environ.get(name)

    def crash_once(self, report: Report) -> str:
        """As a segmentation fault would."""
        if self._first():
            os.kill(os.getpid(), signal.SIGSEGV)
        return "survived"

    def hang_once(self, report: Report) -> str:
        """As a deadlock would."""
        if self._first():
            time.sleep(3600)
        return "woke up"

    def work_long(self, report: Report, seconds: float) -> str:
        """Slow, but it says so."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.1)
            report(done=1)
        return "done"

    def train(self, report: Report, seconds: float) -> None:
        """Steps, which end early if the process is asked to."""
        with stoppable():
            while not is_asked():
                report(done=1)
                time.sleep(0.05)
            time.sleep(seconds)
            (self.marker.parent / "checkpoint").touch()
            raise Stopped

    def fail(self, report: Report) -> None:
        """A mistake of ours."""
        raise RuntimeError("the shelf is empty")

    def fail_elsewhere(self, report: Report) -> str:
        """Another mistake each time, then none."""
        if self._first():
            raise RuntimeError("the shelf is empty")
        if not self.marker.with_suffix(".second").exists():
            self.marker.with_suffix(".second").touch()
            raise RuntimeError("the shelf is empty")
        return "found it"

    def fail_in_other_words(self, report: Report) -> None:
        """One mistake whose text differs each time."""
        raise RuntimeError(f"the shelf is empty,\n  says {os.getpid()}")

    def do_items(
        self, report: Report, count: int, seconds: float, *, limit: float = 1.0, at: int = -1, how: str = ""
    ) -> str:
        """Do one after the other, without a message; what happens at one of them."""
        for number in range(count):
            report(item=f"item {number}", limit=limit)
            if number == at and how == "loop":
                re.match(r"(a|a)*b", "a" * 99)  # holds the interpreter's lock
            if number == at and how == "exit":
                os._exit(7)
            time.sleep(seconds)
            report(item="")
        return "done"

    def exit(self, report: Report) -> None:
        """As foreign code may."""
        print("last words")
        os._exit(7)

    def refuse(self, report: Report) -> None:
        """A mistake of the user."""
        self._first()
        raise UserError("the key is wrong; turn it.")

    def fill(self, report: Report) -> None:
        """A write that a full disk refuses, for real."""
        with open("/dev/full", "w", encoding="utf-8") as file:
            file.write("x")
