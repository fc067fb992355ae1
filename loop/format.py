"""Formats numbers for people (shares, differences with their intervals, durations), and texts for a terminal."""

import math
import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tabs and line ends."""
MINUS = "−"
NONE = "–"
"""Printed where there is no number."""


def percent(share: float | None, decimals: int = 1, *, none: str = NONE) -> str:
    """A share in per cent without the sign: 52.1."""
    return none if share is None or not math.isfinite(share) else f"{100 * share:.{decimals}f}"


def percent_with_interval(value: float | None, low: float | None, high: float | None, *, between: str = " ") -> str:
    """A share with its interval: 52.1 [48, 56]; `between` separates the two."""
    return NONE if value is None else f"{percent(value)}{between}[{percent(low, 0)}, {percent(high, 0)}]"


def points(share: float | None, decimals: int = 1) -> str:
    """A difference of shares in percentage points, with its sign: +1.2."""
    return NONE if share is None else f"{100 * share:+.{decimals}f}"


def points_with_interval(
    value: float | None, low: float | None, high: float | None, *, unit: str = " points", none: str = NONE
) -> str:
    """A difference of shares with its interval: +1.2 points [-0.3, +2.7]."""
    return none if value is None else f"{points(value)}{unit} [{points(low)}, {points(high)}]"


def typeset(text: str) -> str:
    """The text with minus signs instead of hyphens, for the report."""
    return text.replace("-", MINUS)


def visible(text: str) -> str:
    """The text with control characters as escapes such as \\x1b, because a terminal would obey those of a response."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The text on one line for the terminal, without repeated white space."""
    return visible(" ".join(text.split()))


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clock(seconds: float, *, hours: bool = True) -> str:
    """1:02:03, or 2:03 below an hour; without `hours` 62:03."""
    whole = round(seconds)
    if whole < 3600 or not hours:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
