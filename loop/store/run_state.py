"""Typed state of a run: what `prefloop status --json` prints and metrics.jsonl keeps, by iteration."""

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeVar

from judges.context import Usage
from loop.store.files import to_json
from loop.store.lineage import Parent
from loop.store.run_records import (
    AttemptRecord,
    Difference,
    Gain,
    Json,
    Limit,
    Numbers,
    Outcome,
    SetMetrics,
    as_record,
)

T = TypeVar("T")
SCHEMA = 1
"""Version of the JSON that commands print; raised when a key is renamed, removed or changes its meaning."""


@dataclass(frozen=True, slots=True)
class SampleCounts:
    """The sample stage's counts."""

    prompts: int = 0
    prompts_too_long: int = 0
    responses: int = 0
    tokens: int = 0
    truncated: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    """Prompts by source of a mixture; empty for a single source."""


@dataclass(frozen=True, slots=True)
class JudgeCounts:
    """The judge stage's counts: verdicts by kind, and scores without an extracted answer."""

    score: int = 0
    abstain: int = 0
    error: int = 0
    unparsable: int = 0
    well_formed: int = 0


@dataclass(frozen=True, slots=True)
class PairCounts:
    """The pair stage's counts."""

    pairs: int
    """Pairs, singles or groups, including the extra ones."""
    kind: Literal["pairs", "singles", "groups"] = "pairs"
    prompts: dict[str, int] = field(default_factory=dict)
    """By outcome; `paired` gave something to train on."""
    responses: dict[str, int] = field(default_factory=dict)
    """By reason (loop/pairing/reasons.py)."""
    signal: Numbers = field(default_factory=dict)
    replayed: dict[int, int] = field(default_factory=dict)
    """Extra pairs by the iteration that made them."""
    offline: int | None = None
    """Extra pairs from the offline set; None without one."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The checkpoint that became the candidate, and what decided."""

    checkpoint: str
    metric: str
    values: Numbers
    """The metric on the gate prompts, by checkpoint."""


@dataclass(frozen=True, slots=True)
class TrainCounts:
    """The train stage's counts; the manifest also holds the round's summary."""

    weights_hash: str
    steps: int
    displacement: float | None = None
    sampler_gap: float | None = None
    encoded_tokens: int | None = None
    plain_tokens: int | None = None
    selected: Selection | None = None
    """With `train.select: best`."""

    @property
    def checkpoints(self) -> int:
        """How many checkpoints the candidate was chosen from."""
        return 1 if self.selected is None else len(self.selected.values)


@dataclass(frozen=True, slots=True)
class ReferenceCounts:
    """The reference stage's counts."""

    weights_hash: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """A problem with an iteration."""

    name: str
    stage: Literal["pair", "train"]
    """The stage after which it is raised."""
    value: float
    threshold: float
    text: str
    """Description and advice."""


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """An iteration's wall time in seconds, by purpose."""

    wall: float
    generate: float
    judge_after_sampling: float
    """Judging that did not overlap with sampling."""
    compute: float
    """Training steps, reference log-probs and warm start."""
    overhead: float
    overhead_share: float


@dataclass(frozen=True)
class IterationState:
    """One iteration (0: the base model) so far."""

    iteration: int
    finished: bool
    stages: dict[str, str]
    """finished, started or waiting, by stage in the order of the campaign."""
    promoted: bool | None
    """None until the decision; so are the five below."""
    outcome: Outcome | None
    reason: str | None
    gain: Difference | None
    limits: tuple[Limit, ...]
    attempts: tuple[AttemptRecord, ...]
    attempts_begun: int
    incumbent: int | None
    """Iteration of the model that is the incumbent after this iteration."""
    counts: dict[str, Json]
    """Counts in the manifest, by finished stage."""
    signal: Numbers
    """Training-signal metrics (docs/signal.md); empty for the base model."""
    seconds: dict[str, dict[str, float]]
    """By finished stage, seconds by part, summed over all attempts."""
    time: TimeSplit
    gate: SetMetrics | None
    """None until the evaluation, like `test`."""
    test: SetMetrics | None
    alarms: tuple[Alarm, ...] = ()

    @cached_property
    def sampled(self) -> SampleCounts | None:
        """Counts of the sample stage; None until it is finished, like those below."""
        return self._counted("sample", SampleCounts)

    @cached_property
    def judged(self) -> JudgeCounts | None:
        """Counts of the judge stage."""
        return self._counted("judge", JudgeCounts)

    @cached_property
    def paired(self) -> PairCounts | None:
        """Counts of the pair stage."""
        return self._counted("pair", PairCounts)

    @cached_property
    def trained(self) -> TrainCounts | None:
        """Counts of the train stage, of the last attempt."""
        return self._counted("train", TrainCounts)

    @cached_property
    def evaluated(self) -> dict[str, SampleCounts]:
        """Counts of the eval stage, by prompt set; empty until it is finished."""
        where = f"counts of stage eval, iteration {self.iteration}"
        return {name: as_record(one, SampleCounts, where) for name, one in self.counts.get("eval", {}).items()}

    @cached_property
    def row(self) -> bytes:
        """Its line of metrics.jsonl."""
        return to_json(self.as_json()).replace(b"\n", b"").rstrip() + b"\n"

    def _counted(self, stage: str, kind: type[T]) -> T | None:
        found = self.counts.get(stage)
        where = f"counts of stage {stage}, iteration {self.iteration}"
        return None if found is None else as_record(found, kind, where)

    def as_json(self) -> Json:
        """Plain values, without the counts per prompt."""
        sets = {"gate": self.gate, "test": self.test}
        shown = {name: None if one is None else one.as_json(counts=False) for name, one in sets.items()}
        return asdict(replace(self, gate=None, test=None)) | shown


@dataclass(frozen=True, slots=True)
class RunState:
    """A run so far."""

    run: str
    path: str
    parent: Parent | None
    """The origin of a fork."""
    planned_iterations: int
    complete: bool
    incumbent: int
    """Iteration of the current incumbent; 0 is the base model."""
    confidence: float
    """Of every interval."""
    judge_spent: Usage
    """Usage of paid judges, with failed calls."""
    iterations: tuple[IterationState, ...]
    """Beginning with the base model."""
    gains: dict[str, Gain] | None = None
    """By test metric, incumbent against base model; None before a promotion."""

    def state_of(self, iteration: int) -> IterationState:
        """The state of one iteration, which must be there."""
        return next(it for it in self.iterations if it.iteration == iteration)

    def as_json(self) -> Json:
        """Plain values."""
        parent = None if self.parent is None else self.parent.as_json()
        gains = {} if self.gains is None else {"gains": {name: asdict(gain) for name, gain in self.gains.items()}}
        iterations = [one.as_json() for one in self.iterations]
        plain = asdict(replace(self, parent=None, iterations=(), gains=None))
        del plain["gains"]
        return {"schema": SCHEMA} | plain | {"parent": parent, "iterations": iterations} | gains
