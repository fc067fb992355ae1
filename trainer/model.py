"""Load a Hugging Face model for training (dropout off, chosen precision) and save candidates, as safetensors only."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.adapters import add_adapters, keep_still, takes_from_base
from trainer.errors import TrainerError
from trainer.merging import merge_adapters
from trainer.model_folder import load_whole, read_config
from trainer.settings import TrainSettings
from trainer.tree.attention import use_tree_attention

Precision = Literal["fp32", "bf16-autocast", "bf16"]
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
NOT_COPIED = ("config.json", "README.md", "metrics.json", "train_summary.json", "reward_summary.json")


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Where and in which number format the round computes."""

    device: torch.device
    precision: Precision
    keep_casts: bool = True
    """Under autocast: weights stay cast for a whole block. A sharded model must not hold them."""

    @property
    def mask_dtype(self) -> torch.dtype:
        """The dtype in which attention runs, so that its mask needs no cast."""
        return torch.float32 if self.precision == "fp32" else torch.bfloat16

    def autocast(self, *, enabled: bool = True) -> AbstractContextManager[Any]:
        """Matrix products inside run in bf16 if the precision says so; `keep_casts` casts weights once."""
        if self.precision != "bf16-autocast":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=self.keep_casts)


def choose_arithmetic(settings: TrainSettings) -> Arithmetic:
    """The device of this machine and what `precision: auto` means on it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.precision != "auto":
        return Arithmetic(device, settings.precision)
    flags = torch.cpu.get_capabilities()
    bf16 = device.type == "cuda" or flags.get("avx512_bf16") or flags.get("amx_bf16")
    return Arithmetic(device, "bf16-autocast" if bf16 else "fp32")


def load_model(folder: Path, arithmetic: Arithmetic, *, whole: bool = True) -> Any:
    """The causal model of a folder in fp32, dropout off; on the CPU unless `whole`. TrainerError for a folder without
    safetensors, or weights that are not numbers."""
    from transformers import AutoModelForCausalLM

    if not any(folder.glob("*.safetensors")):
        raise TrainerError(
            f"The model folder {folder} holds no safetensors weights. Give a complete Hugging Face model folder."
        )
    model = load_whole(AutoModelForCausalLM, folder, dtype=torch.float32, **attention_of(read_config(folder)))
    _check_numbers(model, folder)
    disable_dropout(model)
    if model.config._attn_implementation == "sdpa":
        use_tree_attention(model)
    return model.to(arithmetic.device if whole else "cpu").eval()


def attention_of(config: Any) -> dict[str, str]:
    """Eager attention for soft caps (Gemma 2), which torch's sdpa ignores silently; otherwise the library's choice."""
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return {"attn_implementation": "eager"} if capped else {}


def _check_numbers(model: nn.Module, folder: Path) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise TrainerError(
                f"The weights in {folder} hold NaN or infinity (first in {name}). The saved model is broken: "
                "copy or download it again, or use an earlier one."
            )


def read_limits(folder: Path) -> tuple[int, int | None]:
    """Vocabulary size and context length of a model folder, without loading weights."""
    config = read_config(folder).get_text_config()
    return config.vocab_size, getattr(config, "max_position_embeddings", None)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0, even if a module keeps it as a number: policy and reference must agree exactly."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def make_trainable(model: Any, settings: TrainSettings, *, seed: int) -> Any:
    """The model with adapters and gradient checkpointing if configured. A new adapter changes no output. TrainerError
    if the model cannot get them."""
    if settings.lora is not None:
        model = add_adapters(model, settings.lora, seed=seed)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()  # transformers recompute in training mode only; dropout is off anyway
        keep_still(model)
    return model


def cast_weights(model: Any, arithmetic: Arithmetic) -> Any:
    """The weights in the round's number format; fp32 masters stay as they are."""
    return model.to(torch.bfloat16) if arithmetic.precision == "bf16" else model


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that the round changes, by name, tied ones once."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def rebuild(policy: Path, trained: Mapping[str, Tensor], settings: TrainSettings, *, seed: int) -> Any:
    """The trained model in one piece on the CPU, from the policy's folder and its `trained_parameters`."""
    model = make_trainable(load_model(policy, Arithmetic(torch.device("cpu"), "fp32")), settings, seed=seed)
    for name, parameter in trained_parameters(model):
        parameter.data.copy_(trained[name])
    return model


def save_candidate(model: Any, folder: Path, *, policy: Path) -> None:
    """Save full weights (adapters merged, also separately), config, and the policy's tokenizer files byte for byte.
    TrainerError if the model to be saved has other logits than the trained one."""
    if hasattr(model, "get_base_model") and not takes_from_base(model):
        model.save_pretrained(folder / "adapter")
    save_plain(merge_adapters(model), folder)
    copy_tokenizer(policy, folder)


def save_plain(model: Any, folder: Path, **options: Any) -> None:
    """Save weights and config. Generation settings of the policy are not validated: its file is copied as it is."""
    from transformers import GenerationConfig

    given, model.generation_config = model.generation_config, GenerationConfig.from_model_config(model.config)
    try:
        model.save_pretrained(folder, **options)
    finally:
        model.generation_config = given


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy all files of a model folder except weights and their descriptions, byte for byte."""
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.endswith(WEIGHT_FILES) and path.name not in NOT_COPIED:
            shutil.copyfile(path, folder / path.name)
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, folder / templates.name)
