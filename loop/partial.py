"""Room loop, the stage in progress seen from outside: the events of a run and the files of an unfinished stage come in,
how much of it is done goes out. Shards count once they are whole, steps once their line is.
"""

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from loop.files import read_lines
from loop.progress import Work
from loop.runfolder import RunFolder, StageFolder

LAST_STEPS = 10
"""The rate of training is that of so many last steps."""


@dataclass(frozen=True, slots=True)
class Writer:
    """The process that holds the run's lock, or was the last to."""

    pid: int
    host: str

    @property
    def alive(self) -> bool | None:
        """Whether it runs; None if it is on another machine, where nobody can look."""
        if self.host != socket.gethostname():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's process
            return True
        return True


def read_writer(run: RunFolder) -> Writer | None:
    """Who works on the run; None if nobody ever did."""
    said = run.lock.read_text(encoding="utf-8") if run.lock.exists() else ""
    match = re.fullmatch(r"pid (\d+) on (\S+)", said.strip())
    return Writer(int(match[1]), match[2]) if match else None


def last_sign(run: RunFolder) -> float:
    """When the run last changed, in seconds since 1970: events, logs, and the files of the stage in progress."""
    files = [run.events, *run.root.glob("logs/*")]
    if started := stage_in_progress(run.read_events()):
        folder = run.root / started["folder"]
        files += [folder, *folder.glob("*"), StageFolder(folder, "", 0).running_steps]
    return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)


def stage_in_progress(events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The event that began what is worked on; None between two stages."""
    for event in reversed(events):
        if event["event"] == "stage_started":
            return event
        if event["event"] in ("stage_finished", "campaign_finished", "campaign_stopped"):
            return None
    return None


def work_in_progress(run: RunFolder) -> Work | None:
    """How much is done of what is worked on."""
    events = run.read_events()
    started = stage_in_progress(events)
    if started is None:
        return None
    folder = StageFolder(run.root / started["folder"], started["stage"], started["iteration"])
    if started["unit"] == "steps":
        planned = [event["total"] for event in events if event["event"] == "stage_planned"]
        total = planned[-1] if events.index(started) < _last(events, "stage_planned") else None
        return trained(started, read_lines(folder.running_steps), total)
    return sampled(started, folder.responses)


def _last(events: Sequence[dict[str, Any]], what: str) -> int:
    return max((place for place, event in enumerate(events) if event["event"] == what), default=-1)


def sampled(started: dict[str, Any], shards: Sequence[Path]) -> Work:
    """Responses in whole shards; the rate is that of the shards written since the stage began."""
    rows = {path: pq.read_metadata(path) for path in shards}
    new = [path for path in shards if path.stat().st_mtime > started["time"]]
    seconds = max((path.stat().st_mtime - started["time"] for path in new), default=0.0)
    return Work(
        title=started["title"],
        unit=started["unit"],
        done=sum(found.num_rows for found in rows.values()),
        total=started["total"],
        per_second=sum(rows[path].num_rows for path in new) / seconds if seconds else None,
        tokens_per_second=sum(tokens_in(rows[path]) for path in new) / seconds if seconds else None,
    )


def tokens_in(metadata: pq.FileMetaData) -> int:
    """How many tokens a shard of responses holds, without reading them."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(column.num_values for column in columns if column.path_in_schema.split(".")[0] == "token_ids")


def trained(started: dict[str, Any], steps: Sequence[dict[str, Any]], total: int | None) -> Work:
    """Steps of the round; one that was taken back by a resume is there once."""
    last = steps[-LAST_STEPS:]
    seconds = sum(step["seconds"] for step in last)
    return Work(
        title=started["title"],
        unit=started["unit"],
        done=len(steps),
        total=total,
        per_second=len(last) / seconds if last else None,
        tokens_per_second=sum(step["tokens"] for step in last) / seconds if last else None,
        note=f"loss {last[-1]['loss']:.3f}" if last else "preparing",
    )
