"""Frozen weights below adapters in bf16 while a round trains. Under autocast each product casts them to bf16 anyway, so
no number changes; a model whose numbers would is left in fp32. An export reads them in fp32 from the policy again."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.adapters import REFUSALS, plain_name, row_logits
from trainer.model import Arithmetic, load_model
from trainer.settings import TrainSettings


def halves(settings: TrainSettings, arithmetic: Arithmetic, *, sharded: bool) -> bool:
    """Whether a round's frozen weights may be in bf16: not if adapters read them (DoRA) or have changed them, if
    they are handed to a sampler within the round, or if they are sharded with others in fp32."""
    lora = settings.lora
    plain = lora is not None and not lora.use_dora and not lora.takes_from_base
    return plain and arithmetic.precision == "bf16-autocast" and not settings.online and not sharded


@torch.no_grad()
def halve(model: Any, arithmetic: Arithmetic) -> bool:
    """Cast the frozen weights of linear layers to bf16, and back if a row of tokens then has other logits."""
    layers = dict(_frozen_linear(model))
    kept = {name: layer.weight.data for name, layer in layers.items()}
    before = _logits(model, arithmetic)
    for layer in layers.values():
        layer.weight.data = layer.weight.data.to(torch.bfloat16)
    try:
        same = torch.equal(before, _logits(model, arithmetic))
    except torch.OutOfMemoryError:
        raise
    except REFUSALS:  # code that multiplies these weights without autocast
        same = False
    if not same:
        for name, layer in layers.items():
            layer.weight.data = kept[name]
    return same


def restore(model: Any, policy: Path) -> None:
    """Put the frozen weights of the policy's folder back in fp32, one after the other, where they are in bf16."""
    layers = {name: layer for name, layer in _frozen_linear(model) if layer.weight.dtype == torch.bfloat16}
    if not layers:
        return
    source = load_model(policy, Arithmetic(torch.device("cpu"), "fp32"))
    for name, layer in layers.items():
        layer.weight.data = source.get_submodule(plain_name(name)).weight.data.to(layer.weight.device)


def _frozen_linear(model: Any) -> Iterator[tuple[str, Any]]:
    """Linear layers whose weights are not trained and belong to no other layer, such as tied embeddings."""
    from transformers.pytorch_utils import Conv1D

    holders = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    for name, module in model.named_modules():
        frozen = type(module) in (nn.Linear, Conv1D) and not module.weight.requires_grad
        if frozen and holders[id(module.weight)] == 1:
            yield name, module


def _logits(model: Any, arithmetic: Arithmetic) -> torch.Tensor:
    with arithmetic.autocast():
        logits = row_logits(model)
    torch.clear_autocast_cache()
    return logits
