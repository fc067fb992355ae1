"""Exact values (int or Fraction, never float) of digit strings: reading, comparing and showing them."""

import re
from fractions import Fraction

Value = int | Fraction
MAX_DIGITS = 100
"""Longer digit strings are not read."""


def show(value: Value) -> str:
    """One spelling per value: 18, 18.5, and 1/3 where no finite decimal exists."""
    if value.denominator == 1:
        return str(value.numerator)
    twos, fives, rest = 0, 0, value.denominator
    while rest % 2 == 0:
        twos, rest = twos + 1, rest // 2
    while rest % 5 == 0:
        fives, rest = fives + 1, rest // 5
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def close(value: Value, target: Value, *, tolerance: Fraction, relative: Fraction) -> bool:
    """Whether the two differ by at most `tolerance` plus `relative` times the target's size."""
    return abs(Fraction(value) - target) <= tolerance + relative * abs(Fraction(target))


def read_decimal(token: str) -> Value | None:
    """The value of digits with separators, without sign; None if the separators make no sense."""
    if len(token) > MAX_DIGITS:
        return None
    if token.isdecimal():
        return int(token)
    token = token.translate(_SEPARATORS)
    if "_" in token:
        if not _GROUPED_UNDERSCORE.fullmatch(token):
            return None
        token = token.replace("_", "")
    return _read_points(token)


_SEPARATORS = {0x066B: ".", **dict.fromkeys([0x66C, 0x27, 0x2019, 0xA0, 0x202F, 0x2009], "_")}
_GROUPED_UNDERSCORE = re.compile(r"\d{1,3}(?:_\d{3})+(?:[.,]\d+)?")
_GROUPED_COMMA = re.compile(r"(?!0)\d{1,3}(?:,\d{3})+(?:\.\d+)?|[1-9]\d?(?:,\d\d)+,\d{3}(?:\.\d+)?")
_GROUPED_POINT = re.compile(r"(?!0)\d{1,3}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})")


def _read_points(token: str) -> Value | None:
    if _GROUPED_COMMA.fullmatch(token):
        token = token.replace(",", "")
    elif _GROUPED_POINT.fullmatch(token):
        token = token.replace(".", "").replace(",", ".")
    elif token.count(".") + token.count(",") > 1:
        return None
    whole, _, decimals = token.replace(",", ".").partition(".")
    if not decimals.strip("0"):
        return int(whole or "0")
    return Fraction(int(whole + decimals), 10 ** len(decimals))


def read_fraction(over: str, under: str) -> Value | None:
    top, bottom = read_decimal(over), read_decimal(under)
    if top is None or not bottom:
        return None
    value = Fraction(top, 1) / bottom
    return int(value) if value.denominator == 1 else value


def times_ten(value: Value | None, power: str) -> Value | None:
    digits = power.replace("−", "-")
    if value is None or len(digits) > 3:
        return None
    scaled = value * Fraction(10) ** int(digits)
    return int(scaled) if scaled.denominator == 1 else scaled
