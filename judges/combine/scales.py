"""Rescales one judge's scores of the responses to a prompt, so that they can be added to those of others. Pure."""

import math
from collections.abc import Sequence
from typing import Literal

Scale = Literal["none", "standardise", "min-max", "rank"]


def rescaled(scores: Sequence[float | None], scale: Scale) -> list[float | None]:
    """The scores of one group on the scale; "none" leaves them as they are."""
    known = [score for score in scores if score is not None]
    if scale == "none" or not known:
        return list(scores)
    size = math.frexp(max(map(abs, known)))[1]  # dividing by a power of 2 changes no scale and keeps squares finite
    new = iter(_SCALES[scale]([math.ldexp(score, -size) for score in known]))
    return [None if score is None else next(new) for score in scores]


def standardised(scores: Sequence[float]) -> list[float]:
    """Distance from the mean in standard deviations of the group (not an estimate); middle 0."""
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    if min(scores) == max(scores) or deviation == 0:
        return [0.0] * len(scores)
    return [(score - mean) / deviation for score in scores]


def between_0_and_1(scores: Sequence[float]) -> list[float]:
    """0 for the lowest, 1 for the highest, linear between; middle 0.5."""
    low, high = min(scores), max(scores)
    return [0.5 if low == high else (score - low) / (high - low) for score in scores]


def ranked(scores: Sequence[float]) -> list[float]:
    """The share of the other scores that are lower, ties counting half: 0 for the lowest, 1 for the highest."""
    others = len(scores) - 1
    if not others:
        return [0.5]
    lower = [sum(other < score for other in scores) for score in scores]
    equal = [sum(other == score for other in scores) - 1 for score in scores]
    return [(less + same / 2) / others for less, same in zip(lower, equal, strict=True)]


_SCALES = {"standardise": standardised, "min-max": between_0_and_1, "rank": ranked}
