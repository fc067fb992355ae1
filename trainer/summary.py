"""The record of a finished round, which its candidate folder holds as JSON: counts, times, first and last metrics."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from trainer.errors import TrainerError
from trainer.files import read_json, write_json
from trainer.settings import FROZEN, Identity

SUMMARY = "train_summary.json"

StepMetrics = dict[str, Any]
"""One line of `steps.jsonl`; which metrics it holds depends on the losses."""


class WarmStartSummary(BaseModel):
    """The supervised phase before a round."""

    model_config = FROZEN

    weights_hash: str
    """Hash of its result, which is both start and reference of the round."""
    responses: int
    """Distinct responses trained on."""
    steps: int
    loss_first: float
    """Mean NLL per token in its first step."""
    loss_last: float


class MixSummary(BaseModel):
    """The supervised examples mixed into a round."""

    model_config = FROZEN

    examples: int
    dropped: dict[str, int]
    """Examples left out, by reason."""
    trained: int
    """Examples trained on, repetitions included."""


class RoundSummary(BaseModel):
    """A finished round in numbers."""

    model_config = FROZEN

    steps: int
    pairs: int
    """Pairs used, each counted once whatever the epochs."""
    dropped: dict[str, int]
    """Pairs left out, by reason."""
    layout: str
    probe_gap: float | None
    """Largest difference between tree and plain rows in the probe (nat per token); None if tree rows were refused."""
    sampler_gap: float | None
    """Mean difference between the sampler's and the trainer's log-probs (nat per token); None if not known."""
    precision: str
    encoded_tokens: int
    """Tokens that the model read, over all steps."""
    plain_tokens: int
    """Tokens that separate sequences for each pair would have cost."""
    first: StepMetrics
    last: StepMetrics
    """Metrics of the first and last step."""
    seconds: dict[str, float]
    """By part: load, plan, reference, compute, checkpoint, save (over all attempts whose work was kept)."""
    plan_digest: str
    notes: tuple[str, ...] = ()
    """What a reader should know: a fallback that was taken, a resume."""
    warm_start: WarmStartSummary | None = None
    mix: MixSummary | None = None


def write_summary(folder: Path, summary: RoundSummary, identity: Identity) -> None:
    """Write the record and the round's inputs into a candidate folder."""
    write_json(folder / SUMMARY, {"identity": identity} | summary.model_dump())


def read_summary(folder: Path, identity: Identity) -> RoundSummary | None:
    """The record of a finished candidate; None if there is none. Raises TrainerError if another round made it."""
    return read_record(folder / SUMMARY, RoundSummary, identity)


Record = TypeVar("Record", bound=BaseModel)


def read_record(path: Path, kind: type[Record], identity: Identity) -> Record | None:
    """The record in a finished folder, None without one. TrainerError if it is damaged or made from something else."""
    if not path.parent.exists():
        return None
    try:
        found: dict[str, Any] = read_json(path) if path.exists() else {"identity": {}}
        made_from = found.pop("identity")
        different = sorted(key for key in identity if made_from.get(key) != identity[key])
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, LookupError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if different:
        raise TrainerError(
            f"The folder {path.parent} already holds the result of another training, which differs in "
            f"{', '.join(different)}. Train into another folder, or remove it."
        )
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _damaged(path: Path, why: str) -> TrainerError:
    return TrainerError(
        f"The record {path} of a finished training is damaged ({why}). Remove the folder {path.parent} to train again."
    )


@dataclass(slots=True)
class Clock:
    """Seconds by part of the round."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
