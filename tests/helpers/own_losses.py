"""Losses as a user would write them, named in the tests by `tests.helpers.own_losses:...`."""

import torch
from torch import Tensor

from trainer.losses.batch import Groups, Pairs, Singles
from trainer.losses.terms import loss


@loss(needs=["reference"])
def capped(pairs: Pairs, *, beta: float = 0.1, most: float) -> Tensor:
    """DPO whose margin counts up to `most`."""
    return torch.nn.functional.softplus(-(beta * pairs.delta).clamp(max=most))


@loss(kind="singles", needs=["labels"])
def imitate(singles: Singles) -> Tensor:
    """The good responses' mean token loss, without a reference."""
    assert singles.good is not None
    return torch.where(singles.good, -singles.y.mean, torch.zeros_like(singles.y.mean))


@loss(kind="groups", needs=["reference", "step"])
def above_the_step(groups: Groups) -> Tensor:
    """The best response's log-ratio against the mean of the whole step's."""
    best = groups.y.gap[:, 0]
    return torch.nn.functional.softplus(groups.y.gap[:, -1].detach().mean() - best)


@loss(needs=["reference"])
def averaged(pairs: Pairs) -> Tensor:
    """A mistake: one value for all pairs."""
    return pairs.delta.mean()


@loss(needs=["moving_reference", "reference"])
def without_tau(pairs: Pairs, *, alpha: float = 0.5) -> Tensor:
    """A mistake: nothing says how often the reference moves."""
    return -pairs.delta


def unmarked(pairs: Pairs) -> Tensor:
    """A mistake: it does not say what it needs."""
    return -pairs.delta
