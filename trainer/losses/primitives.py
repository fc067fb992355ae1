"""Arithmetic shared by several losses, written so that it does not overflow."""

import torch
from torch import Tensor
from torch.nn.functional import softplus


def ell(z: Tensor) -> Tensor:
    """`-log sigmoid(z)`."""
    return softplus(-z)


def smoothed(z: Tensor, share: Tensor | float) -> Tensor:
    """`(1-ε) ell(z) + ε ell(-z)`: the loss if a `share` ε of the labels is wrong."""
    return (1 - share) * ell(z) + share * ell(-z)


def log1mexp(u: Tensor) -> Tensor:
    """`log(1 - exp(u))` for `u < 0`; `u` is held at most at -1e-7, where it would diverge."""
    u = u.clamp(max=-1e-7)
    return torch.where(u > -0.6931471805599453, torch.log(-torch.expm1(u)), torch.log1p(-torch.exp(u)))


def follow(reference: Tensor, policy: Tensor, *, alpha: float) -> Tensor:
    """A parameter of the reference after an update, `α θ + (1 - α) θ_ref` without gradient: soft for `α < 1`, hard (a
    copy) for 1. arXiv:2404.09656."""
    return torch.lerp(reference.detach(), policy.detach(), alpha)
