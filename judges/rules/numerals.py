r"""Finds numbers in text as people write them in answers, with their exact values (values.py).

Read: 18 · 18.00 · .5 · -5 with any dash, "negative 5" · 1,234 · 1.234.567 · 1.234,50 · 1'234 · 1_234 and thin or
no-break spaces as separators · 18,50 as a decimal comma · 3/4 · 2 1/2 · ½ · $18, 18%, 18 dollars, 5km (units are
dropped, 18% is 18) · 3:00 pm is 3 · 5k, $2 million · 1e3, 1.5 × 10^6 · any script's digits · **18** · LaTeX.
Not read, so that no answer is right by accident: an unfinished expression (9*2, 16 - 3), a range or time (3-5, 3:30),
two alternatives (18 or 20), powers, roots, multiples of π, division by zero, broken separators (1,23,4), more than 100
digits. An ordinary space joins digits only where a number stands alone as an answer (`joined`). Spelled-out numbers are
words.
"""

import re
import unicodedata
from typing import NamedTuple

from judges.rules.values import Value, read_decimal, read_fraction, times_ten

SIGNS = "-−–﹣－"
CURRENCY = "$€£¥₹＄"
_SCALES: dict[str, int] = {
    "hundred": 2,
    "thousand": 3,
    "k": 3,
    "million": 6,
    "m": 6,
    "billion": 9,
    "bn": 9,
    "trillion": 12,
}


class Number(NamedTuple):
    """A number in a text; `value` None: unreadable. `bare` is without scale word: "$2 million" is 2000000, bare 2."""

    value: Value | None
    bare: Value | None
    start: int
    end: int


_NUMBER = re.compile(
    r"""
    (?=[\d.]) (?: (?<![A-Za-z\d^√]) | (?<=USD) | (?<=EUR) | (?<=GBP) | (?<=Rs) )   # x2 and H2O are names
    (?<!\d[.,]) (?<![\^_]\{) (?<![A-Za-z\d)}\]]_)                        # version tails, exponents, subscripts
    (?: (?:(?P<whole>\d+)[ ])? (?P<over>\d+)[ ]?[/⁄][ ]?(?P<under>\d+) (?![\d/⁄]|[.,]\d)
      | (?P<plain> \d+ (?:[.,'’٬٫_\u00a0\u202f\u2009]\d+)* | (?<![\w.)])\.\d+ )
        (?: :00(?![\d:])
          | [ ]?[×x*·][ ]?10[ ]?\^[ ]?\{?(?P<ten>[-−+]?\d+)\}? | [eE](?P<exp>[-+]?\d+)(?![A-Za-z\d]) )?
    )
    """,
    re.VERBOSE,
)
_AFTER = re.compile(
    r"(?P<unread>[⁰¹²³⁴-⁹]|[ ]?(?:\^[ ]?[{(]*[-+−]?\d|√|\\sqrt|π))"
    r"|[ -]?(?P<word>hundred|thousand|million|billion|trillion)s?\b|(?P<letter>[kKM]|bn)(?![A-Za-z\d&])"
)
_LAST_DIGIT = re.compile(r"(?s:.*)\d")
_BEFORE_NUMBER = re.compile(r"(?s:.*)[^\d .,'’٬٫_\u00a0\u202f\u2009/⁄×x*·^{+−eE:-]")
"""Everything up to the last character that cannot be part of a number; a scan for the last number begins after it."""
_ENDS_IN_DIGIT = re.compile(r"[\d)\]}%]\s*$")
_ALTERNATIVE = re.compile(
    r"(?P<other>\d[\d.,]*)(?<=\d)[^\d\n.=]{0,24}\bor[ ]+(?:(?:maybe|perhaps|about|possibly)[ ]+)?$|\d[ ]*to[ ]*$"
    r"|\bbetween\b[^\d\n]{0,6}[\d.,]+[ ]*and[ ]*$"
    r"|\d[ ]*(?:times|plus|minus|multiplied by|divided by|x|X)[ ]*$",
    re.IGNORECASE,
)


def plain_text(text: str) -> str:
    """The text with LaTeX, vulgar fractions and full-width punctuation in plain characters; \\boxed stays."""
    if not text.isascii():
        if _HAS_WIDE.search(text):
            text = text.translate(_WIDE)
        text = _VULGAR.sub(lambda m: _vulgar(m[1], m[2]), text)
    if _HAS_LATEX.search(text):
        for pattern, plain in _LATEX:
            text = pattern.sub(plain, text)
    return text


_VULGAR = re.compile(r"(\d?)([¼-¾⅐-⅞↉])")
_WIDE = {0xFF0C: ",", 0xFF0E: ".", 0xFF04: "$", 0xFF05: "%", 0xFF1A: ":", 0xFF1D: "=", 0x066A: "%"}
_HAS_WIDE = re.compile(f"[{''.join(map(chr, _WIDE))}]")
_HAS_LATEX = re.compile(r"\\(?!f?box)|\{,\}|√")
_LATEX = [
    (re.compile(pattern), plain)
    for pattern, plain in [
        (r"\{,\}", ","),
        (r"(?<=\d)\\[!,;: ]\s?(?=\d)", ""),
        (r"(?<=,)\\!(?=\d)", ""),
        (r"\\[!,;:]", " "),
        (r"(?<=\d)\s?\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2"),
        (r"\\[dt]?frac\s*\{\s*([\d.]+)\s*\}\s*\{\s*([\d.]+)\s*\}", r"\1/\2"),
        (r"\\[dt]?frac\s*(\d)\s*(\d)", r"\1/\2"),
        (r"\\(?:text|mathrm|textbf|mathbf|textit|mbox)\s*\{([^{}]*)\}", r" \1"),
        (r"\\(?:left|right|displaystyle)\b", ""),
        (r"\\times\b|\\cdot\b", "×"),
        (r"\\div\b", "÷"),
        (r"\\approx\b", "≈"),
        (r"\\sqrt\b", "√"),
        (r"\\pi\b", "π"),
        (r"√\s*\{\s*", "√"),
        (r"\\([$%])", r"\1"),
        (r"\\[\[\]() ]", " "),
    ]
]


def _vulgar(before: str, char: str) -> str:
    spelled = unicodedata.normalize("NFKC", char).replace("⁄", "/")
    return f"{before} {spelled}" if before else spelled


def joined(text: str) -> str:
    """`1 234 567` with ordinary spaces becomes `1234567`; only for a text that is nothing but an answer."""
    return _SPACED.sub(lambda m: m[0].replace(" ", ""), text)


_SPACED = re.compile(r"(?<![\d.,/] )(?<![\d.,/])\d{1,3}(?: \d{3})+(?![.,]?\d| \d|/)")


def find_numbers(text: str, *, alone: bool = False) -> list[Number]:
    """Every number of a plain text, in order. `alone`: the text is an answer, so a leading "- 5" is not a bullet."""
    return [number for match in _NUMBER.finditer(text) for number in _read(text, match, alone)]


def last_number(text: str) -> Number | None:
    """The last number of a plain text; None if there is none."""
    found = _LAST_DIGIT.match(text)
    while found is not None:
        before = _BEFORE_NUMBER.match(text, 0, found.end())
        start = before.end() if before is not None else 0
        matches = list(_NUMBER.finditer(text, start))
        if matches:
            return _read(text, matches[-1], False)[-1]
        found = _LAST_DIGIT.match(text, 0, start)
    return None


def parse_number(text: str) -> Value | None:
    """The value of a text that holds exactly one number (a target, say), else None."""
    numbers = find_numbers(joined(plain_text(text.strip())), alone=True)
    return numbers[0].value if len(numbers) == 1 else None


def _read(text: str, match: re.Match[str], alone: bool) -> list[Number]:
    """The match as a number with sign and scale; two numbers if it is no mixed fraction, as in "16 48/2"."""
    start, end = match.span()
    plain = match["plain"]
    if plain is not None:
        value = read_decimal(plain)
        if match.lastgroup != "plain":
            value = times_ten(value, match["ten"] or match["exp"])
        return [_in_context(text, start, end, value, alone)]
    whole, over = match.group("whole", "over")
    part = read_fraction(over, match["under"])
    if whole is None:
        return [_in_context(text, start, end, part, alone)]
    base, middle = read_decimal(whole), match.start("over")
    if base is not None and part is not None and part < 1:
        return [_in_context(text, start, end, base + part, alone)]
    first = _in_context(text, start, match.end("whole"), base, alone)
    return [first, _in_context(text, middle, end, part, False)]


def _in_context(text: str, start: int, end: int, value: Value | None, alone: bool) -> Number:
    """The number with the sign before and the scale after it; no value if the context rules it out as an answer."""
    sign = _sign(text, start, value, alone) if value is not None else 0
    after = _AFTER.match(text, end)
    if value is None or sign == 0 or (after is not None and after["unread"]):
        return Number(None, None, start, end)
    bare = value * sign
    zeros = 0 if after is None else _SCALES[(after["word"] or after["letter"]).lower()]
    return Number(bare * int(10**zeros), bare, start, end)


def _sign(text: str, start: int, value: Value, alone: bool) -> int:
    """1 or -1; 0 if the number is an operand, the end of a range, or one of two alternatives."""
    before = text[max(0, start - 48) : start].rpartition("\n")[2]
    bare = before.rstrip(_BLANK)
    if not bare:
        return 1
    last = bare[-1]
    if last in SIGNS:
        return _dash(bare, spaced=before.endswith((" ", "\t")) and len(before) == len(bare) + 1, alone=alone)
    if last in "+*×÷/·:^√":
        return 0 if _is_operator(bare, before) else 1
    if last.isalpha():
        return _word_before(before.rstrip(CURRENCY), value)
    return 1


def _word_before(before: str, value: Value) -> int:
    """The sign that the words before a number give it: "negative 5" is -1, "18 or" and "9 times" are 0."""
    word = before.rstrip().rpartition(" ")[2].lower()
    if word in _JOINING:
        alternative = _ALTERNATIVE.search(before)
        if alternative is not None:
            return 1 if alternative["other"] and read_decimal(alternative["other"]) == value else 0
    return -1 if word.endswith(("negative", "minus")) else 1


_BLANK = " \t" + CURRENCY
_JOINING = frozenset(["or", "to", "and", "maybe", "perhaps", "about", "possibly", "times", "plus", "minus", "by", "x"])


def _dash(bare: str, *, spaced: bool, alone: bool) -> int:
    """A dash before a number: minus, hyphen, bullet, or the middle of a range or subtraction."""
    ahead = bare[:-1]
    if _ENDS_IN_DIGIT.search(ahead):
        return 0
    if spaced:
        return -1 if ahead.rstrip().endswith(("=", ":", "≈")) or (alone and not ahead.strip(" *$")) else 1
    return (
        1 if ahead[-1:].isalpha() and ahead[-1] < "\u0590" else -1
    )  # COVID-19; scripts without spaces have no hyphens


def _is_operator(bare: str, before: str) -> bool:
    """Whether the sign at the end of `bare` joins the number to an operand before it."""
    ahead = bare[:-1]
    if bare[-1] in ":":
        return bare == before and ahead[-1:].isdigit()
    if bare[-1] == "*" and ahead.endswith("*"):
        return ahead[:-1][-1:].isdigit()  # 2**3, not **18**
    if bare[-1] in "√^":
        return True
    spaced = ahead.endswith(" ") and before.endswith(" ") and bool(ahead.strip(" =:>-*"))
    return bool(_ENDS_IN_DIGIT.search(ahead)) or spaced
