"""The record of a finished round (counts, times, the step log), kept as JSON in the candidate folder and returned to
the caller."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError
from trainer.files import read_json, write_json

SUMMARY = "train_summary.json"


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """A finished round in numbers."""

    steps: int
    pairs: int
    """Pairs used, each counted once whatever the epochs."""
    dropped: dict[str, int]
    """Pairs left out, by reason."""
    layout: str
    probe_gap: float | None
    """Largest difference between tree and plain rows in the probe (nat per token); None if it was not asked."""
    sampler_gap: float | None
    """Mean difference between the sampler's and the trainer's log-probs (nat per token); None if not known."""
    precision: str
    encoded_tokens: int
    """Tokens that training read, over all steps."""
    plain_tokens: int
    """Tokens that separate sequences for each pair would have cost."""
    first: dict[str, Any]
    last: dict[str, Any]
    """Metrics of the first and last step."""
    seconds: dict[str, float]
    """By part: load, plan, reference, compute, checkpoint, save (over all attempts whose work was kept)."""
    plan_digest: str
    notes: tuple[str, ...] = ()
    """What a reader should know: a fallback that was taken, a resume."""
    warm_start: dict[str, Any] | None = None
    """What the supervised phase came to, and the hash of its result, which was start and reference of the round; None
    without one."""
    mix: dict[str, Any] | None = None
    """Supervised examples that were mixed in: how many there are, dropped ones, how often one was trained on; None
    without any."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"notes": list(self.notes)}


def write_summary(folder: Path, summary: RoundSummary, identity: dict[str, Any]) -> None:
    """Write the record and the round's inputs into a candidate folder."""
    write_json(folder / SUMMARY, {"identity": identity} | summary.as_dict())


def read_summary(folder: Path, identity: dict[str, Any]) -> RoundSummary | None:
    """The record of a finished candidate; None if there is none. Raises TrainerError if another round made it."""
    found = read_record(folder, SUMMARY, identity)
    if found is None:
        return None
    values = {field.name: found[field.name] for field in fields(RoundSummary) if field.name in found}
    return RoundSummary(**values | {"notes": tuple(found["notes"])})


def read_record(folder: Path, name: str, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON record `name` in a finished folder; None if there is no folder. Raises TrainerError if the folder was
    made from something else."""
    if not folder.exists():
        return None
    found: dict[str, Any] = read_json(folder / name) if (folder / name).exists() else {"identity": {}}
    different = sorted(key for key in identity if found["identity"].get(key) != identity[key])
    if different:
        raise TrainerError(
            f"The folder {folder} already holds something else: as the result of this round it differs in "
            f"{', '.join(different)}. Train into another folder, or remove it."
        )
    return found


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
