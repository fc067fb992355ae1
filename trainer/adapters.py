"""LoRA adapters: put on a model, merged for an export, and the export compared with the trained model on one row."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.errors import TrainerError
from trainer.model_folder import load_whole
from trainer.settings import LoraSettings

MOST_GAP = 1e-3
"""Difference of logits beyond which an export is another model; relative to their spread where that is above 1."""
ROW = 32
"""Tokens of the row on which models are compared."""
REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError)
"""Exceptions of PEFT, or of a model with adapters, for a combination that does not work."""


class Adapter(NamedTuple):
    """One adapter of a model."""

    name: str
    """Name of the layer that has it, without PEFT's prefixes."""
    layer: Any
    weight: nn.Parameter
    """The weight into which it is merged."""

    def delta(self) -> Tensor:
        """The change that it makes to its weight."""
        (active,) = self.layer.active_adapters
        delta: Tensor = self.layer.get_delta_weight(active)
        return delta


def add_adapters(model: Any, lora: LoraSettings, *, seed: int) -> Any:
    """The model with new adapters, which change no output. TrainerError if PEFT cannot put them on this model, or an
    export could not hold them."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    listed, advice = lora.target_modules, _advice(model)
    targets = listed if isinstance(listed, str) else list(listed)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is refused below
            adapted = get_peft_model(model, config)
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        raise TrainerError(
            f"PEFT cannot put the adapters of train.lora on {type(model).__name__}: {_reason(error)}. {advice}"
        ) from error
    adapters = list(adapters_of(adapted))
    if fault := _unmatched(adapted, adapters, listed) or _not_linear(adapters) or _tied(adapted, adapters):
        raise TrainerError(f"train.lora cannot be used on {type(model).__name__}: {fault}. {advice}")
    return adapted


def check_adapters(folder: Path, lora: LoraSettings) -> None:
    """TrainerError if the model in `folder` cannot get these adapters. Reads the headers of its weights alone."""
    from transformers import AutoModelForCausalLM

    add_adapters(load_whole(AutoModelForCausalLM, folder, device_map={"": "meta"}), lora, seed=0)


def try_adapters(model: Any) -> None:
    """TrainerError unless one row passes through the model, and each of its new adapters gets a gradient from it."""
    kind, advice = type(model.get_base_model()).__name__, _advice(model)
    try:
        row_logits(model).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        raise TrainerError(f"{kind} fails with the adapters of train.lora: {_reason(error)}. {advice}") from error
    idle = [a.name for a in adapters_of(model) if any(p.requires_grad and p.grad is None for p in a.layer.parameters())]
    model.zero_grad()
    if idle:
        raise TrainerError(
            f"The adapters on {_last_parts(idle)} would not be trained: the code of {kind} reads these weights "
            f"without calling their layers. {advice}"
        )


def adapters_of(model: Any) -> Iterator[Adapter]:
    """The adapters of a model, none of one without. TrainerError for one of a kind that cannot be merged."""
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "active_adapters"):
            base, plain = layer.get_base_layer(), _plain(name)
            weight = getattr(base, getattr(layer, "parameter_name", "weight"), None)
            if not isinstance(weight, nn.Parameter) or not hasattr(layer, "get_delta_weight"):
                raise TrainerError(
                    f"The adapter on {plain} cannot be merged into a {type(base).__name__}. Leave {plain} out of "
                    "train.lora.target_modules."
                )
            yield Adapter(plain, layer, weight)


@torch.no_grad()
def merge_adapters(model: Any) -> Any:
    """The model without its adapters, which are merged into its weights in place. TrainerError if its logits change."""
    trained = row_logits(model)
    if hasattr(model, "unload"):
        for adapter in adapters_of(model):
            adapter.weight.data += adapter.delta()
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
    for name, tensor in inner.state_dict().items():
        if ".lora_" in name:
            continue
        place = tensor.data_ptr(), tensor.shape
        if place not in seen:
            adapter = adapters.pop(tensor.data_ptr(), None)
            seen[place] = tensor if adapter is None else tensor + adapter.delta()
        found[name] = seen[place]
    if adapters:
        raise TrainerError(f"The adapters on {_last_parts(one.name for one in adapters.values())} were not merged.")
    if checked:
        trained = row_logits(model)
        with nullcontext() if inner is model else model.disable_adapter():
            _check_same(trained, row_logits(inner, found))
    return {_plain(name): tensor for name, tensor in found.items()}


def row_logits(model: Any, weights: dict[str, Tensor] | None = None) -> Tensor:
    """[T, V] logits of a row of tokens from all over the vocabulary; `weights` replace those of the model."""
    config = model.config.get_text_config()
    length = min(ROW, getattr(config, "max_position_embeddings", None) or ROW)
    tokens = torch.linspace(0, config.vocab_size - 1, length).long()[None]
    row = {"input_ids": tokens.to(next(model.parameters()).device), "use_cache": False}
    logits: Tensor = torch.func.functional_call(model, weights or {}, kwargs=row).logits
    return logits[0].float()


def _check_same(trained_TV: Tensor, exported_TV: Tensor) -> None:
    """The median over positions counts: rounding alone may send a single token to another expert."""
    gap = float((trained_TV - exported_TV).abs().amax(dim=1).median())
    if not gap <= MOST_GAP * max(1.0, float(trained_TV.std())):
        raise TrainerError(
            f"The weights to be written are not the trained model: on a row of {len(trained_TV)} tokens its logits "
            f"differ by {gap:.2g} ({MOST_GAP:g} is allowed). The installed versions of PEFT and transformers do not "
            "merge or tie the weights of this model correctly: use others, or train it with another train.lora."
        )


def _unmatched(adapted: Any, adapters: list[Adapter], listed: str | tuple[str, ...]) -> str | None:
    """Names without a layer; those that PEFT translates to a weight of all experts leave its config."""
    if isinstance(listed, str):
        return None
    left = adapted.peft_config["default"].target_modules
    names = [f".{adapter.name}" for adapter in adapters]
    missing = sorted(t for t in set(listed) & set(left) if not any(name.endswith(f".{t}") for name in names))
    return f"it has no layer {', '.join(missing)}, which target_modules names" if missing else None


def _not_linear(adapters: list[Adapter]) -> str | None:
    """A layer whose output PEFT could not add anything to, such as a router that returns several tensors."""
    for adapter in adapters:
        base, weight = adapter.layer.get_base_layer(), adapter.weight
        if isinstance(base, nn.Linear) and type(base).forward is not nn.Linear.forward:
            output = base(torch.zeros(2, base.in_features, device=weight.device, dtype=weight.dtype))
            if not isinstance(output, Tensor):
                kind = type(base).__name__
                return f"{adapter.name} is no plain linear layer, as its class {kind} returns several tensors"
    return None


def _tied(adapted: Any, adapters: list[Adapter]) -> str | None:
    """A weight with an adapter that another layer uses, too."""
    holders = defaultdict(list)
    for name, module in adapted.named_modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)].append(_plain(name))
    for adapter in adapters:
        if others := [name for name in holders[id(adapter.weight)] if name != adapter.name]:
            return (
                f"an adapter on {adapter.name} would also change {others[0]}, which has the same weight "
                "(tie_word_embeddings), once it is merged"
            )
    return None


def _advice(model: Any) -> str:
    from transformers.pytorch_utils import Conv1D

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and ".lora_" not in n]
    names = (_plain(name) for name, layer in layers if layer is not model.get_output_embeddings())
    return (
        f"Set train.lora.target_modules to other names (its linear layers are {_last_parts(names)}), or train all "
        "weights (train.lora: null)."
    )


def _plain(name: str) -> str:
    """The name that a layer or weight has without adapters."""
    return f"{name}.".replace("base_layer.", "").removeprefix("base_model.model.").removesuffix(".")


def _last_parts(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def _reason(error: Exception) -> str:
    words = " ".join(str(error).removeprefix("[PEFT:PeftType.LORA]").split()).partition(" Please ")[0]
    return words[:200].rstrip(". ") or type(error).__name__
