"""Shared by the tests of losses over groups, singles and steps: relations from plain numbers, random ones that hold
exactly what a row of the table needs, and calls through the table."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trainer.losses.batch import Groups, Pairs, Responses, Singles
from trainer.losses.method import Method
from trainer.losses.table_others import ROWS

Relation = Pairs | Singles | Groups
#                 logp_w  logp_l  ref_w  ref_l  n_w  n_l
PAIRS = {
    "A": (-12.0, -15.0, -13.0, -14.0, 5.0, 6.0),  # a = 1, b = -1
    "B": (-20.0, -26.0, -18.5, -21.0, 8.0, 10.0),  # a = -1.5, b = -5
    "C": (-9.0, -7.5, -8.0, -8.25, 3.0, 6.0),  # a = -1, b = 0.75
    "D": (-10.0, -14.0, -12.0, -9.5, 4.0, 5.0),  # a = 2, b = -4.5
}
DIFFERENTIABLE = ("logp", "tokens", "kl", "value")


def column(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def responses(gaps: Any, lengths: Any = None, **others: Tensor) -> Responses:
    """Responses with these log-ratios; the reference gives each -10."""
    ref = torch.full_like(column(gaps), -10.0)
    length = torch.ones_like(ref) if lengths is None else column(lengths)
    return Responses(ref + column(gaps), length, ref=ref, **others)


def pairs(names: str) -> Pairs:
    logp_w, logp_l, ref_w, ref_l, n_w, n_l = (column(one) for one in zip(*(PAIRS[n] for n in names), strict=True))
    return Pairs(Responses(logp_w, n_w, ref=ref_w), Responses(logp_l, n_l, ref=ref_l))


def halves(names: str) -> Singles:
    """The pairs' chosen responses as good singles, then the rejected ones as bad singles."""
    both, count = pairs(names), len(names)
    y = Responses(*(torch.cat([getattr(both.w, f), getattr(both.l, f)]) for f in ("logp", "length", "ref")))
    return Singles(y, good=torch.tensor([True] * count + [False] * count))


def singles(gaps: Sequence[float], *, good: Any = None, mismatched: Any = None, score: Any = None) -> Singles:
    return Singles(
        responses(list(gaps)),
        good=None if good is None else torch.tensor(good),
        score=None if score is None else column(score),
        mismatched=None if mismatched is None else responses(mismatched),
    )


def groups(rows: Sequence[Sequence[float]], scores: Sequence[Sequence[float]] | None = None) -> Groups:
    """Groups with these log-ratios (and scores); shorter ones are padded with log-probs 0 and length 1."""
    widest = max(map(len, rows))

    def table(values: Sequence[Sequence[float]], rest: float) -> Tensor:
        return column([[*row, *[rest] * (widest - len(row))] for row in values])

    present = table([[1.0] * len(row) for row in rows], 0.0).bool()
    ref = table([[-10.0] * len(row) for row in rows], 0.0)
    y = Responses(ref + table(rows, 0.0), torch.ones_like(ref), ref=ref)
    return Groups(y, present, score=None if scores is None else table(scores, 0.0))


def random_relation(method: Method, count: int = 6, seed: int = 0) -> Relation:
    """A relation with exactly the fields that the method needs."""
    draw = torch.Generator().manual_seed(seed)
    shape = (count, 4) if method.kind == "groups" else (count,)
    if method.kind == "pairs":
        return Pairs(_random_responses(method, shape, draw), _random_responses(method, shape, draw))
    score = torch.randn(shape, generator=draw, dtype=torch.float64) if "scores" in method.needs else None
    if method.kind == "groups":
        return Groups(_random_responses(method, shape, draw), _random_present(shape), score=score)
    good = torch.arange(count) % 3 != 1 if "labels" in method.needs else None
    mismatched = _random_responses(method, shape, draw, shift=1.0) if "mismatched" in method.needs else None
    return Singles(_random_responses(method, shape, draw), good=good, score=score, mismatched=mismatched)


def _random_present(shape: tuple[int, ...]) -> Tensor:
    """Groups of 4, 3, 2, 4, ... responses."""
    return torch.arange(shape[1])[None, :] < 4 - torch.arange(shape[0])[:, None] % 3


def _random_responses(method: Method, shape: tuple[int, ...], draw: torch.Generator, shift: float = 0.0) -> Responses:
    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64)

    by_token = "tokens" in method.needs
    tokens, ref_tokens = (-normal(*shape, 5).abs() for _ in range(2)) if by_token else (None, None)
    logp = normal(*shape) - 12.0 + shift if tokens is None else tokens.sum(-1)
    ref = normal(*shape) - 12.0 if ref_tokens is None else ref_tokens.sum(-1)
    return Responses(
        logp,
        torch.randint(1, 9, shape, generator=draw).double(),
        ref=ref if "reference" in method.needs else None,
        tokens=tokens,
        ref_tokens=ref_tokens,
        kl=normal(*shape).abs() if "sequence_kl" in method.needs else None,
        value=normal(*shape) if "value" in method.needs else None,
    )


def evaluate(
    name: str, relation: Relation, state: dict[str, float] | None = None, seed: int = 0, **changes: Any
) -> Tensor:
    """The loss of a row with its defaults but for `changes`; a running state starts with this relation's update."""
    method, arguments = ROWS[name], dict(_filled(name, tuple(changes.items())))
    update = method.load_update()
    if update is not None:
        arguments["state"] = update(relation, {}, **arguments) if state is None else state
    if "random" in method.needs:
        arguments["generator"] = torch.Generator().manual_seed(seed)
    values: Tensor = method.load()(relation, **arguments)
    return values


@cache
def _filled(name: str, changes: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return ROWS[name].settings(**dict(changes)).model_dump()


def mapped(relation: Any, change: Any) -> Any:
    """The relation with `change` applied to every tensor in it."""
    if is_dataclass(relation) and not isinstance(relation, type):
        return replace(relation, **{f.name: mapped(getattr(relation, f.name), change) for f in fields(relation)})
    return change(relation) if isinstance(relation, Tensor) else relation


def leaves(relation: Relation) -> list[Tensor]:
    """What carries a gradient: of the responses that the loss is written over, not of mismatched ones."""
    return [tensor for _, _, tensor in _places(relation)]


def with_leaves(relation: Relation, tensors: Sequence[Tensor]) -> Relation:
    """The relation with other tensors in the places of `leaves`."""
    for (part, field, _), tensor in zip(_places(relation), tensors, strict=True):
        relation = replace(relation, **{part: replace(getattr(relation, part), **{field: tensor})})
    return relation


def _places(relation: Relation) -> list[tuple[str, str, Tensor]]:
    parts = ("w", "l") if isinstance(relation, Pairs) else ("y",)
    found = [(part, field, getattr(getattr(relation, part), field)) for part in parts for field in DIFFERENTIABLE]
    return [place for place in found if place[2] is not None]


def gradients(name: str, relation: Relation, **others: Any) -> list[Tensor]:
    """d(sum of the loss) / d(leaf), for each leaf; 0 where the loss does not use it."""
    inputs = [leaf.clone().requires_grad_() for leaf in leaves(relation)]
    total = evaluate(name, with_leaves(relation, inputs), **others).sum()
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
