"""Room judges, judge "llm-compare": a language model says which of two responses is better, in both orders."""

from collections.abc import Sequence
from typing import ClassVar

from judges.asking import Failed
from judges.contract import Prompt, Response
from judges.llm import LLM
from judges.llm_grade import undecided
from judges.llm_question import Question
from judges.llm_verdict import Read, Scale, Words
from judges.pairwise import Game, PairwiseJudge, Preference


class LLMCompare(LLM, PairwiseJudge):
    """Asks a language model which of two responses is better; a response's score is its win rate within its group."""

    version: ClassVar[str] = "1"
    slots: ClassVar[tuple[str, ...]] = ("first", "second")

    template: str = "compare"
    """`compare`, or the path of a text file with the slots question, first, second and verdict in braces."""

    rubric: str = "Which response answers what was asked more correctly, completely and helpfully?"
    """The criteria, in words."""

    @property
    def _scale(self) -> Scale:
        return Words({"A": 1.0, "B": 0.0, "tie": 0.5})

    @property
    def _names(self) -> tuple[str, ...]:
        return ("response A", "response B")

    def calls_at_most(self, responses: int) -> int:
        return super().calls_at_most(responses) * self.votes

    def compare(self, prompt: Prompt, first: Response, second: Response) -> Preference:
        return self.compare_all([Game(prompt, first, second)])[0]

    def compare_all(self, games: Sequence[Game]) -> list[Preference]:
        asked = [Question(g.prompt, (g.first, g.second), vote) for g in games for vote in range(self.votes)]
        reads = self.reads(asked)
        return [_preference(reads[i : i + self.votes]) for i in range(0, len(reads), self.votes)]


def _preference(votes: Sequence[Read | Failed]) -> Preference:
    """The mean of the readable votes, which must be more than half of all."""
    read = [vote for vote in votes if isinstance(vote, Read) and vote.value is not None]
    if len(read) * 2 <= len(votes):
        word = undecided(votes)
        return Preference.error(word.why) if word.kind == "error" else Preference.abstain(word.why)
    return Preference.of(sum(vote.value or 0.0 for vote in read) / len(read), read[0].reasoning)
