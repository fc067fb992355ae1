"""LoRA adapters: put on a model, and what cannot work refused before the round."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.errors import TrainerError
from trainer.model_folder import load_whole
from trainer.settings import LoraSettings

ROW = 32
"""Tokens of the row on which models are compared."""
ADAPTER = "default"
"""PEFT's name of the only adapter of a model."""
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
        """The product of its two matrices, scaled."""
        (active,) = self.layer.active_adapters
        delta: Tensor = self.layer.get_delta_weight(active)
        return delta

    def merged(self) -> Tensor:
        """Its weight with the adapter in it."""
        (active,) = self.layer.active_adapters
        variant = self.layer.lora_variant[active] if active in getattr(self.layer, "lora_variant", ()) else None
        if variant is None:
            return self.weight.data + self.delta()
        merged: Tensor = variant.merge_safe(self.layer, active, self.weight.data)
        return merged


def add_adapters(model: Any, lora: LoraSettings, *, seed: int) -> Any:
    """The model with new adapters, which change no output. TrainerError if PEFT cannot put them on this model, or an
    export could not hold them."""
    from peft import get_peft_model

    torch.manual_seed(seed)
    advice = _advice(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is refused below
            adapted = get_peft_model(model, peft_config(lora, empty=next(model.parameters()).is_meta))
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        raise TrainerError(
            f"PEFT cannot put the adapters of train.lora on {type(model).__name__}: {_reason(error)}. {advice}"
        ) from error
    adapters = list(adapters_of(adapted))
    faults = (
        *(_unmatched(adapted, adapters, lora), _not_linear(adapters), _tied(adapted, adapters)),
        _first_weights(adapters, lora),
    )
    if fault := next(filter(None, faults), None):
        raise TrainerError(f"train.lora cannot be used on {type(model).__name__}: {fault}. {advice}")
    keep_still(adapted)
    return adapted


def peft_config(lora: LoraSettings, *, empty: bool = False) -> Any:
    """The settings as PEFT takes them; for an `empty` model without first weights from its layers."""
    from peft import LoraConfig

    targets = lora.target_modules
    listed = [targets] if isinstance(targets, str) and targets.isidentifier() else targets
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=listed if isinstance(listed, str) else list(listed),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=True if empty else lora.init_lora_weights,  # type: ignore[arg-type]
        modules_to_save=list(lora.modules_to_save) or None,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        task_type="CAUSAL_LM",
    )


def keep_still(model: Any) -> None:
    """Dropout only in training steps (`dropping`), and no cached norms (DoRA), which updates would make stale."""
    for layer in _layers(model):
        layer.lora_dropout.eval()
        layer.lora_magnitude_vector.train()


def takes_from_base(model: Any) -> bool:
    """Whether the model's weights without its adapters are not those of the folder it comes from."""
    return model.peft_config[ADAPTER].init_lora_weights not in (True, "gaussian", "orthogonal")


@contextmanager
def dropping(model: nn.Module) -> Iterator[None]:
    """Apply the dropout of adapters inside, backward passes included; nothing happens without any."""
    layers = [*_layers(model)]
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
        layer.lora_dropout.train()
    yield
    for layer, training in zip(layers, before, strict=True):
        layer.training = training
        layer.lora_dropout.eval()


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
    trained = {a.name: a.layer for a in adapters_of(model)} | wholly_trained(model)
    idle = [
        name for name, layer in trained.items() if any(p.requires_grad and p.grad is None for p in layer.parameters())
    ]
    model.zero_grad()
    if idle:
        raise TrainerError(
            f"The adapters on {last_parts(idle)} would not be trained: the code of {kind} reads these weights "
            f"without calling their layers. {advice}"
        )


def adapters_of(model: Any) -> Iterator[Adapter]:
    """The adapters of a model, none of one without. TrainerError for one of a kind that cannot be merged."""
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "active_adapters"):
            base, plain = layer.get_base_layer(), plain_name(name)
            weight = getattr(base, getattr(layer, "parameter_name", "weight"), None)
            if not isinstance(weight, nn.Parameter) or not hasattr(layer, "get_delta_weight"):
                raise TrainerError(
                    f"The adapter on {plain} cannot be merged into a {type(base).__name__}. Leave {plain} out of "
                    "train.lora.target_modules."
                )
            yield Adapter(plain, layer, weight)


def wholly_trained(model: Any) -> dict[str, Any]:
    """The modules of `modules_to_save`, as PEFT wraps them, by their names without adapters."""
    from peft.utils import ModulesToSaveWrapper

    wrapped = ((name, module) for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper))
    return {plain_name(name): module for name, module in wrapped}


def row_logits(model: Any, weights: dict[str, Tensor] | None = None) -> Tensor:
    """[T, V] logits of a row of tokens from all over the vocabulary; `weights` replace those of the model."""
    config = model.config.get_text_config()
    length = min(ROW, getattr(config, "max_position_embeddings", None) or ROW)
    tokens = torch.linspace(0, config.vocab_size - 1, length).long()[None]
    row = {"input_ids": tokens.to(next(model.parameters()).device), "use_cache": False}
    logits: Tensor = torch.func.functional_call(model, weights or {}, kwargs=row).logits
    return logits[0].float()


def _unmatched(adapted: Any, adapters: list[Adapter], lora: LoraSettings) -> str | None:
    """Names without a layer; those that PEFT translates to a weight of all experts leave its config."""
    from peft.utils.other import get_pattern_key

    names = [f".{adapter.name}" for adapter in adapters]
    if not isinstance(lora.target_modules, str):
        left = adapted.peft_config[ADAPTER].target_modules
        missing = sorted(
            t for t in set(lora.target_modules) & set(left) if not any(name.endswith(f".{t}") for name in names)
        )
        if missing:
            return f"it has no layer {', '.join(missing)}, which target_modules names"
    saved = [f".{name}" for name in wholly_trained(adapted)]
    if missing := [one for one in lora.modules_to_save if not any(name.endswith(f".{one}") for name in saved)]:
        return f"it has no module {', '.join(missing)}, which modules_to_save names"
    for key, patterns in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        for one in patterns:
            if not any(get_pattern_key([one], name[1:]) == one for name in names):
                return f"no layer with an adapter fits {one}, which {key} names"
    return None


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
    """A weight with an adapter, or a wholly trained one, that another layer uses, too."""
    holders = defaultdict(list)
    for name, module in adapted.named_modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)].append(plain_name(name))
    trained = [(adapter.name, adapter.weight) for adapter in adapters]
    for name, module in wholly_trained(adapted).items():
        trained += [(name, weight) for weight in module.original_module.parameters()]
    for name, weight in trained:
        if others := [other for other in holders[id(weight)] if not f"{other}.".startswith(f"{name}.")]:
            return (
                f"an adapter on {name} would also change {others[0]}, which has the same weight "
                "(tie_word_embeddings), once it is merged"
            )
    return None


def _first_weights(adapters: list[Adapter], lora: LoraSettings) -> str | None:
    """Layers from whose weights PEFT cannot take the first ones of an adapter."""
    bases = [adapter.layer.get_base_layer() for adapter in adapters] if lora.takes_from_base else []
    others = sorted({type(base).__name__ for base in bases if not isinstance(base, nn.Linear)})
    words = f"first weights {lora.init_lora_weights} need plain linear layers, which {', '.join(others)} is not"
    return words if others else None


def _layers(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if hasattr(module, "lora_dropout") and hasattr(module, "lora_A"))


def _advice(model: Any) -> str:
    from transformers.pytorch_utils import Conv1D

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and ".lora_" not in n]
    names = (plain_name(name) for name, layer in layers if layer is not model.get_output_embeddings())
    return (
        f"Set train.lora.target_modules to other names (its linear layers are {last_parts(names)}), or train all "
        "weights (train.lora: null)."
    )


def plain_name(name: str) -> str:
    """The name that a layer or weight has without adapters."""
    for wrapper in ("base_layer.", "original_module.", f"modules_to_save.{ADAPTER}."):
        name = f"{name}.".replace(wrapper, "").removesuffix(".")
    return name.removeprefix("base_model.model.")


def last_parts(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def _reason(error: Exception) -> str:
    words = " ".join(str(error).removeprefix("[PEFT:PeftType.LORA]").split()).partition(" Please ")[0]
    return words[:200].rstrip(". ") or type(error).__name__
