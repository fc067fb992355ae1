"""Judge "reasoning-gym": the answer to a procedural task, whose entry is the prompt's columns, checked by its own
verifier in a child process. reasoning_gym is slow to import, so reading a config does not import it."""

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from judges.contract import PointwiseJudge
from judges.resolve import did_you_mean
from judges.rules.numerals import last_number, plain_text
from judges.rules.text import checked_pattern
from judges.rules.values import show
from judges.types import Example, JudgeError, Prompt, Response, Unparsable, Verdict, describe, unclosed, unparsable


class ReasoningGym(PointwiseJudge):
    """Extracts an answer and runs the task's verifier; the verifier's own score is in `parts`."""

    version: ClassVar[str] = "2"
    isolated: ClassVar[bool] = True

    task: str
    """Name of the reasoning-gym task whose verifier decides, e.g. "chain_sum"."""

    pattern: str | None = None
    """Regular expression with a group named `answer` that a well-formed response matches in full, ignoring white space
    around it."""

    must_contain: str | None = None
    """Text, filled from the prompt's columns, that a well-formed response must repeat: "{metadata[expression]}"."""

    fallback: Literal["last-number", "text", "none"] = "last-number"
    """The answer of a response that is not well-formed: its last number, the whole text, or none (unparsable)."""

    threshold: float = 1.0
    """Minimum verifier score of a right answer; lower values accept partial credit."""

    unparsable: Unparsable = "wrong"
    """A response without a readable answer, or cut off: score 0, or abstain, which keeps it out of every pair."""

    @field_validator("pattern")
    @classmethod
    def _has_answer_group(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else checked_pattern(pattern, needs_answer=True)

    @cached_property
    def _regex(self) -> re.Pattern[str] | None:
        return None if self.pattern is None else re.compile(self.pattern)

    def known_examples(self) -> Sequence[Example]:
        """The task's own first entry: a nonsense number must be wrong; its answer, if it is text, right."""
        entry = dict(_dataset(self.task)[0])
        answer = entry["answer"]
        prompt = Prompt(f"{self.task}[0]", (), answer, entry)
        args = {"task": self.task, "fallback": "text", "threshold": self.threshold}
        right = [Example(prompt, answer, 1.0, args)] if isinstance(answer, str) and answer.strip() else []
        return [*right, Example(prompt, "-987654321", 0.0, args)]

    def warm_up(self) -> None:
        _dataset(self.task)

    def check_prompt(self, prompt: Prompt) -> None:
        _entry(prompt)

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        if response.answer is None:
            return unclosed(self.unparsable)
        if response.finish_reason != "stop":
            return self._unparsable("cut off before its end")
        text = response.as_described_by(self.pattern or "") or ""
        match = self._regex.fullmatch(text.strip()) if self._regex is not None else None
        answer = match["answer"] if match is not None else None
        source = "pattern" if answer is not None else self.fallback
        answer = self._fallback(response.answer) if answer is None else answer
        if answer is None:
            return self._unparsable("no answer in the requested format" if self.fallback == "none" else "no number")
        raw = float(_dataset(self.task).score_answer(answer.strip(), _entry(prompt)))
        right = raw >= self.threshold
        why = source if right else f"{source}, expected {prompt.columns['answer']}"[:200]
        return Verdict.of(float(right), answer.strip(), why, self._well_formed(match, prompt, text), {"verifier": raw})

    def _well_formed(self, match: re.Match[str] | None, prompt: Prompt, text: str) -> bool | None:
        """Whether a finished response has the requested format; None if none was requested."""
        if self.pattern is None and self.must_contain is None:
            return None
        if self.pattern is not None and match is None:
            return False
        return self.must_contain is None or _repeats(text, self._filled(prompt))

    def _fallback(self, text: str) -> str | None:
        if self.fallback == "text":
            return text.strip() or None
        number = last_number(plain_text(text)) if self.fallback == "last-number" else None
        return None if number is None or number.value is None else show(number.value)

    def _filled(self, prompt: Prompt) -> str:
        assert self.must_contain is not None
        try:
            return self.must_contain.format_map(prompt.columns)
        except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
            raise JudgeError(
                f"Judge reasoning-gym cannot fill must_contain {self.must_contain!r} for prompt {prompt.id!r}: "
                f"{type(error).__name__}: {error}. The prompt has the columns {', '.join(sorted(prompt.columns))}."
            ) from error

    def _unparsable(self, why: str) -> Verdict:
        well_formed = False if self.pattern is not None or self.must_contain else None
        return unparsable(self.unparsable, why, well_formed=well_formed)


def _entry(prompt: Prompt) -> dict[str, Any]:
    """The task's entry; JudgeError if the prompt has none."""
    missing = [name for name in ("question", "answer", "metadata") if name not in prompt.columns]
    if missing:
        raise JudgeError(
            f"Judge reasoning-gym needs the columns question, answer and metadata of a reasoning-gym entry; prompt "
            f"{prompt.id!r} lacks {', '.join(missing)} (it has: {', '.join(sorted(prompt.columns)) or 'none'}). Take "
            f"the prompts from a reasoning-gym task, or choose another judge."
        )
    return prompt.columns


_DASHES = str.maketrans("−–×", "--*", " \t\r\n")


def _repeats(text: str, expected: str) -> bool:
    """Whether `text` contains `expected`, not inside a longer expression; white space and kind of dash do not count."""
    squeezed, wanted = (part.replace("**", "").translate(_DASHES) for part in (text, expected))
    return re.search(rf"(?<![\d.+\-*/]){re.escape(wanted)}(?![\d.+\-*/])", squeezed) is not None


@lru_cache(maxsize=32)
def _dataset(task: str) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise JudgeError(
            f"Judge reasoning-gym needs the package reasoning-gym, which cannot be imported ({error}). "
            f"Install it with: pip install 'prefloop[reasoning-gym]'."
        ) from error
    if task not in reasoning_gym.factory.DATASETS:
        raise JudgeError(
            f"Judge reasoning-gym knows no task {task!r}.{did_you_mean(task, reasoning_gym.factory.DATASETS)} "
            f"It has {len(reasoning_gym.factory.DATASETS)} tasks; their names are in reasoning-gym's gallery."
        )
    try:
        return reasoning_gym.create_dataset(task, size=1, seed=0)
    except (AssertionError, TypeError, ValueError) as error:
        raise JudgeError(
            f"Judge reasoning-gym cannot make the task {task!r} with its default settings ({describe(error)}), so its "
            f"verifier cannot be used; choose a task that has defaults."
        ) from error
