"""Build the losses' `Pairs`, `Singles` or `Groups` from the scored responses of rows. Shapes: `R` responses of the
rows; `P` pairs, `S` single responses, `G` groups of at most `K`; `L` longest response."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from trainer.data import Pair, Ranked, Relation, Single
from trainer.losses.batch import Groups, Pairs, Responses, Singles

Batch = Pairs | Singles | Groups
Placed = tuple[Relation, tuple[int, ...]]
"""A relation and the indices of its responses among R."""


def take(responses: Responses, index: Tensor | tuple[Tensor, ...]) -> Responses:
    """The responses at `index`, of its shape: [R] fields to [*index], [R, L] fields to [*index, L]."""
    return _each(responses, lambda _, values: values[index])


def join(rows: Sequence[Responses]) -> Responses:
    """Several rows as one, token fields padded to the longest."""
    longest = max((row.tokens.shape[1] for row in rows if row.tokens is not None), default=0)

    def joined(name: str, _: Tensor) -> Tensor:
        parts = [getattr(row, name) for row in rows]
        return torch.cat([pad(part, (0, longest - part.shape[1])) if part.dim() == 2 else part for part in parts])

    return _each(rows[0], joined)


def leaves(responses: Responses) -> Responses:
    """The same values detached from the model; fields that can carry a gradient become leaves that require one."""
    wanted = ("logp", "tokens", "kl", "value")
    return _each(responses, lambda name, values: values.detach().requires_grad_(name in wanted))


def moved(responses: Responses, device: torch.device | str) -> Responses:
    """The same on another device."""
    return _each(responses, lambda _, values: values.to(device))


def gather(placed: Sequence[Placed], responses: Responses, mean_length: Tensor) -> Batch:
    """The relation over these responses; columns that the data do not have are None."""
    first = placed[0][0]
    if isinstance(first, Pair):
        return _pairs(placed, responses, mean_length)
    return _singles(placed, responses) if isinstance(first, Single) else _groups(placed, responses)


def _pairs(placed: Sequence[Placed], responses: Responses, mean_length: Tensor) -> Pairs:
    relations = [cast(Pair, relation) for relation, _ in placed]
    w, l = _places(placed, responses).unbind(1)  # noqa: E741
    names = ("score_w", "score_l", "win_w", "win_l", "probability", "margin", "chosen_is_reference")
    columns = {name: _column([getattr(r, name) for r in relations], responses) for name in names}
    return Pairs(take(responses, w), take(responses, l), mean_length_w=mean_length, **columns)


def _singles(placed: Sequence[Placed], responses: Responses) -> Singles:
    relations = [cast(Single, relation) for relation, _ in placed]
    places = _places(placed, responses)
    return Singles(
        y=take(responses, places[:, 0]),
        good=_column([r.good for r in relations], responses),
        score=_column([r.score for r in relations], responses),
        mismatched=take(responses, places[:, 1]) if places.shape[1] > 1 else None,
    )


def _groups(placed: Sequence[Placed], responses: Responses) -> Groups:
    relations = [cast(Ranked, relation) for relation, _ in placed]
    most = max(len(places) for _, places in placed)
    device = responses.logp.device
    index_GK = torch.tensor([[*places, *[0] * (most - len(places))] for _, places in placed], device=device)
    present_GK = torch.tensor([[k < len(places) for k in range(most)] for _, places in placed], device=device)

    def padded(name: str, values: Tensor) -> Tensor:
        present = present_GK if values.dim() == 2 else present_GK[..., None]
        return torch.where(present, values, torch.ones_like(values) if name == "length" else torch.zeros_like(values))

    scores = None
    if all(relation.scores is not None for relation in relations):
        rows = [[*(r.scores or ()), *[0.0] * (most - len(r.response_ids))] for r in relations]
        scores = responses.logp.new_tensor(rows)
    return Groups(_each(take(responses, index_GK), padded), present_GK, scores)


def select(batch: Batch, keep: Tensor) -> Batch:
    """Only the relations where `keep` [N] is true."""
    values: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Responses):
            value = take(value, keep)
        elif isinstance(value, Tensor) and value.dim() > 0:
            value = value[keep]
        values[field.name] = value
    return type(batch)(**values)


def _places(placed: Sequence[Placed], responses: Responses) -> Tensor:
    return torch.tensor([places for _, places in placed], device=responses.logp.device)


def _column(values: Sequence[float | bool | None], responses: Responses) -> Tensor | None:
    """[N] numbers (or truth values), or None if the data do not have them for every relation."""
    if any(value is None for value in values):
        return None
    if all(isinstance(value, bool) for value in values):
        return torch.tensor(values, device=responses.logp.device)
    return responses.logp.new_tensor([float(cast(float, value)) for value in values])


def _each(responses: Responses, function: Callable[[str, Tensor], Tensor]) -> Responses:
    """Apply a function to all fields set."""
    values = {field.name: getattr(responses, field.name) for field in fields(Responses)}
    made: Any = {name: None if value is None else function(name, value) for name, value in values.items()}
    return Responses(**made)
