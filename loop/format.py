"""Formats numbers for people (shares, differences with their intervals, durations, sizes), and texts for a terminal."""

import math

MINUS = "−"
NONE = "–"
"""Printed where there is no number."""
_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
CONTROLS = (127, *range(128, 160), 0x2028, 0x2029, *_BIDI)
"""Characters that JSON leaves as they are, but that steer a terminal or change the direction of text."""
_SYMBOLS: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(32) if code not in (9, 10)},
    127: 0x2421,
    **{code: f"<U+{code:04X}>" for code in CONTROLS[1:]},
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),
}
"""Control characters but tab and line end, marks that change the direction of text, and halves of surrogate pairs."""


def visible(text: str) -> str:
    """The text with symbols for what would steer a terminal; models, judges and data can write anything."""
    return text.translate(_SYMBOLS)


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


def in_bytes(size: int) -> str:
    """1.5 GB, 12.0 MB, 3 kB."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{-(-size // 1000)} kB"


def clock(seconds: float, *, hours: bool = True) -> str:
    """1:02:03, or 2:03 below an hour; without `hours` 62:03."""
    whole = round(seconds)
    if whole < 3600 or not hours:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
