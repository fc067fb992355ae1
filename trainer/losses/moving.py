"""A loss whose reference follows the policy during the round (need `moving_reference`). One value per pair; the trainer
moves the reference with `follow`."""

import torch
from torch import Tensor

from trainer.losses.batch import Pairs
from trainer.losses.contrastive import dpo


def tr_dpo(pairs: Pairs, *, beta: float, alpha: float, tau: float) -> Tensor:
    """DPO (eq. 7 of arXiv:2305.18290) against a reference that moved; TR-DPO, arXiv:2404.09656. `alpha` and `tau` say
    how and how often the trainer moves it, and do not enter the value."""
    return dpo(pairs, beta=beta)


def follow(reference: Tensor, policy: Tensor, *, alpha: float) -> Tensor:
    """A parameter of the reference after an update, `α θ + (1 - α) θ_ref` without gradient: soft for `α < 1`, hard (a
    copy) for 1. arXiv:2404.09656."""
    return torch.lerp(reference.detach(), policy.detach(), alpha)
