"""Room judges, the rules of "combine": what each part said of one response comes in, one verdict goes out (pure).

A part that abstains or fails makes the whole abstain or fail, unless a fallback covers it: no number is made out of a
failure.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from judges.contract import Verdict
from judges.scales import Scale


class Part(BaseModel):
    """One judge of a combination."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    judge: str
    """Its name, as in a config: built-in, plug-in, `package.module:Class` or `path/to/file.py:Class`."""

    args: dict[str, Any] = Field(default={})
    """Its arguments."""

    name: str = ""
    """What its scores are called in the verdict's `parts`; empty: the judge's name."""

    weight: float | None = Field(default=None, allow_inf_nan=False)
    """What its score is multiplied with, or how many votes it has; none: 1, and 0 for a shadow."""

    normalise: Scale = "none"
    """Its scale in a prompt's group: as it is, `standardise` (mean 0, deviation 1), `min-max` or `rank` (0 to 1)."""

    threshold: float | None = Field(default=None, allow_inf_nan=False)
    """With `how: gates`, the least score (before `normalise`) that a response must have."""

    shadow: bool = False
    """Only watch: its score is kept and never counts, and its failures do no harm."""

    @property
    def label(self) -> str:
        """Its name in `parts` and in messages."""
        return self.name or self.judge

    @property
    def factor(self) -> float:
        """Its weight with the default filled in."""
        return self.weight if self.weight is not None else float(not self.shadow)


class LengthPenalty(BaseModel):
    """What a long response loses of its score."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    per_unit: float = Field(gt=0, allow_inf_nan=False)
    """Lost for each unit over `free`."""

    free: int = Field(default=0, ge=0)
    """So many units cost nothing."""

    unit: Literal["words", "characters"] = "words"
    """What is counted."""

    def of(self, text: str) -> float:
        """The loss of a text, 0 or more."""
        length = len(text.split()) if self.unit == "words" else len(text)
        return self.per_unit * max(0, length - self.free)


class Heard(NamedTuple):
    """What one part said of a response; `verdict` is None if it was not asked or, as a shadow, failed."""

    part: Part
    verdict: Verdict | None
    scaled: float | None


def check_part(part: Part, how: str) -> None:
    """ValueError if a setting of the part would have no effect."""
    place = f"the part {part.label!r}"
    if part.shadow and (part.factor or part.threshold is not None):
        raise ValueError(f"{place} is a shadow, which has neither weight nor threshold; leave them out")
    if part.threshold is not None and how != "gates":
        raise ValueError(f"{place} has a threshold, which only how: gates reads")
    if not part.shadow and part.factor == 0 and part.threshold is None:
        raise ValueError(f"{place} has the weight 0: to only watch it, set shadow: true instead")
    if how == "fallback" and not part.shadow and (part.weight is not None or part.normalise != "none"):
        raise ValueError(f"{place}: how: fallback takes a score as it is; leave out weight and normalise")
    if how == "majority" and (part.normalise != "none" or part.factor < 0):
        raise ValueError(f"{place}: how: majority counts votes; leave out normalise, and give no weight below 0")


def parts_of(heard: Sequence[Heard]) -> dict[str, float]:
    """Every score that was heard, as it was given and as it was scaled, and what it was made of."""
    parts: dict[str, float] = {}
    for part, verdict, scaled in heard:
        if verdict is not None:
            parts |= {f"{part.label}.{name}": value for name, value in verdict.parts.items()}
        if verdict is not None and verdict.score is not None:
            parts[part.label] = verdict.score
        if part.normalise != "none" and scaled is not None:
            parts[f"{part.label}.normalised"] = scaled
    return parts


def failure_of(counting: Sequence[Heard]) -> Verdict | None:
    """The first error, or else the first abstain, and who said it."""
    for kind in ("error", "abstain"):
        for part, verdict, _ in counting:
            if verdict is not None and verdict.kind == kind:
                return Verdict(verdict.kind, None, None, f"{part.label}: {verdict.why}", verdict.well_formed)
    return None


def _described(score: float, counting: Sequence[Heard], why: str = "") -> Verdict:
    """A score with the first answer, the first word on the form, and the reasons of the parts; error if not finite."""
    verdicts = [one.verdict for one in counting if one.verdict is not None]
    extracted = next((v.extracted for v in verdicts if v.extracted is not None), None)
    formed = next((v.well_formed for v in verdicts if v.well_formed is not None), None)
    reasons = [
        f"{one.part.label}: {one.verdict.why}" for one in counting if one.verdict is not None and one.verdict.why
    ]
    return _finite(score, extracted, "; ".join([*filter(None, [why]), *reasons])[:400], formed)


def _finite(score: float, extracted: str | None, why: str, well_formed: bool | None) -> Verdict:
    """The score; an error if it is too large for a number."""
    if math.isfinite(score):
        return Verdict("score", score, extracted, why, well_formed)
    return Verdict("error", None, extracted, f"the combined score is not finite; {why}", well_formed)


def _sum(counting: Sequence[Heard], failed: float) -> Verdict:
    return _described(sum(one.part.factor * (one.scaled or 0.0) for one in counting), counting)


def _gates(counting: Sequence[Heard], failed: float) -> Verdict:
    for part, verdict, _ in counting:
        score = None if verdict is None else verdict.score
        if part.threshold is not None and score is not None and score < part.threshold:
            return _described(failed, counting, f"stopped at {part.label}: {score:g} < {part.threshold:g}")
    return _sum(counting, failed)


def _majority(counting: Sequence[Heard], failed: float) -> Verdict:
    votes = {0.0: 0.0, 1.0: 0.0}
    for part, verdict, _ in counting:
        score = None if verdict is None else verdict.score
        if score not in (0.0, 1.0):
            return Verdict.error(f"{part.label} said {score:g}, and a majority counts only 0 and 1")
        votes[score] += part.factor
    if votes[0.0] == votes[1.0]:
        return Verdict.abstain(f"a tie of {votes[1.0]:g} to {votes[0.0]:g}")
    return _described(float(votes[1.0] > votes[0.0]), counting, f"{votes[1.0]:g} to {votes[0.0]:g}")


def _fallback(counting: Sequence[Heard], failed: float) -> Verdict:
    for one in counting:
        if one.verdict is not None and one.verdict.score is not None:
            return _described(one.verdict.score, [one])
    failure = failure_of(counting)
    assert failure is not None  # a counting part has a score, abstains or fails
    return failure


def less(verdict: Verdict, loss: float) -> Verdict:
    """The verdict with a score lowered by `loss`."""
    assert verdict.score is not None
    return _finite(verdict.score - loss, verdict.extracted, verdict.why, verdict.well_formed)


RULES: dict[str, Callable[[Sequence[Heard], float], Verdict]] = {
    "sum": _sum,
    "gates": _gates,
    "majority": _majority,
    "fallback": _fallback,
}
