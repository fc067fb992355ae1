"""Typed records of what a run folder's JSON files hold, and the one reader that checks their shape. Their field names
are the keys in the files and in the `--json` output."""

from collections.abc import Hashable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from loop.store.files import read_json
from loop.store.tables import damaged

T = TypeVar("T")
Json = dict[str, Any]
"""A JSON object whose keys the program does not read."""
Counts = dict[str, dict[str, list[int | float]]]
"""metric -> prompt id -> [successes, trials]"""
Numbers = dict[str, int | float | None]
"""Measurements by name; None where it was not possible."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A metric with its confidence interval over `n` trials; all three are None where there was no trial."""

    value: float | None
    low: float | None
    high: float | None
    n: int


NO_TRIALS = Interval(None, None, None, 0)


@dataclass(frozen=True, slots=True)
class Difference:
    """Second minus first on the same `n` prompts; everything is None where one side has no trial."""

    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Second over first on the same `n` prompts; None where the first has no success, or a bound cannot be known."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Gain:
    """How a metric changed from one model to another, on the same prompts."""

    difference: Difference
    ratio: Ratio


@dataclass(frozen=True, slots=True)
class SetMetrics:
    """The evaluation of a model on one prompt set. Shares lie in 0 to 1; None where nothing could be measured."""

    sampled_accuracy: Interval = NO_TRIALS
    greedy_accuracy: Interval = NO_TRIALS
    well_formed_share: Interval = NO_TRIALS
    """Share of sampled responses in the form that the judge asks for."""
    accuracy_among_well_formed: Interval = NO_TRIALS
    k: int = 0
    """Sampled responses per prompt that `pass_at_k` and `maj_at_k` use."""
    pass_at_k: float | None = None
    maj_at_k: float | None = None
    mean_length: float | None = None
    """Tokens per sampled response, without its thought."""
    truncated_share: float | None = None
    abstained_share: float | None = None
    error_share: float | None = None
    unparsable_share: float | None = None
    prompts: int = 0
    preference_accuracy: Interval | None = None
    """Share of held-out pairs that the model prefers as the data does; None for a judged evaluation, like the fields
    below."""
    mean_margin: float | None = None
    """How much higher the chosen answer's implicit reward is, in nats."""
    log_ratio: float | None = None
    """Mean of log policy(chosen) - log policy(rejected), in nats."""
    likelihood_accuracy: float | None = None
    """Share of pairs whose chosen answer is the more likely one under the policy alone."""
    pairs: int | None = None
    pairs_too_long: int | None = None
    counts: Counts = field(default_factory=dict)

    def metric(self, name: str) -> Interval | None:
        """A metric with an interval, by name; None if this evaluation does not have it."""
        found: Interval | None = getattr(self, name)
        return found

    def as_json(self, *, counts: bool = True) -> Json:
        """Plain values; a judged evaluation has no keys about held-out pairs."""
        left_out = set() if self.preference_accuracy is not None else OF_PREFERENCES
        left_out = left_out if counts else left_out | {"counts"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


OF_PREFERENCES = {"preference_accuracy", "mean_margin", "log_ratio", "likelihood_accuracy", "pairs", "pairs_too_long"}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's results on the two held-out prompt sets (metrics.json of the eval stage)."""

    gate: SetMetrics
    test: SetMetrics

    def as_json(self) -> Json:
        """Plain values, with the counts per prompt."""
        return {"gate": self.gate.as_json(), "test": self.test.as_json()}


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of the gate: the measured value (None: unavailable), the allowed value, and the outcome."""

    name: str
    value: float | None
    limit: float
    within: bool


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model in a decision; `path` is relative to the run folder if the model lies in it."""

    path: str
    hash: str
    iteration: int
    what: str = ""
    """Description; left out of the file if empty."""


Outcome = Literal["better", "not_worse", "worse", "too_few_prompts"]
"""What an interval says of a candidate: its whole interval is above 0, it is above minus the margin, it is below 0, or
none of these."""
OUTCOMES: dict[Outcome, str] = {
    "better": "better",
    "not_worse": "not worse",
    "worse": "worse",
    "too_few_prompts": "too few prompts to tell",
}
"""Their wording."""


@dataclass(frozen=True, slots=True)
class BestSoFar:
    """A candidate against the best promoted model so far."""

    iteration: int
    """Of that model; 0 is the base model."""
    gain: Difference


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the gate prompts: the sampled responses per prompt up to then, and what they showed."""

    samples: int
    gain: Difference
    confidence: float


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt at an iteration's round, and the decision on its candidate."""

    changes: Json
    """Training settings that differ from the configured ones, by key."""
    promoted: bool
    reason: str
    gain: Difference
    """Candidate minus incumbent on the gate prompts."""
    limits: tuple[Limit, ...]
    measured: Numbers
    """What the limits needed beyond the evaluation, e.g. `kl` in nats."""
    candidate: str
    """Hash of the candidate's weights."""
    outcome: Outcome | None = None
    """None in runs of before it was recorded, like the two below."""
    confidence: float | None = None
    """Of the interval that decided."""
    best: BestSoFar | None = None
    """None if the incumbent is the best."""
    looks: tuple[Look, ...] = ()
    """With `promote.more_samples`, every look at the gate prompts; the last one decided."""


@dataclass(frozen=True, slots=True)
class PromotionRecord:
    """promotion.json: the decision that ends an iteration; the next one reads nothing else."""

    iteration: int
    promoted: bool
    reason: str
    gain: Difference
    limits: tuple[Limit, ...]
    attempts: tuple[AttemptRecord, ...]
    policy: ModelRecord
    """The incumbent from now on."""
    candidate: ModelRecord
    incumbent: ModelRecord
    """The incumbent before the decision."""
    start: ModelRecord
    reference: ModelRecord
    inputs: Json
    outcome: Outcome | None = None
    """Of the last attempt."""


@dataclass(frozen=True, slots=True)
class BaseRecord:
    """promotion.json of iteration 0: the base model, as the config names it and its folder."""

    base: str
    policy: ModelRecord
    promoted: bool = True
    threads: int | None = None
    """CPU threads of the workers where the run started; a resume takes as many."""


@dataclass(frozen=True, slots=True)
class ReferenceRecord:
    """reference.json: what `reference: path` names, and that model."""

    named: str
    model: ModelRecord


@dataclass(frozen=True, slots=True)
class Event:
    """A line of events.jsonl; which fields beyond the first two are set depends on the event. docs/campaign.md names
    the events; keys that nothing here reads are left out."""

    time: float
    """Seconds since 1970."""
    event: str
    stage: str = ""
    iteration: int = 0
    folder: str = ""
    """Of `stage_started`: the stage's folder, relative to the run's."""
    title: str = ""
    unit: str = ""
    total: int | None = None
    text: str = ""
    """Of a warning or an alarm."""
    worker: str = ""
    job: str = ""
    why: str = ""


def plain(record: Any) -> Json:
    """A record of models as plain values, without empty descriptions."""
    return asdict(record, dict_factory=lambda items: {name: value for name, value in items if name != "what" or value})


def read_record(path: Path, kind: type[T]) -> T:
    """Read a JSON file as a record. UserError, naming the file and the field, if it does not have that shape."""
    return as_record(read_json(path), kind, path)


def as_record(value: object, kind: type[T], where: Path | str) -> T:
    """Turn plain values, read from `where`, into a record; unknown keys are ignored. UserError for another shape."""
    try:
        found: T = _adapter(cast("Hashable", kind)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(map(str, first["loc"])) or "the file"
        raise damaged(where, f"{field_name}: {first['msg']}") from error
    return found


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast("Any", kind))
