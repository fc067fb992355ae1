"""The judges "llm-grade" and "llm-compare": a language model grades a response, or says which of two is better."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import field_validator

from judges.contract import BatchJudge
from judges.llm.asking import Failed
from judges.llm.base import LLM
from judges.llm.template import Question
from judges.llm.verdict import Numbers, Read, Scale, Words
from judges.pairwise import Game, PairwiseJudge, Preference
from judges.types import Prompt, Response, Verdict


class LLMGrade(LLM, BatchJudge):
    """Asks a language model for a grade; several votes give the mean grade, or the majority of yes (1) and no (0)."""

    version: ClassVar[str] = "1"
    slots: ClassVar[tuple[str, ...]] = ("response",)

    template: str = "grade"
    """`grade`, or the path of a text file with the slots question, response and verdict in braces."""

    rubric: str = "Is the response correct, complete and helpful?"
    """The grading criteria, as text."""

    scale: Literal["yes-no"] | tuple[float, float] = (1.0, 10.0)
    """The worst and the best grade, or `yes-no`."""

    @field_validator("scale")
    @classmethod
    def _ascends(cls, scale: Literal["yes-no"] | tuple[float, float]) -> Literal["yes-no"] | tuple[float, float]:
        if scale != "yes-no" and not scale[0] < scale[1]:
            raise ValueError("give the worst grade first, then the best, which must be higher")
        return scale

    @property
    def _scale(self) -> Scale:
        return Words({"yes": 1.0, "no": 0.0}) if self.scale == "yes-no" else Numbers(*self.scale)

    def calls_at_most(self, responses: int) -> int:
        return responses * self.votes

    def many(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        reads = self.reads([Question(p, (r,), vote) for p, r in items for vote in range(self.votes)])
        return [self._verdict(reads[i : i + self.votes]) for i in range(0, len(reads), self.votes)]

    def _verdict(self, votes: Sequence[Read | Failed]) -> Verdict:
        """Combine the votes; more than half must be readable."""
        values = [vote.value for vote in votes if isinstance(vote, Read) and vote.value is not None]
        if len(values) * 2 <= len(votes):
            return _undecided(votes)
        score = sum(values) / len(values)
        if self.scale == "yes-no" and score != 0.5:
            score = float(score > 0.5)
        elif self.scale == "yes-no":
            return Verdict.abstain(f"a tie: {len(values)} votes, as many yes as no")
        why = next(vote.reasoning for vote in votes if isinstance(vote, Read) and vote.value is not None)
        return Verdict.of(score, f"{score:g}", why, parts={"votes": len(values)})


class LLMCompare(LLM, PairwiseJudge):
    """Asks a language model which of two responses is better; a response's score is its win rate within its group."""

    version: ClassVar[str] = "1"
    slots: ClassVar[tuple[str, ...]] = ("first", "second")
    names: ClassVar[tuple[str, ...]] = ("response A", "response B")

    template: str = "compare"
    """`compare`, or the path of a text file with the slots question, first, second and verdict in braces."""

    rubric: str = "Which response answers what was asked more correctly, completely and helpfully?"
    """The grading criteria, as text."""

    @property
    def _scale(self) -> Scale:
        return Words({"A": 1.0, "B": 0.0, "tie": 0.5})

    def calls_at_most(self, responses: int) -> int:
        return super().calls_at_most(responses) * self.votes

    def compare_all(self, games: Sequence[Game]) -> list[Preference]:
        shown = [game.of_answers for game in games]
        reads = self.reads([Question(g.prompt, (g.first, g.second), v) for g in shown for v in range(self.votes)])
        return [_preference(reads[i : i + self.votes]) for i in range(0, len(reads), self.votes)]


def _preference(votes: Sequence[Read | Failed]) -> Preference:
    """The mean of the readable votes; they must be more than half of all votes."""
    read = [vote for vote in votes if isinstance(vote, Read) and vote.value is not None]
    if len(read) * 2 <= len(votes):
        verdict = _undecided(votes)
        return Preference(verdict.kind, None, verdict.why)
    return Preference.of(sum(vote.value or 0.0 for vote in read) / len(read), read[0].reasoning)


def _undecided(votes: Sequence[Read | Failed]) -> Verdict:
    """An error if all unreadable votes failed, else an abstain."""
    missing = [vote for vote in votes if isinstance(vote, Failed) or vote.value is None]
    read = [vote for vote in missing if isinstance(vote, Read)]
    return Verdict.abstain(read[0].why) if read else Verdict.error(missing[0].why)
