"""Adapters merged into a model's weights for an export, and the export compared with the trained model on one row."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from trainer.adapters import ADAPTER, adapters_of, last_parts, plain_name, row_logits
from trainer.errors import TrainerError

MOST_GAP = 1e-3
"""Difference of logits beyond which an export is another model; relative to their spread where that is above 1."""


@torch.no_grad()
def merge_adapters(model: Any) -> Any:
    """The model without its adapters, which are merged into its weights in place. TrainerError if its logits change."""
    trained = row_logits(model)
    if hasattr(model, "unload"):
        for adapter in adapters_of(model):
            adapter.weight.data = adapter.merged()
        model = model.unload()
    model.tie_weights()  # as whoever loads the export will do
    _check_same(trained, row_logits(model))
    return model


@torch.no_grad()
def merged_weights(model: Any, *, checked: bool) -> dict[str, Tensor]:
    """The weights of a model with adapters merged, under their names without adapters; tied ones stay one tensor.
    TrainerError if an adapter is left over or, with `checked`, if the weights give other logits than the model."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapters = {adapter.weight.data_ptr(): adapter for adapter in adapters_of(inner)}
    seen: dict[tuple[int, torch.Size], Tensor] = {}
    found = {}
    state = inner.state_dict()
    for name, tensor in state.items():
        if ".lora_" in name or ".modules_to_save." in name:
            continue
        place = tensor.data_ptr(), tensor.shape
        if place not in seen:
            adapter = adapters.pop(tensor.data_ptr(), None)
            own = state.get(name.replace(".original_module.", f".modules_to_save.{ADAPTER}."), tensor)
            seen[place] = own if adapter is None else adapter.merged()
        found[name] = seen[place]
    if adapters:
        raise TrainerError(f"The adapters on {last_parts(one.name for one in adapters.values())} were not merged.")
    if checked:
        trained = row_logits(model)
        with nullcontext() if inner is model else model.disable_adapter():
            _check_same(trained, row_logits(inner, found))
    return {plain_name(name): tensor for name, tensor in found.items()}


def _check_same(trained_TV: Tensor, exported_TV: Tensor) -> None:
    """The median over positions counts: rounding alone may send a single token to another expert."""
    gap = float((trained_TV - exported_TV).abs().amax(dim=1).median())
    if not gap <= MOST_GAP * max(1.0, float(trained_TV.std())):
        raise TrainerError(
            f"The weights to be written are not the trained model: on a row of {len(trained_TV)} tokens its logits "
            f"differ by {gap:.2g} ({MOST_GAP:g} is allowed). The installed versions of PEFT and transformers do not "
            "merge or tie the weights of this model correctly: use others, or train it with another train.lora."
        )
