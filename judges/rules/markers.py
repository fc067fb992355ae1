r"""Finds the last explicit final answer in a response.

Explicit answers are `#### 18`, `\boxed{18}` and the phrase "the answer is 18" (also "Answer: 18" on a line of its own).
The last one decides, even if it cannot be read: a refusal ("#### no answer"), an empty or cut-off marker, or two
answers at once ("18 or 20") are *unreadable*, and no earlier number replaces them.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from judges.rules.numerals import CURRENCY, Number, find_numbers, joined
from judges.rules.values import Value

Marker = Literal["####", "boxed", "phrase"]


class Found(NamedTuple):
    """An explicit answer ending at `end`; `value` None: unreadable, see `why`. `bare` has no scale word. `closed`: its
    box, line or sentence has ended, so that the answer is complete even if the text was cut off."""

    value: Value | None
    bare: Value | None
    marker: Marker
    why: str
    end: int
    closed: bool


_LONGEST = 300
"""Number of characters searched after a marker."""

_MARKER = re.compile(
    r"(?P<hashes>\#{4,})"
    r"|\\(?:fbox|boxed)\b"
    r"|\banswer(?:[ ]+(?:to|for|in)\b[^.:=\n\d]{0,60}?)?[ *_]*"
    r"(?P<verb>(?:,[^,.\n\d]{0,30},[ ])?\b(?:is|was|are|equals|(?:would|will|should|must|has to)[ ]be)\b|[:=])"
    r"[ *_]*[:=]?",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:[\s*_`~(\[{>:=\"'“‘]|"
    + f"[{CURRENCY}]"
    + r"|\\boxed|\b(?:about|approximately|roughly|exactly|simply|just|only|that|"
    r"equal to|therefore|thus|now|a total of|USD|EUR|GBP|Rs\.?|answer|final|the|is|[a-z])\b"
    r"|[-−–+]|(?:negative|minus)\b)*\.?(?=\d)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"[\s*_\[({\"'$]*(?:\?|(?:no|none|not|n/?a|nan|unknown|undefined|unclear|cannot|can't|impossible|unsolvable|undetermined)\b)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?:[\s*_\"')]|$)|\n")
_CLOSED = re.compile(r"\n|[.!?][*_\"')]*\s")
_SIMPLE = re.compile(r"[ ]?\$?(\d{1,15})")
_EQUALS = re.compile(r"[=≈]")
_OR = re.compile(r"\bor\b", re.IGNORECASE)
_BOTH = re.compile(r"(?:\W|\b(?:and|to|maybe|perhaps|possibly|versus|vs)\b)*", re.IGNORECASE)
_ASIDE = re.compile(r"(?<=\d)[^\d()\n=]{0,24}\([^()\n]*\)")
_BRACE = re.compile(r"[{}]")
_HEADING = re.compile(r"[*_ ]*[.):][*_]*\s+\S")


def last_marker(text: str, wanted: Sequence[Marker]) -> Found | None:
    """The last explicit answer of a plain text among the `wanted` kinds; None if there is none."""
    near = max(text.rfind("####"), text.rfind("box"), text.rfind("nswer"), text.rfind("NSWER"))
    if near < 0:
        return None
    for start in range(near, max(-1, near - 3), -1):  # no later marker is possible; nearly always this is one
        match = _MARKER.match(text, start)
        found = None if match is None else _found(text, match, wanted)
        if found is not None:
            return found
    every = (_found(text, match, wanted) for match in reversed(list(_MARKER.finditer(text))))
    return next(filter(None, every), None)


def _found(text: str, match: re.Match[str], wanted: Sequence[Marker]) -> Found | None:
    """The answer that one marker announces; None if it announces none or is not wanted."""
    kind: Marker = "####" if match["hashes"] else "phrase" if match["verb"] else "boxed"
    answer = _READERS[kind](text, match) if kind in wanted else None
    if answer is None:
        return None
    closed = text.startswith("}", answer.end - 1) or _CLOSED.search(text, answer.end) is not None
    return Found(answer.value, answer.bare, kind, answer.why, answer.end, closed)


class _Answer(NamedTuple):
    value: Value | None
    bare: Value | None
    why: str
    end: int


def _after_hashes(text: str, match: re.Match[str]) -> _Answer | None:
    start = _skip_blank(text, match.end())
    if start == len(text):
        return _Answer(None, None, "nothing follows the marker", start)
    end = _line_end(text, start)
    line = text[start:end]
    if _REFUSAL.match(line):
        return _Answer(None, None, f"no number follows the marker: {line.strip()[:40]!r}", end)
    answer = _answer_in(line, start)
    if answer is None or _HEADING.match(text, answer.end, end):
        return None  # a Markdown heading such as "#### Step 1" or "#### 1. Eggs"
    return answer


def _in_box(text: str, match: re.Match[str]) -> _Answer:
    start = _skip_blank(text, match.end())
    if not text.startswith("{", start):
        end = _line_end(text, start)
        return _answer_in(text[start:end], start) or _Answer(None, None, "nothing is in the box", end)
    brace = _closing_brace(text, start)
    if brace is None:
        return _Answer(None, None, "the box is not closed", len(text))
    inside = text[start + 1 : brace]
    answer = _answer_in(inside, start + 1)
    if answer is None:
        return _Answer(None, None, f"the box holds no number: {inside.strip()[:40]!r}", brace + 1)
    return answer._replace(end=brace + 1)


def _after_phrase(text: str, match: re.Match[str]) -> _Answer | None:
    start = _skip_blank(text, match.end())
    colon = match["verb"] in (":", "=")
    end = _line_end(text, start) if colon else _sentence_end(text, start)
    payload = text[start:end]
    if _REFUSAL.match(payload):
        return _Answer(None, None, f"the answer is not a number: {payload.strip()[:40]!r}", end)
    if colon and len(find_numbers(_without_asides(payload))) != 1:
        return None  # "Answer: she had 16 - 3 = 13 eggs …" begins a calculation, not a result
    answer = _answer_in(payload, start)
    if answer is not None and "\n" in text[match.end() : start] and _HEADING.match(text, answer.end):
        return None  # "Answer:" above a numbered list
    return answer


_READERS = {"####": _after_hashes, "boxed": _in_box, "phrase": _after_phrase}


def _answer_in(payload: str, offset: int) -> _Answer | None:
    """The number that a payload states: the one at its start, or the one after its last equals sign."""
    simple = _SIMPLE.fullmatch(payload)
    if simple is not None:
        value = int(simple[1])
        return _Answer(value, value, "", offset + simple.end(1))
    equals = list(_EQUALS.finditer(_without_asides(payload)))
    begin = equals[-1].end() if equals and _LEAD.match(payload, equals[-1].end()) else 0
    if _LEAD.match(payload, begin) is None:
        return None
    stated = joined(payload[begin:])
    numbers = find_numbers(stated, alone=True)
    end = offset + len(payload) - (len(stated) - numbers[0].end if numbers else 0)
    if not numbers or numbers[0].value is None:
        return _Answer(None, None, f"no number can be read from {stated.strip()[:40]!r}", end)
    if len(numbers) > 1 and _undecided(stated, numbers):
        return _Answer(None, None, f"more than one answer: {stated.strip()[:40]!r}", end)
    return _Answer(numbers[0].value, numbers[0].bare, "", end)


def _without_asides(payload: str) -> str:
    """The payload with parentheses after a number blanked out: "18 (9 + 9)", "18 dollars (in 2024)"."""
    return _ASIDE.sub(lambda aside: " " * len(aside[0]), payload) if "(" in payload else payload


def _undecided(stated: str, numbers: list[Number]) -> bool:
    """Whether the first two numbers are alternatives, a list or an unfinished expression: "18 or 20", "18, 20"."""
    between = stated[numbers[0].end : numbers[1].start]
    if _OR.search(between):
        return numbers[0].value != numbers[1].value
    return "(" not in between and _BOTH.fullmatch(between.replace("x", "×")) is not None


def _skip_blank(text: str, start: int) -> int:
    """Skip white space and line breaks, so that the answer may be on a later line."""
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start


def _line_end(text: str, start: int) -> int:
    """End of the line, or of the part of it that is searched."""
    limit = min(len(text), start + _LONGEST)
    end = text.find("\n", start, limit)
    return limit if end < 0 else end


def _sentence_end(text: str, start: int) -> int:
    limit = min(len(text), start + _LONGEST)
    end = _SENTENCE_END.search(text, start, limit)
    return limit if end is None else end.start()


def _closing_brace(text: str, start: int) -> int | None:
    """Position of the brace that closes the one at `start`; None if it is never closed."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return None


def last_box(text: str) -> str | None:
    """Content of the last `\\boxed{…}` of a text; empty if it is not closed, None if there is no box."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    brace = text.index("{", start)
    end = _closing_brace(text, brace)
    return "" if end is None else text[brace + 1 : end]


def closes(text: str, found: Found) -> bool:
    """Whether only punctuation follows the answer."""
    return not text[_line_end(text, found.end) :].strip(" \t\r\n*_`$\\])}.")
