"""Room loop, what trackers are told: a run folder and what they were told already come in, the points that are new go
out, in the order of the campaign.

Every point belongs to a series and has a number in it. A series only grows, so "up to which number" is all that has to
be remembered: a tracker that joins late, or after a kill, is told the rest and nothing twice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loop.files import read_lines
from loop.metric_names import ITERATION, STEP, decided_metrics, labelled_metrics, step_metrics
from loop.runfolder import RunFolder, StageFolder
from loop.sample_table import SampleTable, sample_table
from loop.status import iteration_state

Axis = Literal["iteration", "train/step"]


@dataclass(frozen=True, slots=True)
class Point:
    """Numbers (or a table) at one place of an axis."""

    series: str
    number: int
    axis: Axis
    at: int
    values: dict[str, float]
    table: SampleTable | None = None


def new_points(run: RunFolder, told: Mapping[str, int], *, samples: int) -> Iterator[Point]:
    """All points that come after what was `told`: by series, the last number. `samples` prompts are in each table."""
    steps = 0
    for k in run.iterations():
        if k and _is_new(told, f"{k} labelled") and run.stage(k, "pair").manifest():
            yield _of_iteration(k, "labelled", labelled_metrics(iteration_state(run, k)["counts"]))
        for attempt in range(1, run.attempts(k) + 1) if k else ():
            folder = run.stage(k, "train", attempt)
            finished = steps_of(folder)
            if not finished or told.get(series_of(folder), -1) < finished - 1:
                yield from _trained(folder, told, steps)
            steps += finished
        if run.promotion(k).exists() and run.latest(k, "eval").manifest():
            yield from _decided(run, k, told, samples)


def _is_new(told: Mapping[str, int], series: str) -> bool:
    return series not in told


def _of_iteration(k: int, what: str, values: dict[str, float], table: SampleTable | None = None) -> Point:
    return Point(f"{k} {what}", 0, "iteration", k, values | {ITERATION: k}, table)


def _trained(folder: StageFolder, told: Mapping[str, int], before: int) -> Iterator[Point]:
    """The steps of a round, while it runs and after; `before` it there were so many in the campaign."""
    series = series_of(folder)
    for line in read_lines(folder.step_log):
        if line["step"] > told.get(series, -1):
            at = before + line["step"]
            values = step_metrics(line) | {"train/iteration": folder.iteration, STEP: at}
            yield Point(series, line["step"], "train/step", at, values)


def series_of(folder: StageFolder) -> str:
    """The series that the steps of a round belong to."""
    return f"{folder.iteration} train {folder.attempt}"


def steps_of(folder: StageFolder) -> int:
    """How many steps a finished round has; 0 for one that still runs, because no other follows it."""
    manifest = folder.manifest()
    return 0 if manifest is None else int(manifest.counts["steps"])


def _decided(run: RunFolder, k: int, told: Mapping[str, int], samples: int) -> Iterator[Point]:
    if _is_new(told, f"{k} decided"):
        yield _of_iteration(k, "decided", decided_metrics(iteration_state(run, k)))
    if samples and _is_new(told, f"{k} samples") and run.judged_shards(k, "gate"):
        yield _of_iteration(k, "samples", {}, sample_table(run, k, samples))


def as_record(tracker: str, point: Point) -> dict[str, Any]:
    """What is remembered of a point that a tracker is told."""
    return {"tracker": tracker, "series": point.series, "number": point.number}
