"""The runs of a folder at a glance. Reads the last lines of a run's files rather than the run, so that a folder of long
campaigns is listed at once."""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loop.errors import UserError
from loop.format import NONE, in_bytes, visible
from loop.store.files import last_rows
from loop.store.lineage import settings_of
from loop.store.run_folder import RunFolder
from loop.store.run_records import Interval, Json, SetMetrics, as_record
from loop.view.progress import STALLED_AFTER, iteration_in_progress, read_writer
from loop.view.status_tables import with_interval

State = Literal["running", "complete", "ended", "waiting for labels", "stopped", "not started", "damaged"]
"""`ended`: by a rejected candidate (`promote.on_reject: stop`). `stopped`: by a user or a problem; it can be continued.
`not started`: a fork that nobody has run."""

WIDE = 76
"""Columns of a terminal from which an accuracy and its interval stand on one line."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run."""

    name: str
    path: str
    state: State
    iteration: int | None
    """The one in progress, or the last one; None for a damaged run, like the next two."""
    planned: int | None
    incumbent: int | None
    accuracy: Interval | None
    """Of the incumbent on the test prompts; of held-out pairs where there is no judge. None before the evaluation."""
    bytes: int
    """Of all its files; a fork shares most of its own with its parent."""
    changed: float
    """Time of the last change, in seconds since 1970."""
    problem: str = ""
    """What is wrong with a damaged run."""

    def as_json(self) -> Json:
        """Plain values."""
        return asdict(self)


def summaries(runs: Path) -> list[RunSummary]:
    """All runs of a folder, the latest change first."""
    return sorted((summary(RunFolder(runs / name)) for name in RunFolder.names_in(runs)), key=lambda run: -run.changed)


def summary(run: RunFolder) -> RunSummary:
    """One run; a damaged one does not hide the others."""
    size, changed = measured(run.root)
    try:
        run.check_format()
        planned = planned_iterations(run)
        k = iteration_in_progress(run, planned)
        incumbent, accuracy = standing(run)
        state = state_of(run, planned, changed)
    except (UserError, OSError) as error:
        why = " ".join(str(error).split())
        return RunSummary(run.name, str(run), "damaged", None, None, None, None, size, changed, why)
    return RunSummary(run.name, str(run), state, k, planned, incumbent, accuracy, size, changed)


def measured(folder: Path) -> tuple[int, float]:
    """Bytes of all files below a folder, each counted once, and when the last one changed."""
    sizes: dict[int, int] = {}
    changed, waiting = folder.stat().st_mtime, [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    found = entry.stat(follow_symlinks=False)
                    sizes[found.st_ino], changed = found.st_size, max(changed, found.st_mtime)
    return sum(sizes.values()), changed


def planned_iterations(run: RunFolder) -> int:
    """The setting `iterations`; the other settings are only checked if it does not stand there as the run wrote it."""
    found = re.search(rb"^iterations: (\d+)$", run.config.read_bytes(), re.MULTILINE)
    return int(found[1]) if found else settings_of(run).iterations


def standing(run: RunFolder) -> tuple[int | None, Interval | None]:
    """The incumbent's iteration and its accuracy on the test prompts, from the last rows of metrics.jsonl."""
    incumbent = None
    for row in last_rows(run.metrics):
        incumbent = row.get("incumbent") if incumbent is None else incumbent
        if incumbent is not None and row.get("iteration") == incumbent:
            test = as_record(row.get("test"), SetMetrics, run.metrics)
            return incumbent, test.preference_accuracy or test.sampled_accuracy
    return incumbent, None


ENDINGS: dict[str, State] = {
    "campaign_stopped": "ended",
    "waiting_for_people": "waiting for labels",
    "campaign_interrupted": "stopped",
}
"""By the last event of a run: its state."""


def state_of(run: RunFolder, planned: int, changed: float) -> State:
    """What the run is doing; one on another machine runs as long as its folder changes."""
    if run.promotion(planned).exists():
        return "complete"
    last = next((str(row["event"]) for row in last_rows(run.events) if "event" in row), "")
    if last in ENDINGS:
        return ENDINGS[last]
    writer = read_writer(run)
    if writer is None:
        return "not started"
    alive = time.time() - changed < STALLED_AFTER if writer.alive is None else writer.alive
    return "running" if alive else "stopped"


def day(seconds: float) -> str:
    """11-30 20:08 in this year, 2025-11-30 in another."""
    then = time.localtime(seconds)
    return time.strftime("%m-%d %H:%M" if then.tm_year == time.localtime().tm_year else "%Y-%m-%d", then)


def print_runs(found: Sequence[RunSummary], runs: Path, console: Console) -> None:
    """Print a table, and what is wrong with damaged runs."""
    if not found:
        console.print(f"There are no runs in {runs}/. Start one with: prefloop run quickstart", markup=False)
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for head in ("run", "state", "iter", "test, %", "disk", "last change"):
        numbers = head not in ("run", "state")
        table.add_column(
            head,
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=numbers,
            min_width=0 if numbers else 8,
        )
    between = " " if console.width >= WIDE else "\n"
    for run in found:
        progress = NONE if run.iteration is None else f"{run.iteration}/{run.planned}"
        cells = (
            run.name,
            run.state,
            progress,
            with_interval(run.accuracy, between),
            in_bytes(run.bytes),
            day(run.changed),
        )
        table.add_row(*map(visible, cells))
    console.print(table)
    for run in found:
        if run.problem:
            console.print(visible(f"{run.name}: {run.problem}"), markup=False)
