"""A loss whose reference follows the policy (need `moving_reference`), which the trainer moves with `follow`."""

import torch
from torch import Tensor

from trainer.losses.batch import Pairs
from trainer.losses.contrastive import dpo


def tr_dpo(pairs: Pairs, *, beta: float, alpha: float, tau: float) -> Tensor:
    """DPO against a reference that moved, TR-DPO of arXiv:2404.09656; `alpha` and `tau` only say how it moves."""
    return dpo(pairs, beta=beta)


def follow(reference: Tensor, policy: Tensor, *, alpha: float) -> Tensor:
    """A parameter of the reference after an update, `α θ + (1 - α) θ_ref` without gradient: soft for `α < 1`, hard (a
    copy) for 1. arXiv:2404.09656."""
    return torch.lerp(reference.detach(), policy.detach(), alpha)
