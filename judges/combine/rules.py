"""The rules of "combine". Pure. A part that abstains or fails never becomes a number; a fallback may replace it."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from judges.combine.scales import Scale
from judges.types import Verdict


class Part(BaseModel):
    """One judge of a combination."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    judge: str
    """The judge's name, as in a config: built-in, plug-in, `package.module:Class` or `path/to/file.py:Class`."""

    args: dict[str, Any] = Field(default={})
    """The judge's arguments."""

    name: str = ""
    """Name of its scores in the verdict's `parts`; empty: the judge's name."""

    weight: float | None = Field(default=None, allow_inf_nan=False)
    """Factor of its score, or its number of votes; default 1, or 0 for a shadow."""

    normalise: Scale = "none"
    """How to scale its scores within a prompt: `none`, `standardise` (mean 0, deviation 1), `min-max` or `rank` (both 0
    to 1)."""

    threshold: float | None = Field(default=None, allow_inf_nan=False)
    """With `how: gates`, the minimum score (before `normalise`) of a response that passes."""

    shadow: bool = False
    """Only record its score: it never counts, and its failures are ignored."""

    @property
    def label(self) -> str:
        """Its name in `parts` and in messages."""
        return self.name or self.judge

    @property
    def factor(self) -> float:
        """Its weight with the default filled in."""
        return self.weight if self.weight is not None else float(not self.shadow)


class LengthPenalty(BaseModel):
    """Score penalty for long answers; a thought counts only if it is not closed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    per_unit: float = Field(gt=0, allow_inf_nan=False)
    """Penalty for each unit over `free`."""

    free: int = Field(default=0, ge=0)
    """Units without a penalty."""

    unit: Literal["words", "characters"] = "words"
    """Unit of length."""

    def of(self, text: str) -> float:
        """The penalty of a text, 0 or more."""
        length = len(text.split()) if self.unit == "words" else len(text)
        return self.per_unit * max(0, length - self.free)


class PartVerdict(NamedTuple):
    """One part's verdict on a response, and its score on the part's scale."""

    part: Part
    verdict: Verdict
    scaled: float | None


def check_part(part: Part, how: str) -> None:
    """ValueError if a setting of the part would have no effect."""
    part_name = f"the part {part.label!r}"
    if part.shadow and (part.factor or part.threshold is not None):
        raise ValueError(f"{part_name} is a shadow, which has neither weight nor threshold; remove them")
    if part.threshold is not None and how != "gates":
        raise ValueError(f"{part_name} has a threshold, which only how: gates uses")
    if not part.shadow and part.factor == 0 and part.threshold is None:
        raise ValueError(f"{part_name} has weight 0: to only record its score, set shadow: true instead")
    if how == "fallback" and not part.shadow and (part.weight is not None or part.normalise != "none"):
        raise ValueError(f"{part_name}: how: fallback uses a score as it is; remove weight and normalise")
    if how == "majority" and (part.normalise != "none" or part.factor < 0):
        raise ValueError(f"{part_name}: how: majority counts votes; remove normalise, and use no weight below 0")


def parts_of(part_verdicts: Sequence[PartVerdict]) -> dict[str, float]:
    """Every part's score, raw and scaled, and the score's own parts."""
    parts: dict[str, float] = {}
    for part, verdict, scaled in part_verdicts:
        parts |= {f"{part.label}.{name}": value for name, value in verdict.parts.items()}
        if verdict.score is not None:
            parts[part.label] = verdict.score
        if part.normalise != "none" and scaled is not None:
            parts[f"{part.label}.normalised"] = scaled
    return parts


def failure_of(counting: Sequence[PartVerdict]) -> Verdict | None:
    """The first error, or else the first abstain, labelled with its part."""
    for kind in ("error", "abstain"):
        for part, verdict, _ in counting:
            if verdict.kind == kind:
                return Verdict(verdict.kind, None, None, f"{part.label}: {verdict.why}", verdict.well_formed)
    return None


def _described(score: float, counting: Sequence[PartVerdict], why: str = "") -> Verdict:
    """A score with the parts' first answer, first `well_formed` and reasons; an error if it is not finite."""
    extracted = next((v.extracted for _, v, _ in counting if v.extracted is not None), None)
    formed = next((v.well_formed for _, v, _ in counting if v.well_formed is not None), None)
    reasons = [f"{part.label}: {verdict.why}" for part, verdict, _ in counting if verdict.why]
    return scored(score, extracted, "; ".join([*filter(None, [why]), *reasons])[:400], formed)


def scored(score: float, extracted: str | None, why: str, well_formed: bool | None) -> Verdict:
    """A score verdict; an error if the score is not finite."""
    if math.isfinite(score):
        return Verdict("score", score, extracted, why, well_formed)
    return Verdict("error", None, extracted, f"the combined score is not finite; {why}", well_formed)


def _sum(counting: Sequence[PartVerdict], failed: float) -> Verdict:
    return _described(sum(one.part.factor * (one.scaled or 0.0) for one in counting), counting)


def _gates(counting: Sequence[PartVerdict], failed: float) -> Verdict:
    for part, verdict, _ in counting:
        score = verdict.score
        if part.threshold is not None and score is not None and score < part.threshold:
            return _described(failed, counting, f"stopped at {part.label}: {score:g} < {part.threshold:g}")
    return _sum(counting, failed)


def _majority(counting: Sequence[PartVerdict], failed: float) -> Verdict:
    votes = {0.0: 0.0, 1.0: 0.0}
    for part, verdict, _ in counting:
        score = verdict.score
        if score not in (0.0, 1.0):
            return Verdict.error(f"{part.label} gave {score:g}, but a majority counts only 0 and 1")
        votes[score] += part.factor
    if votes[0.0] == votes[1.0]:
        return Verdict.abstain(f"a tie of {votes[1.0]:g} to {votes[0.0]:g}")
    return _described(float(votes[1.0] > votes[0.0]), counting, f"{votes[1.0]:g} to {votes[0.0]:g}")


def _fallback(counting: Sequence[PartVerdict], failed: float) -> Verdict:
    for one in counting:
        if one.verdict.score is not None:
            return _described(one.verdict.score, [one])
    failure = failure_of(counting)
    assert failure is not None  # a counting part has a score, abstains or fails
    return failure


RULES: dict[str, Callable[[Sequence[PartVerdict], float], Verdict]] = {
    "sum": _sum,
    "gates": _gates,
    "majority": _majority,
    "fallback": _fallback,
}
