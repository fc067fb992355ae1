"""Judged responses as pairing rules see them. What rules make are the relations of `trainer.data`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from loop.seeds import hash_of
from trainer.data import Relation


@dataclass(frozen=True, slots=True)
class Judged:
    """One response with its verdict; equal `token_ids_key` means equal tokens."""

    response_id: str
    token_ids_key: bytes | str
    """The token ids as int32, or any text (in tests)."""
    kind: str
    score: float | None
    finish_reason: str
    length: int = 0
    """Tokens of the answer, without the thought."""
    beats: Mapping[str, float] | None = None
    """From a pairwise judge: the probability of being better than the response of that id; None: it gave scores."""
    not_asked: bool = False
    """Whether it abstains because nobody was asked about it (people who label only some responses)."""
    from_reference: bool | None = None
    """Whether the reference sampled it; None where only the policy samples."""

    @property
    def value(self) -> float:
        """The score; every response that rules see has one."""
        assert self.score is not None, self.response_id
        return self.score


Made = Relation
"""A pair, a single response or a group."""
Couple = tuple[Judged, Judged]
"""Chosen, rejected."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The gold and the bad answer in a prompt's data row, as tokens of the policy."""

    gold: Judged | None = None
    negative: Judged | None = None

    @property
    def ids(self) -> frozenset[str]:
        """Their ids."""
        return frozenset(answer.response_id for answer in (self.gold, self.negative) if answer)


@dataclass(frozen=True, slots=True)
class Pool:
    """Input of a rule: a prompt's scored, distinct responses in sampling order, possibly with a gold answer."""

    prompt_id: str
    scored: list[Judged]
    answers: Answers
    seed: str

    def fit(self, side: str, drop_truncated: str) -> list[Judged]:
        """Those that may be `chosen` or `rejected`."""
        if drop_truncated == "none" or (side == "rejected" and drop_truncated == "chosen"):
            return self.scored
        return [response for response in self.scored if response.finish_reason != "length"]

    def cut(self, kept: Sequence[Judged]) -> dict[str, str]:
        """The responses that truncation excludes, with the reason: all that are not kept."""
        ids = {response.response_id for response in kept}
        return {response.response_id: "truncated" for response in self.scored if response.response_id not in ids}

    def draw(self) -> Random:
        """A random generator that depends on seed and prompt alone."""
        return Random(int.from_bytes(hash_of(self.seed, self.prompt_id)[:8], "big"))


@dataclass(frozen=True, slots=True)
class Choice:
    """Output of a rule: couples, which become pairs, or singles or groups; why responses were left out."""

    outcome: str
    couples: list[Couple] = field(default_factory=list)
    made: Sequence[Made] = ()
    lost: dict[str, str] = field(default_factory=dict)
