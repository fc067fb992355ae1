"""What judges exchange: prompts, responses, groups, verdicts and examples. A failure never becomes a score."""

import math
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


class JudgeError(ValueError):
    """Stops the stage: judge, arguments or data are unusable (one paragraph: what, where, what to do). One response
    alone gets a `Verdict.error` instead."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt: chat messages, the known answer if there is one, and every other column of the data row."""

    id: str
    messages: tuple[dict[str, str], ...]
    target: str | None
    columns: dict[str, Any]

    @property
    def text(self) -> str:
        """Content of the last user message; empty if there is none."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")


@dataclass(frozen=True, slots=True)
class Thinking:
    """The tags around a model's thought. `opened`: the prompt ends with the opening tag, so a response begins inside
    its thought."""

    open: str = "<think>"
    close: str = "</think>"
    opened: bool = False

    def answer(self, text: str) -> str | None:
        """What follows the last thought, without the white space between them; None if a thought is not closed. A text
        without tags is an answer as it is."""
        _, closed, rest = text.rpartition(self.close)
        if self.open in rest or (self.opened and not closed):
            return None
        return rest.lstrip() if closed else text

    def named_in(self, pattern: str) -> bool:
        """Whether a regular expression names a tag, and so describes the thought as well."""
        plain = pattern.replace("\\", "")
        return self.open in plain or self.close in plain


USUAL = Thinking()
"""The tags of most models."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response exactly as sampled; finish_reason is "stop" or "length" (cut off at the token limit)."""

    id: str
    text: str
    finish_reason: str
    thinking: Thinking | None = USUAL
    """How its thought is marked; None: all of it is the answer."""

    @property
    def answer(self) -> str | None:
        """The text after the thought; None if the thought is not closed."""
        return self.text if self.thinking is None else self.thinking.answer(self.text)

    @property
    def alone(self) -> "Response":
        """This response without its thought; empty if the thought is not closed."""
        return self if self.answer == self.text else Response(self.id, self.answer or "", self.finish_reason, None)

    def as_described_by(self, pattern: str) -> str | None:
        """The answer, or the whole text for a regular expression that names the tags; None if the thought is not
        closed."""
        whole = self.thinking is not None and self.thinking.named_in(pattern)
        return self.text if whole and self.answer is not None else self.answer


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with all its responses: the unit that judges receive."""

    prompt: Prompt
    responses: tuple[Response, ...]


NOT_ASKED = "not asked"
"""Part of an abstention that says nothing about the response, because people were not asked about it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict on one response, built by `Verdict.of`, `Verdict.abstain` or `Verdict.error`. `extracted` is the answer
    read from the text, `why` one line for a person, `well_formed` whether the format is followed (None: not
    checked)."""

    kind: Literal["score", "abstain", "error"]
    score: float | None
    extracted: str | None = None
    why: str = ""
    well_formed: bool | None = None
    parts: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind == "score":
            if type(self.score) is not float or not math.isfinite(self.score):
                object.__setattr__(self, "score", finite(self.score, "a score"))
        elif self.kind not in ("abstain", "error"):
            raise ValueError(f"a verdict's kind must be score, abstain or error, not {self.kind!r}")
        elif self.score is not None:
            raise ValueError(f"a verdict of kind {self.kind} must have no score, got {self.score!r}")
        if not (self.extracted is None or type(self.extracted) is str) or type(self.why) is not str:
            raise ValueError(f"extracted and why must be text, got {self.extracted!r} and {self.why!r}")
        if self.well_formed not in (None, True, False):
            raise ValueError(f"well_formed must be True, False or None, got {self.well_formed!r}")
        if self.parts:
            checked = {str(name): finite(value, f"part {name!r}") for name, value in self.parts.items()}
            object.__setattr__(self, "parts", checked)

    @classmethod
    def of(
        cls,
        score: float,
        extracted: str | None = None,
        why: str = "",
        well_formed: bool | None = None,
        parts: dict[str, float] | None = None,
    ) -> "Verdict":
        """A score to learn from; a bool counts as 1.0 or 0.0. ValueError unless it is finite."""
        return cls("score", score, extracted, why, well_formed, {} if parts is None else parts)

    @classmethod
    def abstain(cls, why: str) -> "Verdict":
        """The judge cannot tell: counted and shown, never a score, never in a pair."""
        return cls("abstain", None, why=why)

    @classmethod
    def error(cls, why: str) -> "Verdict":
        """The judging failed: counted and shown, never a score, never in a pair."""
        return cls("error", None, why=why)


def finite(value: object, what: str) -> float:
    """`value` as a float; ValueError if it is not a finite real number (numpy and torch scalars are fine)."""
    try:
        number = float(value) if not isinstance(value, (str, bytes)) else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} must be a finite number, got {value!r}")
    return number


Unparsable = Literal["wrong", "abstain"]


def unparsable(policy: Unparsable, why: str, *, well_formed: bool | None) -> Verdict:
    """The verdict on a response without a readable answer: score 0 ("wrong"), or abstain."""
    if policy == "abstain":
        return Verdict("abstain", None, None, f"unparsable: {why}", well_formed)
    return Verdict("score", 0.0, None, f"unparsable: {why}", well_formed)


def unclosed(policy: Unparsable = "wrong") -> Verdict:
    """The verdict on a response whose thought is not closed: it has no answer."""
    return unparsable(policy, "the thought is not closed", well_formed=False)


@dataclass(frozen=True, slots=True)
class Example:
    """A known case: `text` as a response to `prompt` must get `score` (None: must abstain); for a pairwise judge, the
    probability that it is better than `against`. `args`: test the class with these, not the judge as configured."""

    prompt: Prompt
    text: str
    score: float | None
    args: dict[str, Any] | None = None
    against: str | None = None

    @classmethod
    def on(cls, target: str | None, text: str, score: float | None, args: dict[str, Any] | None = None) -> "Example":
        """An example that needs only a target."""
        return cls(Prompt("example", (), target, {}), text, score, args)


def describe(error: BaseException, near: str = "") -> str:
    """ "TypeError: … at file.py:12": the innermost line inside the file `near`, else outside this package."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    outside = [frame for frame in frames if "importlib" not in frame[0] and _PACKAGE not in Path(frame[0]).parents]
    at = [frame for frame in frames if frame[0] == near] or outside
    try:
        text = " ".join(str(error).encode("utf-8", "replace").decode().split())[:300]
    except Exception:  # noqa: BLE001  a class of the user's
        text = ""
    where = f" at {Path(at[-1][0]).name}:{at[-1][1]}" if at else ""
    return f"{type(error).__name__}{': ' + text if text else ''}{where}"


_PACKAGE = Path(__file__).parent
