"""Judge "gsm8k": is the final number of a worked solution (the last marker, else the last number) the known answer? If
the response was cut off, only a complete marker counts: "#### 18" may be the start of "#### 180"."""

from functools import lru_cache
from typing import ClassVar, Literal

from judges.contract import PointwiseJudge
from judges.rules.markers import Found, Marker, closes, last_marker
from judges.rules.numerals import Number, last_number, parse_number, plain_text
from judges.rules.values import Value, show
from judges.types import Example, JudgeError, Prompt, Response, Unparsable, Verdict, unclosed, unparsable


class GSM8K(PointwiseJudge):
    """Compares the final number of a solution with the number in the prompt's target."""

    instant: ClassVar[bool] = True

    version: ClassVar[str] = "2"
    examples: ClassVar[tuple[Example, ...]] = (
        Example.on("Half of 48 is 24.\n#### 72", "48 + 24 = 72\n#### 72", 1.0, {}),
        Example.on("72", "It is 48 + 24, so \\boxed{\\$72.00}.", 1.0, {}),
        Example.on("1,200", "She pays 1200 dollars.", 1.0, {}),
        Example.on("72", "48 + 24 = 72, half of it 36.\n#### 36", 0.0, {}),
        Example.on("72", "I do not know.", 0.0, {}),
        Example.on("72", "I do not know.", None, {"unparsable": "abstain"}),
    )

    answer: Literal["marker-or-last", "marker", "last"] = "marker-or-last"
    """Where to read the answer: an explicit marker or else the last number; only a marker; only the last number."""

    markers: tuple[Marker, ...] = ("####", "boxed", "phrase")
    """Which explicit markers count, also for well_formed: "####", "boxed", "phrase" ("the answer is 18")."""

    unparsable: Unparsable = "wrong"
    """A response without a readable answer: score 0, or abstain, which keeps it out of every pair."""

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        gold = number_target(prompt)
        if response.answer is None:
            return unclosed(self.unparsable)
        text = plain_text(response.answer)
        complete = response.finish_reason == "stop"
        found = None if self.answer == "last" else last_marker(text, self.markers)
        if found is None:
            return self._last(text, gold, complete)
        if not complete and not found.closed:
            return self._unparsable("cut off inside its final answer")
        if found.value is None:
            return self._unparsable(found.why)
        return compared(found, gold, found.marker, complete and closes(text, found))

    def _last(self, text: str, gold: Value, complete: bool) -> Verdict:
        if self.answer == "marker":
            return self._unparsable("no explicit answer")
        if not complete:
            return self._unparsable("cut off before an explicit answer")
        number = last_number(text)
        if number is None:
            return self._unparsable("no number in the text")
        if number.value is None:
            return self._unparsable(f"the last number has no value: {text[max(0, number.start - 16) :][:40]!r}")
        return compared(number, gold, "last number", False)

    def _unparsable(self, why: str) -> Verdict:
        return unparsable(self.unparsable, why, well_formed=False)


def compared(number: Number | Found, gold: Value, source: str, well_formed: bool | None) -> Verdict:
    """Right if the number is the gold value, with or without its scale word, as a question may ask for millions."""
    assert number.value is not None
    if gold in (number.value, number.bare):
        return Verdict("score", 1.0, show(gold), source, well_formed)
    return Verdict("score", 0.0, show(number.value), f"{source}, expected {show(gold)}", well_formed)


def number_target(prompt: Prompt) -> Value:
    """The number in the prompt's target: after its last `####`, or the only one. JudgeError if there is none."""
    if prompt.target is not None and (value := _target(prompt.target)) is not None:
        return value
    raise JudgeError(
        f"Prompt {prompt.id!r} has no number to compare with: its target is {repr(prompt.target)[:200]}. The target "
        f"must be a number such as '72', or a GSM8K solution that ends in '#### 72'; check the target column."
    )


@lru_cache(maxsize=4096)
def _target(target: str) -> Value | None:
    return parse_number(target.rpartition("####")[2])
