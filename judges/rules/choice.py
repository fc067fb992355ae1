"""Judge "multiple-choice": is the answer the right one of several lettered options?"""

import json
import re
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from judges.contract import PointwiseJudge
from judges.rules.letters import Letter, plain_letters, read_letter
from judges.rules.text import text_target
from judges.types import Example, JudgeError, Prompt, Response, Unparsable, Verdict, unclosed, unparsable

_CAPITALS = Prompt("capitals", (), "B", {"options": ["Rome", "Paris", "Paris, Texas"]})


class MultipleChoice(PointwiseJudge):
    """Right if the response's final letter is the target's."""

    instant: ClassVar[bool] = True

    examples: ClassVar[tuple[Example, ...]] = (
        Example.on("B", "The answer is (B).", 1.0, {}),
        Example.on("B", "B. Paris", 1.0, {}),
        Example.on("B", "\\boxed{C}", 0.0, {}),
        Example.on("B", "It is A or B.", None, {"unparsable": "abstain"}),
        Example(_CAPITALS, "It must be Paris.", 1.0, {"options": "options"}),
        Example(_CAPITALS, "It must be Paris, Texas.", 0.0, {"options": "options"}),
    )

    letters: str = "ABCDEFGHIJ"
    """The options' letters, in order; with `options`, only as many as there are texts."""

    options: str | None = None
    """Column with the options' texts: a list, or an object from letter to text; without it, only letters are read."""

    target_is: Literal["letter", "from-0", "from-1"] = "letter"
    """The target is a letter (or the option's text), or the option's number, counted from 0 or 1."""

    unparsable: Unparsable = "wrong"
    """A response without a single readable letter: score 0, or abstain, which keeps it out of every pair."""

    @field_validator("letters")
    @classmethod
    def _distinct(cls, letters: str) -> str:
        if not re.fullmatch(r"[A-Z]{2,26}", letters) or len(set(letters)) < len(letters):
            raise ValueError("expected two or more different capital letters such as ABCD")
        return letters

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        options = self._options(prompt)
        right = self._target(prompt, options)
        letters = "".join(options) if options else self.letters
        if response.answer is None:
            return unclosed(self.unparsable)
        text = plain_letters(response.answer)
        found = read_letter(text, letters)
        complete = response.finish_reason == "stop"
        if found.letter is None and options and not found.stated:
            found = _by_text(text, options, otherwise=found)
        if found.letter is None:
            return unparsable(self.unparsable, found.why, well_formed=False)
        if not complete and not text[found.end :].strip(" .)") and len(text.split()) > 1:
            return unparsable(self.unparsable, "cut off inside its final answer", well_formed=False)
        letter, why = found.letter, "" if found.letter == right else f"expected {right}"
        return Verdict("score", float(letter == right), letter, why, found.stated and complete)

    def _options(self, prompt: Prompt) -> dict[str, str]:
        """Option texts by letter; empty if no column is named."""
        if self.options is None:
            return {}
        texts = _listed(prompt.columns.get(self.options))
        if isinstance(texts, dict) and all(letter in self.letters for letter in texts):
            return {str(letter): str(text) for letter, text in texts.items()}
        if not isinstance(texts, (list, tuple)) or not 2 <= len(texts) <= len(self.letters):
            raise JudgeError(
                f"Judge multiple-choice needs the options of prompt {prompt.id!r} in the column {self.options!r}: a "
                f"list of 2 to {len(self.letters)} texts or an object from letter to text; it holds {repr(texts)[:80]} "
                f"(columns: {', '.join(sorted(prompt.columns)) or 'none'})."
            )
        return dict(zip(self.letters, map(str, texts), strict=False))

    def _target(self, prompt: Prompt, options: dict[str, str]) -> str:
        """The right letter; JudgeError if the target names none."""
        target = text_target(prompt).strip()
        letters = "".join(options) if options else self.letters
        if self.target_is != "letter":
            number = int(target) - int(self.target_is == "from-1") if target.isdecimal() else -1
            if 0 <= number < len(letters):
                return letters[number]
        elif (letter := _bare_letter(target)) in letters and letter:
            return letter
        else:
            same = [letter for letter, text in options.items() if _normalised(text) == _normalised(target)]
            if len(same) == 1:
                return same[0]
        raise JudgeError(
            f"Prompt {prompt.id!r} has the target {target[:100]!r}, which is none of the options {', '.join(letters)} "
            f"(target_is: {self.target_is}). Check the target column, or set letters, options and target_is."
        )


def _bare_letter(target: str) -> str:
    """The letter of a target such as B, (B) or B."""
    match = re.fullmatch(r"[(\[]?([A-Za-z])[)\].:]{0,2}", target)
    return match[1].upper() if match else ""


def _listed(value: Any) -> Any:
    """The column's value; JSON text is parsed."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .")


def _by_text(text: str, options: dict[str, str], *, otherwise: Letter) -> Letter:
    """The option whose text is in the response; if one option's text contains another's, the longer."""
    answer, texts = _normalised(text), {letter: _normalised(option) for letter, option in options.items()}
    found = [letter for letter, option in texts.items() if _contains(answer, option)]
    longest = [a for a in found if not any(texts[a] != texts[b] and texts[a] in texts[b] for b in found)]
    if len(longest) == 1:
        return Letter(longest[0], "", False, len(text))
    return otherwise if not longest else Letter(None, f"several options' texts: {', '.join(longest)}", False, len(text))


def _contains(answer: str, option: str) -> bool:
    return bool(option) and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", answer) is not None
