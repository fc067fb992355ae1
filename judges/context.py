"""What the loop gives a judge: a verdict store, models, progress. The defaults also work outside a campaign."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from judges.types import Group, JudgeError

DECIDING = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""The files that decide a model's output: weights, settings, tokenizer."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A Hugging Face folder and the hash of its `DECIDING` files."""

    folder: Path
    digest: str


def find_folder(name: str) -> ModelRef:
    """Find the model in a local folder; JudgeError if there is none."""
    folder = Path(name).expanduser().absolute()
    if not (folder / "config.json").is_file():
        raise JudgeError(
            f"The judge's model {name!r} is not a folder with a config.json (looked at {folder}). Give the folder of a "
            f"Hugging Face model; hub ids work only in a campaign and with `prefloop judge test`."
        )
    names = sorted({path.name for pattern in DECIDING for path in folder.glob(pattern)})
    total = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return ModelRef(folder, total.hexdigest())


Messages = list[dict[str, str]]
"""Chat messages: role and content."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Calls of a model and their tokens, as the model counts them."""

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
        """Prompt plus completion tokens."""
        return self.prompt_tokens + self.completion_tokens


class Store(Protocol):
    """Stores costly results, durably once a call returns, and what was spent on them; `who` is a judge's identity."""

    def get(self, key: str) -> str | None:
        """The value stored under this key, now or in an earlier run."""

    def put(self, key: str, value: str, who: str, usage: Usage) -> None:
        """Store the value and charge its usage, atomically."""

    def put_all(self, values: Mapping[str, str], who: str, usage: Usage) -> None:
        """As `put`, for a batch of values and their total usage."""

    def charge(self, who: str, usage: Usage) -> None:
        """Add to what the judge has spent, for a call that is about to be made or that returned nothing."""

    def spent(self, who: str) -> Usage:
        """Everything that the judge was charged in this run."""


class InMemory:
    """The store of a judge outside a campaign."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.usage: dict[str, Usage] = {}

    def get(self, key: str) -> str | None:
        return self.values.get(key)

    def put(self, key: str, value: str, who: str, usage: Usage) -> None:
        self.put_all({key: value}, who, usage)

    def put_all(self, values: Mapping[str, str], who: str, usage: Usage) -> None:
        self.values.update(values)
        self.charge(who, usage)

    def charge(self, who: str, usage: Usage) -> None:
        self.usage[who] = self.spent(who) + usage

    def spent(self, who: str) -> Usage:
        return self.usage.get(who, Usage())


class Reply(NamedTuple):
    """A model's reply; `finish_reason` is "stop" if it ended by itself, "length" if it was cut off."""

    text: str
    finish_reason: str
    usage: Usage


class Generate(Protocol):
    """Asks a model that the loop runs: one reply per conversation, in the given order."""

    @property
    def structured(self) -> bool:
        """Whether it can constrain replies to a JSON schema."""

    def __call__(
        self,
        conversations: Sequence[Messages],
        seeds: Sequence[int],
        *,
        temperature: float,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]: ...


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that the loop should run in a separate engine, and that engine's settings."""

    kind: str
    """`vllm` or `transformers`."""
    found: ModelRef
    settings: Mapping[str, Any]
    chat_template_kwargs: Mapping[str, Any]
    reply_tokens: int


Precision = Literal["fp32", "bf16-autocast"]
"""Numeric precision for log-probs, as the trainer names it."""


class Measured(NamedTuple):
    """Log-prob of a response given its prompt."""

    logp: float
    """Sum over the response's tokens, in nats."""
    tokens: int


class LogProbs(Protocol):
    """Computes log-probs with models that the loop runs: `policy` (which sampled the responses), `initial` (the base
    model), or any model that `JudgeContext.find` finds."""

    def weights(self, model: str) -> str:
        """Hash of the model that the name currently refers to; JudgeError if there is none."""

    def measure(self, groups: Sequence[Group], model: str, *, precision: Precision) -> list[list[Measured | str]]:
        """Results by group and response; a string says why a response could not be measured."""


@dataclass(frozen=True, slots=True)
class JudgeContext:
    """What the loop provides to a judge before it judges."""

    store: Store = field(default_factory=InMemory)
    generate: Generate | None = None
    weights: str = ""
    """Hash of the model behind `generate`; it is part of the cache key."""
    find: Callable[[str], ModelRef] = find_folder
    """Finds the folder and hash of a model by name; JudgeError or the loop's own error if there is none."""
    log_probs: LogProbs | None = None
    on_usage: Callable[[Usage, bool], None] = lambda usage, cached: None
    """Progress callback, per verdict: its usage, and whether it came from the cache."""
    on_item: Callable[[str], None] = lambda item: None
    """Called with a name of what is judged next, so that a judge that hangs there is noticed, and with "" after it."""
