"""Progress of a campaign, read from its run folder: a snapshot, the work in progress, and the time left."""

import os
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from loop.config.load import LoadedConfig
from loop.store.files import read_lines
from loop.store.run_folder import RunFolder
from loop.store.run_records import Event, Json, Numbers, SetMetrics, as_record
from loop.store.stage import STAGES, StageFolder

ALARMS = 3
"""Number of latest warnings shown."""

STALLED_AFTER = 300.0
"""Seconds without any change after which a run seems to stand still."""


@dataclass(frozen=True, slots=True)
class Work:
    """The work in progress; unknown numbers are None."""

    title: str
    unit: str
    done: int = 0
    total: int | None = None
    shards: tuple[int, int] | None = None
    """Number of finished shards, and of all."""
    per_second: float | None = None
    tokens_per_second: float | None = None
    note: str = ""
    """What the stage is waiting for, or the loss."""

    @property
    def seconds_left(self) -> float | None:
        """Time for the rest at this rate."""
        if not self.per_second or self.total is None:
            return None
        return max(0, self.total - self.done) / self.per_second


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know; `time` in seconds since 1970."""

    time: float
    text: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a campaign at one moment."""

    name: str
    planned: int
    iteration: int
    """The one in progress, or the last one."""
    attempt: int
    complete: bool
    stages: dict[str, str]
    """finished, started or waiting, in the order of the campaign."""
    scores: tuple[tuple[int, dict[str, float | None]], ...]
    """Per evaluated iteration its test accuracies, by name."""
    typical: dict[str, float]
    """Mean seconds of each stage over this run's finished iterations; empty before there is one."""
    alarms: tuple[Notice, ...]


@dataclass(frozen=True, slots=True)
class EvaluatedIteration:
    """What the live view takes from a row of metrics.jsonl, which is an IterationState."""

    iteration: int
    finished: bool
    seconds: dict[str, dict[str, float]]
    test: SetMetrics | None


def look(run: RunFolder, loaded: LoadedConfig) -> Snapshot:
    """The current state of the run."""
    planned = loaded.iterations
    k = iteration_in_progress(run, planned)
    rows = [as_record(row, EvaluatedIteration, run.metrics) for row in read_lines(run.metrics)]
    return Snapshot(
        name=run.name,
        planned=planned,
        iteration=k,
        attempt=run.attempts(k),
        complete=run.promotion(planned).exists() or stopped_by_rejection(run),
        stages=stages_now(run, k),
        scores=tuple((row.iteration, scores_on_test_set(row.test)) for row in rows if row.test is not None),
        typical=typical_seconds(rows),
        alarms=alarms_in(run.latest_events()),
    )


def stopped_by_rejection(run: RunFolder) -> bool:
    """Whether a rejected candidate has ended the campaign (`promote.on_reject: stop`)."""
    last = next(run.latest_events(), None)
    return last is not None and last.event == "campaign_stopped"


def iteration_in_progress(run: RunFolder, planned: int) -> int:
    """The first iteration without a decision; 0 while the base model has no evaluation."""
    if run.stage(0, "eval").manifest() is None:
        return 0
    return next((k for k in range(1, planned + 1) if not run.promotion(k).exists()), planned)


def stage_states(run: RunFolder, k: int) -> dict[str, str]:
    """Which stages are finished, started or waiting."""
    found = {}
    for stage in STAGES if k else ("eval",):
        folder = run.latest(k, stage)
        found[stage] = "waiting" if not folder.path.exists() else "started"
        found[stage] = "finished" if folder.manifest_path.exists() else found[stage]
    return found


def stages_now(run: RunFolder, k: int) -> dict[str, str]:
    """As `stage_states`; the stages in progress have started even if they have written nothing yet."""
    states, current = stage_states(run, k), stage_in_progress(run.latest_events())
    if current is not None and current.iteration == k:
        begun = {current.stage, *re.findall(r"\w+", current.title)}  # an online iteration goes through four in turns
        states |= {stage: "started" for stage, state in states.items() if stage in begun and state == "waiting"}
    return states


def scores_on_test_set(test: SetMetrics) -> Numbers:
    """The accuracies in the live view."""
    if test.preference_accuracy is not None:
        return {"preference": test.preference_accuracy.value}
    return {"sampled": test.sampled_accuracy.value, "greedy": test.greedy_accuracy.value}


def typical_seconds(states: Sequence[EvaluatedIteration]) -> dict[str, float]:
    """Mean wall time of each stage over the finished iterations; empty before there is one."""
    finished = [state.seconds for state in states if state.iteration and state.finished]
    if not finished:
        return {}
    return {
        stage: sum(seconds.get(stage, {}).get("wall", 0.0) for seconds in finished) / len(finished) for stage in STAGES
    }


def alarms_in(latest_first: Iterable[Event]) -> tuple[Notice, ...]:
    """The last warnings and lost workers, in their order."""
    found = (
        Notice(event.time, event.text or f"the {event.worker} worker was lost at {event.job}: {event.why}")
        for event in latest_first
        if event.event in ("warning", "worker_lost")
    )
    return tuple(islice(found, ALARMS))[::-1]


def seconds_left(snapshot: Snapshot, work: Work | None) -> float | None:
    """How long the campaign will still take, by the mean of its finished iterations; None before there is one. The
    stage in progress counts by its own rate where that is known."""
    if not snapshot.typical:
        return None
    if snapshot.complete:
        return 0.0
    waiting = [stage for stage, state in snapshot.stages.items() if state != "finished"]
    rest = sum(snapshot.typical[stage] for stage in waiting)
    if work is not None and work.seconds_left is not None and waiting:
        rest += work.seconds_left - snapshot.typical[waiting[0]]
    return max(0.0, rest) + (snapshot.planned - snapshot.iteration) * sum(snapshot.typical.values())


LAST_STEPS = 10
"""Number of latest steps that the rate of training is measured on."""


@dataclass(frozen=True, slots=True)
class Writer:
    """The process that holds the run's lock, or held it last."""

    pid: int
    host: str

    @property
    def alive(self) -> bool | None:
        """Whether it runs; None if it is on another machine and cannot be checked."""
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
    """The run's writer; None if it never had one."""
    text = run.lock.read_text(encoding="utf-8") if run.lock.exists() else ""
    match = re.fullmatch(r"pid (\d+) on (\S+)", text.strip())
    return Writer(int(match[1]), match[2]) if match else None


def last_sign(run: RunFolder) -> float:
    """When the run last changed, in seconds since 1970: events, logs, and the files of the stage in progress."""
    files = [run.events, *run.root.glob("logs/*")]
    if started := stage_in_progress(run.latest_events()):
        folder = run.root / started.folder
        files += [folder, *folder.glob("*"), StageFolder(folder, "", 0).running_steps]
    return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)


def stage_in_progress(latest_first: Iterable[Event]) -> Event | None:
    """The event that started the current stage; None between two stages."""
    found = current_stage(latest_first)
    return found[-1] if found else None


def current_stage(latest_first: Iterable[Event]) -> list[Event]:
    """The events of the current stage, of which the last one here started it; none between two stages."""
    found = []
    for event in latest_first:
        if event.event in ("stage_finished", "campaign_finished", "campaign_stopped", "campaign_interrupted"):
            break
        found.append(event)
        if event.event == "stage_started":
            return found
    return []


def work_in_progress(run: RunFolder) -> Work | None:
    """Progress of the current work."""
    events = current_stage(run.latest_events())
    if not events:
        return None
    started = events[-1]
    folder = StageFolder(run.root / started.folder, started.stage, started.iteration)
    if started.unit == "steps":
        planned = next((event.total for event in events if event.event == "stage_planned"), None)
        return trained(started, read_lines(folder.running_steps), planned)
    ready = next((event.time for event in events if event.event == "engine_ready"), started.time)
    return sampled(started, ready, folder.responses)


def sampled(started: Event, ready: float, shards: Sequence[Path]) -> Work:
    """Responses in whole shards; the rate is that of the shards written since the engine was ready."""
    rows = {path: pq.read_metadata(path) for path in shards}
    new = [path for path in shards if path.stat().st_mtime > ready]
    seconds = max((path.stat().st_mtime - ready for path in new), default=0.0)
    return Work(
        title=started.title,
        unit=started.unit,
        done=sum(found.num_rows for found in rows.values()),
        total=started.total,
        per_second=sum(rows[path].num_rows for path in new) / seconds if seconds else None,
        tokens_per_second=sum(tokens_in(rows[path]) for path in new) / seconds if seconds else None,
    )


def tokens_in(metadata: pq.FileMetaData) -> int:
    """How many tokens a shard of responses holds, without reading them."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(column.num_values for column in columns if column.path_in_schema.split(".")[0] == "token_ids")


def trained(started: Event, steps: Sequence[Json], total: int | None) -> Work:
    """Steps of the round; a step repeated after a resume counts once."""
    last = steps[-LAST_STEPS:]
    seconds = sum(step["seconds"] for step in last)
    return Work(
        title=started.title,
        unit=started.unit,
        done=len(steps),
        total=total,
        per_second=len(last) / seconds if last else None,
        tokens_per_second=sum(step["tokens"] for step in last) / seconds if last else None,
        note=f"loss {last[-1]['loss']:.3f}" if last else "preparing",
    )
