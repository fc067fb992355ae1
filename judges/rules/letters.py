r"""Reads the final letter of a response to a multiple-choice question.

The last statement decides: \boxed{B} · "the answer is (B)" · "Answer: B" · "option B is correct" · 答案是B.
Without a statement: a response that is just a letter ("B", "(B)", "B. Paris"), or the only letter that it names.
Unreadable: two letters at once ("A or B", "(A), (C)"), a refusal, no letter. The article "a" and the pronoun "I" do not
count.
"""

import re
import unicodedata
from typing import NamedTuple


class Letter(NamedTuple):
    """The final letter in upper case, or None and `why`; `stated`: by a statement or alone; `end`: where it ends."""

    letter: str | None
    why: str
    stated: bool
    end: int


_NEAR = 100
"""Number of characters searched for a letter, and after it for another one."""

_STATEMENT = re.compile(
    r"\\f?boxed\s*\{"
    r"|\b(?:answer|choice|option|letter)\b(?:\s+(?:to|for)\b[^.:\n]{0,60}?)?\s*(?:is|would\s+be|should\s+be|must\s+be|:|=)\s*:?"
    r"|\banswer\s+(?=\(?[A-Z]\)?(?!\w))"
    r"|<answer>"
    r"|(?:答案|选项)\s*(?:是|为|：|:)\s*"
    r"|(?:故选|选择|应选)\s*:?\s*"
    r"|\#{4,}",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\W*(?:\?|(?:no(?:ne|t)?|n/?a|unknown|unclear|undefined|cannot|can't|impossible|neither|nothing)\b)", re.IGNORECASE
)
_LEAD = (
    r"[\s(\[{<\"'“‘>:=-]*(?:(?:the|option|choice|letter|answer|is|clearly|definitely|therefore|indeed)\s+)*"
    r"[\s(\[{\"'“‘]*"
)
_AFTER = r"(?![\w'’]|-\w)"
_NAMED = re.compile(
    rf"\((?P<round>[A-Za-z])\)|\[(?P<square>[A-Z])\]|\b(?:option|choice)\s+(?P<option>[A-Za-z]){_AFTER}"
    rf"|(?:^|\n)[ \t]*(?P<line>[A-Z])(?=[.):]|[ \t]*(?:\n|$))|(?<![\w'’-])(?P<alone>[B-HJ-Z]){_AFTER}"
    rf"|(?<![\w'’-])(?P<last>[AI])(?=[\s.!)\"']*$|\s*(?:,|/|&|\bor\b|\band\b)\s*\(?[A-Z]\b)"
)
_DENIED = re.compile(r"(?:\bnot|n't|n’t|\bnor|\bneither)\s+(?:option\s+|choice\s+)?\(?$", re.IGNORECASE)
_WRONG = re.compile(r"\)?\s+(?:is|are|would\s+be)(?:n't|n’t|\s+(?:not|wrong|incorrect|false|out))\b", re.IGNORECASE)
_WHOLE = re.compile(rf"{_LEAD}(?P<letter>[A-Za-z])[\s)\]}}\"'”’.:]*")
_CORRECT = re.compile(
    r"(?:\b(?:option|choice)\s+|[(\[])?(?<![\w'’-])(?P<letter>[A-Z])[)\]]?\s+(?:is|would\s+be)\s+(?:the\s+)?"
    r"(?:only\s+|best\s+|most\s+)*(?:correct|right|true|answer|likely)"
)
_AND_ANOTHER = re.compile(
    r"[\s)\]}\"'”’.]*(?:,|/|&|\bor\b|\band\b|\bas\s+well\s+as\b|或|和|、|[ ](?=[B-HJ-Z](?!\w)))+"
    r"\s*(?:or\b|and\b|maybe\b|perhaps\b|both\b)?"
    rf"\s*(?:option\s+|choice\s+)?[\s(\[{{\"'“‘]*(?P<letter>[A-Z]){_AFTER}"
)
_PROSE = re.compile(r"\s+(?!because|since|as\b|for\b|which|or\b|and\b|is\b|with|but\b|due|based|given|if\b|\()[a-z]")
_DRESS = re.compile(r"\*\*|__|`|\$|\\(?:text|mathrm|textbf|mathbf|rm|bf)\b|\\[()\[\]]")


def plain_letters(text: str) -> str:
    """The text without Markdown and LaTeX around its letters; full-width letters become plain ones."""
    return _DRESS.sub("", text if text.isascii() else unicodedata.normalize("NFKC", text))


def read_letter(text: str, letters: str) -> Letter:
    """Read the answer of a plain text; `letters` are those of the options."""
    whole = _WHOLE.fullmatch(text.strip()) if len(text) < _NEAR else None
    if whole is not None and whole["letter"].upper() in letters:
        return Letter(whole["letter"].upper(), "", True, len(text))
    for match in reversed(list(_STATEMENT.finditer(text))):
        found = _stated(text, match, letters)
        if found is not None:
            return found
    for match in reversed(list(_CORRECT.finditer(text))):
        if match["letter"] in letters:
            return Letter(match["letter"], "", True, match.end("letter"))
    return _only_named(text, letters)


def _stated(text: str, match: re.Match[str], letters: str) -> Letter | None:
    """The letter after a statement's announcement; None if what follows is not an answer but, say, working."""
    end = match.end()
    if _REFUSAL.match(text, end, end + _NEAR):
        return Letter(None, f"no letter is chosen: {_quoted(text, match.start())}", True, end)
    found = _FIRST.match(text, end, end + _NEAR)
    if found is None or not _is_letter(text, found, letters):
        return None
    letter = found["letter"].upper()
    other = _AND_ANOTHER.match(text, found.end(), found.end() + _NEAR)
    if other is not None and other["letter"] in letters and other["letter"] != letter:
        return Letter(None, f"more than one letter: {_quoted(text, match.start())}", True, found.end())
    return Letter(letter, "", True, found.end())


_FIRST = re.compile(rf"{_LEAD}(?P<letter>[A-Za-z]){_AFTER}", re.IGNORECASE)


def _is_letter(text: str, found: re.Match[str], letters: str) -> bool:
    """Whether it is an option's letter, not the article or pronoun that begins a sentence: "a dog", "I think"."""
    letter = found["letter"]
    if letter.upper() not in letters:
        return False
    bracketed = text[found.start("letter") - 1 : found.start("letter")] in ("(", "[", "{")
    prose = _PROSE.match(text, found.end()) is not None
    return bracketed or not (prose and (letter.islower() or letter in "AI"))


def _only_named(text: str, letters: str) -> Letter:
    """The one letter that a text without a statement names."""
    matches = [match for match in _NAMED.finditer(text) if not _is_denied(text, match)]
    named = [(match[match.lastgroup or 0].upper(), match.end()) for match in matches]
    named = [(letter, end) for letter, end in named if letter in letters]
    distinct = sorted({letter for letter, _ in named})
    if len(distinct) == 1:
        return Letter(distinct[0], "", False, named[-1][1])
    why = f"several letters, none of them stated as the answer: {', '.join(distinct)}" if distinct else "no letter"
    return Letter(None, why, False, len(text))


def _is_denied(text: str, match: re.Match[str]) -> bool:
    """Whether the text says that this letter is not the answer: "not B", "B is wrong"."""
    before = text[max(0, match.start() - 24) : match.start()]
    return _DENIED.search(before) is not None or _WRONG.match(text, match.end()) is not None


def _quoted(text: str, start: int) -> str:
    return repr(" ".join(text[start : start + 60].split()))
