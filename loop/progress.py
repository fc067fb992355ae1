"""Room loop, how far a campaign is: a run folder comes in, a snapshot goes out; what is being worked on, and how long
the rest will take. It only reads, so it works beside the campaign and far from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loop.config_data import PREFERENCE
from loop.config_load import LoadedConfig
from loop.files import read_lines
from loop.runfolder import STAGES, RunFolder

ALARMS = 3
"""So many of the last warnings are shown."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is being worked on; unknown numbers are None."""

    title: str
    unit: str
    done: int = 0
    total: int | None = None
    shards: tuple[int, int] | None = None
    """Finished ones, and all."""
    per_second: float | None = None
    tokens_per_second: float | None = None
    note: str = ""
    """What is being waited for, or the loss."""

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this rate."""
        if not self.per_second or self.total is None:
            return None
        return max(0, self.total - self.done) / self.per_second


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a person should know of; `time` in seconds since 1970."""

    time: float
    text: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a campaign stands."""

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
    alarms: tuple[Alarm, ...]


def look(run: RunFolder, loaded: LoadedConfig) -> Snapshot:
    """Where the run stands now."""
    planned = loaded.iterations
    k = iteration_in_progress(run, planned)
    rows, events = read_lines(run.metrics), run.read_events()
    return Snapshot(
        name=run.name,
        planned=planned,
        iteration=k,
        attempt=run.attempts(k),
        complete=run.promotion(planned).exists() or stopped_by_rejection(events),
        stages=stage_states(run, k),
        scores=tuple((row["iteration"], test_scores(row["test"])) for row in rows),
        typical=typical_seconds(rows),
        alarms=alarms_in(events),
    )


def stopped_by_rejection(events: Sequence[dict[str, Any]]) -> bool:
    """Whether a rejected candidate has ended the campaign (`promote.on_reject: stop`)."""
    return bool(events) and events[-1]["event"] == "campaign_stopped"


def iteration_in_progress(run: RunFolder, planned: int) -> int:
    """The first iteration without a decision; 0 while the base model has no evaluation."""
    if run.stage(0, "eval").manifest() is None:
        return 0
    return next((k for k in range(1, planned + 1) if not run.promotion(k).exists()), planned)


def stage_states(run: RunFolder, k: int) -> dict[str, str]:
    """What of an iteration is finished, started or waiting."""
    found = {}
    for stage in STAGES if k else ("eval",):
        folder = run.latest(k, stage)
        found[stage] = "waiting" if not folder.path.exists() else "started"
        found[stage] = "finished" if folder.manifest_path.exists() else found[stage]
    return found


def test_scores(test: dict[str, Any]) -> dict[str, float | None]:
    """The accuracies that a glance needs."""
    names = ("preference",) if PREFERENCE in test else ("sampled", "greedy")
    return {short: test[f"{short}_accuracy"]["value"] for short in names}


def typical_seconds(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean wall time of each stage over the finished iterations among the rows of metrics.jsonl."""
    finished = [row["seconds"] for row in rows if row["iteration"] and row["finished"]]
    if not finished:
        return {}
    return {stage: sum(seconds[stage]["wall"] for seconds in finished) / len(finished) for stage in STAGES}


def alarms_in(events: Sequence[dict[str, Any]]) -> tuple[Alarm, ...]:
    """The last warnings and lost workers."""
    texts = {
        "warning": lambda event: event["text"],
        "worker_lost": lambda event: f"the {event['worker']} worker was lost at {event['job']}: {event['why']}",
    }
    found = [Alarm(event["time"], texts[event["event"]](event)) for event in events if event["event"] in texts]
    return tuple(found[-ALARMS:])


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
