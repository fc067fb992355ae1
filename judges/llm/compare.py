"""Judge "llm-compare": a language model says which of two responses is better, in both orders."""

from collections.abc import Sequence
from typing import ClassVar

from judges.llm.asking import Failed
from judges.llm.base import LLM
from judges.llm.grade import undecided
from judges.llm.template import Question
from judges.llm.verdict import Read, Scale, Words
from judges.pairwise import Game, PairwiseJudge, Preference


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
        asked = [Question(g.prompt, (g.first, g.second), vote) for g in games for vote in range(self.votes)]
        reads = self.reads(asked)
        return [_preference(reads[i : i + self.votes]) for i in range(0, len(reads), self.votes)]


def _preference(votes: Sequence[Read | Failed]) -> Preference:
    """The mean of the readable votes; they must be more than half of all votes."""
    read = [vote for vote in votes if isinstance(vote, Read) and vote.value is not None]
    if len(read) * 2 <= len(votes):
        verdict = undecided(votes)
        return Preference(verdict.kind, None, verdict.why)
    return Preference.of(sum(vote.value or 0.0 for vote in read) / len(read), read[0].reasoning)
