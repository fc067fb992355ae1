"""Judged responses as pairing rules see them, and the pairs, singles and groups that rules make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

from loop.seeds import hash_of
from trainer.losses.method import Kind


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
    """Tokens."""
    beats: Mapping[str, float] | None = None
    """From a pairwise judge: the probability of being better than the response of that id; None: it gave scores."""
    from_reference: bool | None = None
    """Whether the reference sampled it; None where only the policy samples."""

    @property
    def value(self) -> float:
        """The score; every response that rules see has one."""
        assert self.score is not None, self.response_id
        return self.score


@dataclass(frozen=True, slots=True)
class MadePair:
    """`chosen_id` is preferred to `rejected_id`, by `rule`. The other fields are those of `trainer.data.Pair`."""

    kind: ClassVar[Kind] = "pairs"

    prompt_id: str
    chosen_id: str
    rejected_id: str
    rule: str
    weight: float = 1.0
    score_w: float | None = None
    score_l: float | None = None
    win_w: float | None = None
    win_l: float | None = None
    probability: float | None = None
    margin: float | None = None
    chosen_is_reference: bool | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of its responses."""
        return (self.chosen_id, self.rejected_id)


@dataclass(frozen=True, slots=True)
class MadeSingle:
    """One response, good or bad, or with a score."""

    kind: ClassVar[Kind] = "singles"

    prompt_id: str
    response_id: str
    rule: str
    weight: float = 1.0
    good: bool | None = None
    score: float | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Its id."""
        return (self.response_id,)


@dataclass(frozen=True, slots=True)
class MadeGroup:
    """Responses to one prompt, best first (d2o: the bad answer last)."""

    kind: ClassVar[Kind] = "groups"

    prompt_id: str
    response_ids: tuple[str, ...]
    rule: str
    weight: float = 1.0
    scores: tuple[float, ...] | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Ids, best first."""
        return self.response_ids


Made = MadePair | MadeSingle | MadeGroup
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
    made: list[Made] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
