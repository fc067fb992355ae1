"""AdamW over fp32 weights; its learning rate depends on the step alone, so resuming needs no scheduler state."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from trainer.settings import TrainSettings


def make_optimizer(parameters: Iterable[nn.Parameter], settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW; the fused kernel is the fastest on CPU and CUDA and repeats exactly."""
    return torch.optim.AdamW(
        list(parameters),
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """Rate of step 0 ... total - 1: linear warm-up, then constant, or down to 0 just after the last step."""
    warmup = math.ceil(settings.warmup_share * total)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return settings.learning_rate * shape[settings.schedule]
