"""Axes of the report: round ticks for a range, and numbers formatted for print. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loop import format
from loop.format import MINUS, typeset


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale: `low` to `high` in data, `start` to `end` in the drawing (end < start if it points up)."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Position of a value in the drawing; values beyond the axis are clipped to its ends."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def axis(values: Iterable[float], start: float, end: float, *, zero: bool = False, count: int = 5) -> Axis:
    """An axis for these values (finite ones) with round ends; `zero` makes it include 0."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - max(0.5, abs(low) / 10), high + max(0.5, abs(high) / 10)
    step = nice_step(high - low, count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, start, end, tuple(i * step for i in range(first, last + 1)))


def share_axis(values: Iterable[float], start: float, end: float) -> Axis:
    """An axis from 0 for shares in per cent, never beyond 100."""
    found = axis([value for value in values if math.isfinite(value)], start, end, zero=True)
    if found.high <= 100:
        return found
    return Axis(min(found.low, 0.0), 100.0, start, end, tuple(t for t in found.ticks if t <= 100))


def whole_axis(numbers: Sequence[int], start: float, end: float, *, room: int = 8) -> Axis:
    """An axis for iterations: whole ticks, with half a unit of space at both ends."""
    low, high = min(numbers, default=0), max(numbers, default=1)
    step = max(1, math.ceil(nice_step(max(high - low, 1), room)))
    ticks = tuple(float(t) for t in range(low, high + 1) if t % step == 0)
    return Axis(low - 0.5, high + 0.5, start, end, ticks)


def nice_step(span: float, count: int) -> float:
    """1, 2, 2.5 or 5 times a power of ten, such that about `count` steps cover the span."""
    rough = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * (1 - 1e-9))


def number(value: float | None) -> str:
    """Format a number with at most four digits: 0.693, −12.5, 52 108; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 10_000 or value == int(value):
        text = f"{size:,.0f}".replace(",", "\u202f")
    else:
        text = f"{size:.4g}" if size >= 1 else f"{size:.3g}"
    return f"{MINUS}{text}" if value < 0 else text


def percent(share: float | None) -> str:
    """A share in per cent with one decimal, or a dash."""
    return typeset(format.percent(share))
