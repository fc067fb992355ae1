"""A row of the table of losses: function, arguments with defaults, what the trainer must compute. No torch here."""

import hashlib
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

Kind = Literal["pairs", "singles", "groups"]
"""The kind of relation that a loss is defined on."""
Need = Literal[
    "reference",  # log-probs under the reference
    "tokens",  # log-probs of single tokens
    "sequence_kl",  # KL(reference || policy) over the whole vocabulary; the reference stays in memory
    "collision",  # sum of squared probabilities over the vocabulary
    "value",  # a value network, trained together with the policy
    "moving_reference",  # the reference follows the policy during the round, so it stays in memory
    "scores",  # the judge's scores
    "shares",  # the scores are win rates or probabilities, from 0 to 1
    "win_rates",  # win rate of each response over the prompt's responses
    "probability",  # probability that the chosen response is preferred
    "margin",  # how much better the chosen response is
    "origin",  # which of the two was sampled from the reference
    "labels",  # good or bad
    "mismatched",  # another prompt's response after this prompt
    "step",  # all relations of the optimizer step at once, whatever the rows
    "random",  # a `generator` (torch.Generator) for the loss's own draws, seeded by the trainer for this step
]


def number(default: float, about: str, **bounds: float) -> tuple[Any, Any]:
    """An argument of a loss; `bounds` are pydantic's (gt, ge, lt, le)."""
    return (float, Field(default=default, description=about, **bounds))  # type: ignore[call-overload,unused-ignore]


def choice(default: str, about: str, *others: str) -> tuple[Any, Any]:
    """An argument with fixed choices."""
    return (Literal[(default, *others)], Field(default=default, description=about))


def flag(default: bool, about: str) -> tuple[Any, Any]:
    """An argument that is true or false."""
    return (bool, Field(default=default, description=about))


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A row of the table."""

    kind: Kind = "pairs"
    function: str = ""
    """`module:function`, set by `rows_of`; `function(relation, **arguments)` gives one value per relation."""
    paper: str
    about: str
    """One line: what it does."""
    needs: frozenset[Need] = frozenset()
    arguments: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Made by `number`, `choice` or `flag`; the function's keyword-only parameters, without defaults there."""
    takes: Literal["all", "good", "bad"] = "all"
    """Singles: which of them the loss is written over; it is averaged over those."""
    update: str = ""
    """`module:function` of a loss with a running state: `update(relation, state, **arguments) -> new state` is called
    once per step with all its relations, without gradients, before the loss, which then gets `state` too."""
    notes: str = ""
    """Known disagreements between paper and implementations, and which one this is."""

    @property
    def settings(self) -> type[BaseModel]:
        """The arguments as a pydantic model."""
        fields: dict[str, Any] = dict(self.arguments)
        return create_model("Arguments", __config__=ConfigDict(frozen=True, extra="forbid"), **fields)

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        return import_function(self.function)

    def load_update(self) -> Callable[..., Any] | None:
        """The update of the running state, if there is one."""
        return import_function(self.update) if self.update else None


def rows_of(module: str, kind: Kind, rows: dict[str, Method]) -> dict[str, Method]:
    """Rows of one kind, whose functions have their names and are in this module of `trainer.losses` (unless given)."""
    functions = {name: row.function or f"trainer.losses.{module}:{name}" for name, row in rows.items()}
    return {name: replace(row, kind=kind, function=functions[name]) for name, row in rows.items()}


def import_function(where: str) -> Callable[..., Any]:
    """The function that `package.module:function` or `path/to/file.py:function` names."""
    module, _, name = where.rpartition(":")
    loaded: Any = _load_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    function: Callable[..., Any] = getattr(loaded, name)
    return function


def _load_file(path: Path) -> ModuleType:
    """The file as a module, once per content."""
    source = path.read_bytes()
    name = f"prefloop_loss_{hashlib.sha256(bytes(path.resolve()) + source).hexdigest()[:16]}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path)
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
        sys.modules[name] = module
    return sys.modules[name]
