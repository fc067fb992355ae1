"""Driver side of the trackers: a thread that has their worker report what is new, and never slows the run."""

import threading
import time
from collections.abc import Callable

from loop import interrupt
from loop.config.settings import TrackersConfig
from loop.errors import UserError
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json
from loop.workers.process import Job, Worker, wait

EVERY = 2.0
"""Seconds between two looks at the run folder."""
PATIENCE = 60.0
"""Seconds that trackers have to finish once the campaign has ended."""


class Trackers:
    """Keeps the trackers of a run up to date inside a `with` block; without any it does nothing."""

    def __init__(self, run: RunFolder, settings: TrackersConfig, warn: Callable[[str], None]) -> None:
        self.run, self.warn = run, warn
        service, details = "loop.trackers.tracker_service:TrackerService", {"run": run.root, "settings": settings}
        self.worker = Worker("trackers", service, details, run.log("trackers"), float("inf"), 1, run.event)
        self.thread = threading.Thread(target=self._follow, name="trackers", daemon=True) if settings.names else None
        self.ending = threading.Event()
        self.deadline = float("inf")

    def __enter__(self) -> "Trackers":
        if self.thread is not None:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.deadline = time.monotonic() + min(PATIENCE, interrupt.seconds_left() / 2)
        self.ending.set()
        if self.thread is None:
            return
        try:
            self.thread.join(interrupt.seconds_left() / 2 if interrupt.received() else None)
        except KeyboardInterrupt:  # the work is done, and whoever interrupts does not want to wait any longer
            self.deadline = 0.0
            self.thread.join(interrupt.seconds_left() / 2)

    def _follow(self) -> None:
        """The thread: the worker is its alone, because Linux ends a process with the thread that started it."""
        try:
            last = False
            while not last:
                last = self.ending.wait(EVERY)
                if self.run.exists():
                    self._sync(last)
        except (UserError, OSError) as error:
            self.warn(f"the trackers are given up: {error}")
        finally:
            self.worker.close()

    def _sync(self, last: bool) -> None:
        job = Job("what is new for the trackers", "sync", {"last": last}, self._report)
        self.worker.submit(job)
        while not job.done:
            wait([self.worker])
            if time.monotonic() > self.deadline:
                raise UserError(
                    f"they were still busy {PATIENCE:.0f} seconds after the end. Their output is in {self.worker.log}; "
                    f"`prefloop run {self.run}` sends them the rest."
                )

    def _report(self, message: Json) -> None:
        if "warning" in message:
            self.warn(message["warning"])
