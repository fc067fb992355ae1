"""What a round's loss terms need computed, and the share of a row in the step's loss: its sum over the count of the
whole step. Terms with batch statistics get the whole step at once (`whole_step`)."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.data import PreferenceData, Relation, Single
from trainer.errors import TrainerError
from trainer.losses.method import Kind, Method, Need
from trainer.losses.terms import LossTerm
from trainer.relations import Batch, select

State = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Part:
    """A term ready to be computed."""

    name: str
    weight: float
    method: Method
    function: Callable[..., Tensor]
    update: Callable[..., dict[str, float]] | None
    arguments: dict[str, Any]

    def takes(self, relation: Relation) -> bool:
        """Whether the term is over this relation."""
        return self.method.takes == "all" or (
            isinstance(relation, Single) and relation.good is (self.method.takes == "good")
        )


@dataclass(slots=True)
class Value:
    """A share of the step's loss, and each term's value for the log (sums over relations, no gradient)."""

    total: Tensor
    parts: dict[str, float] = field(default_factory=dict)


class Objective:
    """The weighted sum of losses; `state` holds the running statistics of those that keep any."""

    def __init__(self, terms: Sequence[LossTerm]) -> None:
        self.parts = [_part(term) for term in terms]
        self.kind = _one_kind(self.parts)
        self.needs = frozenset(need for part in self.parts for need in part.method.needs)
        self.whole_step = "step" in self.needs or any(part.update for part in self.parts)
        self.state: State = {part.name: {} for part in self.parts if part.update}

    @property
    def beta(self) -> float:
        """The beta that multiplies margins in the log: that of the first term that has one, else 1."""
        return next((float(part.arguments["beta"]) for part in self.parts if "beta" in part.arguments), 1.0)

    def counts(self, relations: Sequence[Relation]) -> dict[str, int]:
        """How many of a step's relations each term is averaged over."""
        return {part.name: sum(map(part.takes, relations)) for part in self.parts}

    def update(self, batch: Batch) -> None:
        """Advance the running statistics by one step, of which `batch` holds all relations."""
        with torch.no_grad():
            for part in self.parts:
                if part.update is not None:
                    self.state[part.name] = part.update(batch, self.state[part.name], **part.arguments)

    def evaluate(
        self, batch: Batch, relations: Sequence[Relation], counts: dict[str, int], generator: torch.Generator
    ) -> Value:
        """The share of these relations in the step's loss; `generator` is for losses with random draws."""
        value = Value(_logp(batch).new_zeros(()))
        for part in self.parts:
            chosen = [part.takes(relation) for relation in relations]
            if not any(chosen):
                continue
            kept = [relation for relation, taken in zip(relations, chosen, strict=True) if taken]
            mask_N = torch.tensor(chosen, device=_logp(batch).device)
            values_N = self._values(part, batch if all(chosen) else select(batch, mask_N), generator)
            total = (values_N * values_N.new_tensor([relation.weight for relation in kept])).sum()
            value.total = value.total + part.weight * total / counts[part.name]
            value.parts[part.name] = float(total.detach())
        return value

    def _values(self, part: Part, batch: Batch, generator: torch.Generator) -> Tensor:
        more: dict[str, Any] = {"state": self.state[part.name]} if part.update else {}
        if "random" in part.method.needs:
            more["generator"] = generator
        values_N = part.function(batch, **part.arguments, **more)
        expected = len(_logp(batch))
        if not isinstance(values_N, Tensor) or values_N.shape != (expected,):
            shape = tuple(values_N.shape) if isinstance(values_N, Tensor) else type(values_N).__name__
            raise TrainerError(
                f"The loss {part.name} returned {shape} for {expected} relations. A loss must return one value for "
                "each of them, without averaging; the trainer divides by the step's count."
            )
        return values_N


def check_needs(objective: Objective, data: PreferenceData) -> None:
    """Raise TrainerError if a loss needs a column that the data do not have, or one that holds impossible numbers."""
    for need, (columns, remedy) in COLUMNS.items():
        if need in objective.needs:
            missing = sum(any(getattr(r, column, 0) is None for column in columns) for r in data.relations)
            names = ", ".join(part.name for part in objective.parts if need in part.method.needs)
            if missing:
                raise TrainerError(
                    f"The loss {names} needs {need.replace('_', ' ')}, but {missing} of {len(data.relations)} "
                    f"{data.kind} have none. {remedy}"
                )
            for relation in data.relations:
                _check_numbers(relation, columns, names, SHARES if need in OF_SHARES else NUMBERS)


def _check_numbers(relation: Relation, columns: Sequence[str], names: str, allowed: tuple[float, float]) -> None:
    """The columns that this relation has must lie within `allowed`, ends included."""
    low, high = allowed
    for column in columns:
        value = getattr(relation, column, ())
        for number in value if isinstance(value, tuple) else (value,):
            if not low <= number <= high:
                expected = "a number from 0 to 1" if allowed == SHARES else "a finite number"
                raise TrainerError(
                    f"The loss {names} needs {expected} as {column.replace('_', ' ')}, but prompt "
                    f"{relation.prompt_id!r} has {number:g}. Use a judge that gives such numbers, or another "
                    "loss."
                )


SHARES = (0.0, 1.0)
NUMBERS = (-sys.float_info.max, sys.float_info.max)
OF_SHARES: frozenset[Need] = frozenset({"shares", "win_rates", "probability"})
"""Needs whose columns are probabilities or shares."""
COLUMNS: dict[Need, tuple[tuple[str, ...], str]] = {
    "scores": (("score", "scores", "score_w", "score_l"), "Use a judge that gives scores, or another loss."),
    "shares": (("score",), "Use a pairwise judge, or another loss."),
    "win_rates": (("win_w", "win_l"), "Use a pairwise judge, or another loss."),
    "probability": (("probability",), "Use a pairwise judge, or another loss."),
    "margin": (("margin",), "Use a judge that gives scores, or another loss."),
    "labels": (("good",), "Use a judge that says right or wrong, or another loss."),
    "origin": (("chosen_is_reference",), "Sample one response of each pair from the reference, or use another loss."),
}
"""The columns behind each need, and what a user can do if they are missing."""


def _part(term: LossTerm) -> Part:
    try:
        method = term.method()
        arguments = term.filled(method)
    except ValueError as error:
        raise TrainerError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    return Part(term.name, term.weight, method, method.load(), method.load_update(), arguments)


def _one_kind(parts: Sequence[Part]) -> Kind:
    kinds = {part.method.kind for part in parts}
    if len(kinds) > 1:
        each = ", ".join(f"{part.name} over {part.method.kind}" for part in parts)
        raise TrainerError(f"The losses of a sum must be defined on the same kind of data, but there are {each}.")
    return kinds.pop() if kinds else "pairs"


def _logp(batch: Batch) -> Tensor:
    """[N] or [G, K]: one row per relation."""
    return batch.w.logp if hasattr(batch, "w") else batch.y.logp
