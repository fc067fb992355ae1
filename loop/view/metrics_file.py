"""A run's state for a monitoring system: a file in the OpenMetrics text format, rewritten while the campaign runs."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from loop.measure.metric_names import alarm_metrics, iteration_metrics
from loop.store.files import write_file
from loop.store.run_state import IterationState
from loop.view.progress import Snapshot, Work, seconds_left

EVERY = 10.0
"""Seconds between two writes while a stage runs."""
ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
"""Characters that a label's value may not hold, with their escapes."""


class MetricsFile:
    """The file; whoever reads it sees a whole one."""

    def __init__(self, path: Path) -> None:
        self.path, self.written = path, 0.0
        self.results: dict[str, float] = {}
        """Of the last evaluated iteration, under the names that trackers get."""
        write_file(path, openmetrics("", {}).encode("utf-8"))  # what the operating system refuses is said now

    def evaluated(self, state: IterationState) -> None:
        """Keep the results of an iteration for the next writes."""
        self.results = iteration_metrics(state) | alarm_metrics(state)

    def write(self, snapshot: Snapshot | None, work: Work | None, *, now: bool = False) -> None:
        """Rewrite the file if the last time is long enough ago."""
        if snapshot is None or (not now and time.monotonic() - self.written < EVERY):
            return
        self.written = time.monotonic()
        values = dict(of_snapshot(snapshot, work)) | self.results | (of_work(work) if work is not None else {})
        with suppress(OSError):  # on a full disk the old one stays, and the work goes on
            write_file(self.path, openmetrics(snapshot.name, values).encode("utf-8"))


def of_snapshot(snapshot: Snapshot, work: Work | None) -> Iterator[tuple[str, float]]:
    """Where the campaign stands."""
    yield "updated_timestamp_seconds", time.time()
    yield "current_iteration", snapshot.iteration
    yield "planned_iterations", snapshot.planned
    yield "attempt", snapshot.attempt
    yield "complete", float(snapshot.complete)
    if (left := seconds_left(snapshot, work)) is not None:
        yield "left_seconds", left
    for stage, state in snapshot.stages.items():
        yield f"stage_{stage}", {"waiting": 0.0, "started": 0.5, "finished": 1.0}[state]


def of_work(work: Work) -> dict[str, float]:
    """The stage in progress; unknown numbers are left out."""
    values = {
        "work/done": work.done,
        "work/total": work.total,
        "work/per_second": work.per_second,
        "work/tokens_per_second": work.tokens_per_second,
        "work/left_seconds": work.seconds_left,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def openmetrics(run: str, values: Mapping[str, float]) -> str:
    """The text: one gauge per number, labelled with the run's name."""
    lines = []
    for name, value in values.items():
        metric = "prefloop_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
        lines += [f"# TYPE {metric} gauge", f'{metric}{{run="{run.translate(ESCAPED)}"}} {float(value)!r}']
    return "\n".join([*lines, "# EOF"]) + "\n"
