"""The plain-text judges "exact", "contains", "regex" and "number". A missing target stops the stage, so two missing
answers are never equal; a number at the very end of a response that was cut off is not read."""

import re
from fractions import Fraction
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from judges.contract import PointwiseJudge
from judges.rules.gsm8k import number_target
from judges.rules.numerals import last_number, plain_text
from judges.rules.values import Value, close, show
from judges.types import Example, JudgeError, Prompt, Response, Unparsable, Verdict, unclosed, unparsable


class Exact(PointwiseJudge):
    """Right if the response equals the target, character for character after the chosen normalisation."""

    instant: ClassVar[bool] = True

    examples: ClassVar[tuple[Example, ...]] = (
        Example.on("Paris", "Paris", 1.0, {}),
        Example.on("Paris", " Paris\n", 1.0, {}),
        Example.on("Paris", "paris", 0.0, {}),
        Example.on("Paris", "", 0.0, {}),
    )

    strip: bool = True
    """Ignore white space around the response and the target."""

    ignore_case: bool = False
    """Ignore the difference between upper and lower case."""

    ignore_space: bool = False
    """Count any run of white space as one space."""

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        target = text_target(prompt)
        text = complete(response.answer, response)
        if text is None:
            return unclosed()
        if text == target:
            return Verdict("score", 1.0, target)
        answer = self._clean(text)
        right = answer == self._clean(target)
        return Verdict("score", float(right), answer, "" if right else f"expected {target[:100]!r}")

    def _clean(self, text: str) -> str:
        if self.strip:
            text = text.strip()
        if self.ignore_space:
            text = " ".join(text.split()) if self.strip else re.sub(r"\s+", " ", text)
        return text.casefold() if self.ignore_case else text


class Contains(PointwiseJudge):
    """Right if the response contains the target, by default as whole words: 18 is not in 180."""

    instant: ClassVar[bool] = True

    examples: ClassVar[tuple[Example, ...]] = (
        Example.on("Paris", "It is Paris.", 1.0, {}),
        Example.on("18", "It is 180.", 0.0, {}),
    )

    ignore_case: bool = False
    """Ignore the difference between upper and lower case."""

    whole_words: bool = True
    """The target must not be part of a longer word or number."""

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        target = text_target(prompt).strip()
        answer, wanted = complete(response.answer, response), target
        if answer is None:
            return unclosed()
        if self.ignore_case:
            answer, wanted = answer.casefold(), wanted.casefold()
        right = wanted in answer
        if right and self.whole_words:
            right = re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(wanted)}(?!\w)(?![.,]\d)", answer) is not None
        return Verdict("score", float(right), target if right else None, "" if right else f"no {target[:100]!r} in it")


class Regex(PointwiseJudge):
    """Extracts the answer with a regular expression; a response that matches is well-formed."""

    instant: ClassVar[bool] = True

    examples: ClassVar[tuple[Example, ...]] = (
        Example.on("B", "Answer: B", 1.0, {"pattern": "Answer: (?P<answer>[A-D])"}),
        Example.on("B", "Answer: C", 0.0, {"pattern": "Answer: (?P<answer>[A-D])"}),
        Example.on("B", "no idea", 0.0, {"pattern": "Answer: (?P<answer>[A-D])"}),
        Example.on(None, "yes", 1.0, {"pattern": "yes|no", "compare": "match"}),
    )

    pattern: str
    """Regular expression (Python syntax); with compare "target" it needs a group named `answer`."""

    compare: Literal["target", "match"] = "target"
    """"target": the group `answer` must equal the target. "match": a response is right if it matches, else wrong."""

    where: Literal["full", "last"] = "full"
    """"full": the whole response must match, ignoring white space around it. "last": the last match in it counts."""

    ignore_case: bool = False
    """Ignore case, in the pattern and in the comparison."""

    unparsable: Unparsable = "wrong"
    """With compare "target", a response that does not match: score 0, or abstain, which keeps it out of every pair."""

    @model_validator(mode="after")
    def _usable_pattern(self) -> "Regex":
        checked_pattern(self.pattern, needs_answer=self.compare == "target")
        return self

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(self.pattern, re.IGNORECASE if self.ignore_case else 0)

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        text = complete(response.as_described_by(self.pattern), response)
        if text is None:
            return unclosed(self.unparsable)
        match = self._match(text)
        well_formed = match is not None and response.finish_reason == "stop"
        if self.compare == "match":
            why = "" if match is not None else "the pattern does not match"
            return Verdict("score", float(match is not None), None if match is None else match[0], why, well_formed)
        target = text_target(prompt).strip()
        answer = None if match is None else match["answer"]
        if answer is None:
            return unparsable(self.unparsable, "the pattern does not match", well_formed=False)
        answer = answer.strip()
        right = answer.casefold() == target.casefold() if self.ignore_case else answer == target
        return Verdict("score", float(right), answer, "" if right else f"expected {target[:100]!r}", well_formed)

    def _match(self, text: str) -> re.Match[str] | None:
        if self.where == "full":
            return self._regex.fullmatch(text.strip())
        matches = list(self._regex.finditer(text))
        return matches[-1] if matches else None


class Number(PointwiseJudge):
    """Right if the last number of the response is within the tolerance of the target's number."""

    instant: ClassVar[bool] = True

    version: ClassVar[str] = "2"
    examples: ClassVar[tuple[Example, ...]] = (
        Example.on("0.5", "It is 1/2.", 1.0, {}),
        Example.on("3.14", "about 3.1", 0.0, {}),
        Example.on("3.14", "about 3.1", 1.0, {"tolerance": 0.05}),
        Example.on("3.14", "no idea", 0.0, {}),
    )

    tolerance: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Largest difference that still counts as right."""

    relative: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Added to the tolerance: this share of the target's size, 0.01 for one percent."""

    unparsable: Unparsable = "wrong"
    """A response without a readable number, or cut off: score 0, or abstain, which keeps it out of every pair."""

    def _near(self, value: Value, target: Value) -> bool:
        tolerance, relative = Fraction(repr(self.tolerance)), Fraction(repr(self.relative))
        return close(value, target, tolerance=tolerance, relative=relative)

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        target = number_target(prompt)
        if response.answer is None:
            return unclosed(self.unparsable)
        number = last_number(plain_text(response.answer)) if response.finish_reason == "stop" else None
        if number is None or number.value is None:
            why = "no number can be read" if response.finish_reason == "stop" else "cut off before its end"
            return unparsable(self.unparsable, why, well_formed=None)
        right = target in (number.value, number.bare) or self._near(number.value, target)
        return Verdict("score", float(right), show(number.value), "" if right else f"expected {show(target)}")


def complete(text: str | None, response: Response) -> str | None:
    """The text of the response, without a number that may have been cut off."""
    return text if text is None or response.finish_reason == "stop" else _CUT_NUMBER.sub("", text)


_CUT_NUMBER = re.compile(r"[\d.,/]*\d[.,/]?\Z")


def text_target(prompt: Prompt) -> str:
    """The prompt's target; JudgeError if there is none."""
    if prompt.target is None or not prompt.target.strip():
        raise JudgeError(
            f"Prompt {prompt.id!r} has no target to compare with (it is {prompt.target!r}). Map the column that holds "
            f"the expected answer to the target, or choose a judge that needs none."
        )
    return prompt.target


def checked_pattern(pattern: str, *, needs_answer: bool) -> str:
    """The pattern, if it compiles and has the group it needs; ValueError otherwise."""
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a valid regular expression: {error}") from None
    if needs_answer and "answer" not in regex.groupindex:
        raise ValueError("the pattern needs a group named answer: (?P<answer>…)")
    return pattern
