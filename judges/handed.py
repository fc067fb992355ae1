"""Room judges, what the loop hands to a judge: a store for what was paid for, a model to ask, an ear for its progress.

A judge that nobody handed anything to keeps its verdicts in memory and has no model; so it works alone, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

Messages = list[dict[str, str]]
"""Chat messages: role and content."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What some calls of a model came to, in calls and in its own tokens."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    @property
    def tokens(self) -> int:
        """Tokens in both directions."""
        return self.prompt_tokens + self.completion_tokens


class Store(Protocol):
    """Where what costs money or minutes is kept, and what was spent on it; `who` is a judge's identity.

    Each call is final when it returns: a process that is killed right after it has lost nothing.
    """

    def get(self, key: str) -> str | None:
        """What was put under this key, now or in an earlier run."""

    def put(self, key: str, value: str, who: str, usage: Usage) -> None:
        """Keep the value for good and charge its usage, both or neither."""

    def charge(self, who: str, usage: Usage) -> None:
        """Add to what the judge has spent: a call that is about to be made, or one that brought nothing."""

    def spent(self, who: str) -> Usage:
        """All that the judge was ever charged in this run."""


class InMemory:
    """The store of a judge that runs alone."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.usage: dict[str, Usage] = {}

    def get(self, key: str) -> str | None:
        return self.values.get(key)

    def put(self, key: str, value: str, who: str, usage: Usage) -> None:
        self.values[key] = value
        self.charge(who, usage)

    def charge(self, who: str, usage: Usage) -> None:
        self.usage[who] = self.spent(who) + usage

    def spent(self, who: str) -> Usage:
        return self.usage.get(who, Usage())


class Reply(NamedTuple):
    """What a model answered; `finish_reason` is "stop" if it ended by itself, "length" if it was cut off."""

    text: str
    finish_reason: str
    usage: Usage


class Generate(Protocol):
    """Asks a model that the loop holds: one reply per conversation, in the given order."""

    def __call__(
        self, conversations: Sequence[Messages], seeds: Sequence[int], *, temperature: float, max_tokens: int
    ) -> list[Reply]: ...


def _not_listening(usage: Usage, remembered: bool) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Handed:
    """What the loop hands to a judge before it judges."""

    store: Store = field(default_factory=InMemory)
    generate: Generate | None = None
    weights: str = ""
    """Hash of the model behind `generate`; verdicts of other weights are other verdicts."""
    told: Callable[[Usage, bool], None] = _not_listening
    """Told what each verdict that comes in has cost, and whether it was remembered; also a sign of life."""
