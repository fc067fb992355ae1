r"""Judge "math": is the last \boxed{…}, or what math-verify finds, mathematically equal to the target? Its parsers can
hang, so they run in child processes; its own timeouts, which fail outside the main thread, are off."""

import logging
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import Field

from judges.contract import PointwiseJudge
from judges.rules.markers import last_box
from judges.rules.text import text_target
from judges.types import Example, JudgeError, Prompt, Response, Unparsable, Verdict, unclosed, unparsable


class Math(PointwiseJudge):
    """Right if the response's final answer equals the prompt's target as mathematics."""

    instant: ClassVar[bool] = True

    isolated: ClassVar[bool] = True
    time_limit: ClassVar[float] = 5.0
    examples: ClassVar[tuple[Example, ...]] = (
        Example.on("\\frac{1}{2}", "It is $0.5$.", 1.0, {}),
        Example.on("x^2+2x+1", "So we get \\boxed{(x+1)^2}.", 1.0, {}),
        Example.on("#### 18", "18 is what she makes: \\boxed{20}", 0.0, {}),
        Example.on("18", "I do not know.", None, {"unparsable": "abstain"}),
    )

    decimals: int = Field(default=6, ge=0)
    """Decimal places to which inexact numbers are compared; more is stricter."""

    only_boxed: bool = False
    """Read the answer only from \\\\boxed{…}; a response without one is unparsable."""

    unparsable: Unparsable = "wrong"
    """A response without a readable answer: score 0, or abstain, which keeps it out of every pair."""

    def warm_up(self) -> None:
        _math_verify()

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        gold = _target(text_target(prompt))
        if response.answer is None:
            return unclosed(self.unparsable)
        boxed = last_box(response.answer)
        answer = response.answer if boxed is None else f"\\boxed{{{boxed}}}"
        if boxed is None and (self.only_boxed or response.finish_reason != "stop"):
            why = "cut off" if response.finish_reason != "stop" else "no boxed answer"
            return unparsable(self.unparsable, why, well_formed=False)
        found = _parsed(answer)
        if not found:
            return unparsable(self.unparsable, "no answer that can be parsed as mathematics", well_formed=False)
        right = _math_verify().verify(
            gold, found, float_rounding=self.decimals, timeout_seconds=None, raise_on_error=True
        )
        well_formed = boxed is not None and response.finish_reason == "stop"
        return Verdict.of(right, _shown(found), "" if right else f"expected {_shown(gold)}"[:200], well_formed)


def _parsed(text: str) -> list[Any]:
    """The answer as parsed by math-verify: an expression and its text; empty if there is none."""
    found: list[Any] = _math_verify().parse(text, parsing_timeout=None, raise_on_error=True)
    return found


@lru_cache(maxsize=1024)
def _target(target: str) -> list[Any]:
    """The parsed target: of a worked solution its last box, or the text after its last `####`. May raise JudgeError."""
    boxed = last_box(target)
    answer = target.rpartition("####")[2].strip() if boxed is None else boxed
    found = _parsed(f"\\boxed{{{answer.strip('$')}}}")
    if not found:
        raise JudgeError(
            f"Judge math cannot parse the target {target[:200]!r} as mathematics. Give LaTeX or a plain expression "
            f"such as \\frac{{1}}{{2}}, 0.5 or x^2+1, or choose the judge exact for answers that are words."
        )
    return found


def _shown(parsed: list[Any]) -> str:
    """The answer as written: printing a parsed expression may take forever."""
    texts = [part for part in parsed if isinstance(part, str)]
    return texts[-1] if texts else str(parsed[0])


def _math_verify() -> Any:
    """The package, without its warnings about timeouts that are off here."""
    try:
        import math_verify
    except ImportError as error:
        raise JudgeError(
            f"Judge math needs the package math-verify, which cannot be imported ({error}). "
            f"Install it with: pip install 'prefloop[math]'."
        ) from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify
