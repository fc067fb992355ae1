"""Reads model folders and believes nothing. Engine, trainer, judges, `doctor` and `plan --check` share this reader.

`check_model` reads small files and the headers of the weights; `check_numbers` reads the weights. `load_whole` loads
them only if they fit the architecture; transformers alone would give missing weights random values, with a warning.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError

WRAPPERS = {
    "_orig_mod.": "torch.compile; save `model._orig_mod` instead",
    "module.": "DataParallel or DDP; save `model.module` instead",
    "base_model.model.": "PEFT; save `model.merge_and_unload()` instead",
}
"""Beginnings of weight names that a wrapper leaves, and how to save the model without it."""
PLAIN = {"trust_remote_code": False}
"""For `from_pretrained`, which would otherwise ask at the terminal whether to run code that comes with the model."""
PLAIN_NUMBERS = ("BF16", "F16", "F32", "F64")
"""How weights may be stored, as the headers of safetensors files call it."""
TIED_ROWS = 256
"""How many rows of embeddings and head are compared."""
WHOLE = "that its files belong together and are whole"


def check_model(folder: Path, *, longest: int | None = None) -> None:
    """TrainerError unless transformers would load the folder as it is meant: weights, tokenizer, end tokens of a causal
    model, and with `longest` positions for so many tokens."""
    config_path = folder / "config.json"
    _check_plain(folder, read_object(config_path))
    for path in (folder / "generation_config.json", folder / "tokenizer_config.json"):
        if path.exists():
            read_object(path)
    _check_one_copy(folder)
    config = read_config(folder)
    classifies = check_fit(folder, config)
    config = config.get_text_config()
    tokenizer = load_tokenizer(folder)
    vocabulary = int(config.vocab_size)
    if (highest := max(tokenizer.get_vocab().values(), default=-1)) >= vocabulary:
        raise TrainerError(
            f"The tokenizer in {folder} has token ids up to {highest}, but the model has {vocabulary} embeddings "
            f"(vocab_size in {config_path}). Copy the model's own tokenizer there, or resize the embeddings "
            f"(resize_token_embeddings) and save the model again."
        )
    if not classifies:
        _check_stops(folder, tokenizer, vocabulary)
    places = context_length(config)
    if longest is not None and places is not None and longest > places:
        raise TrainerError(
            f"engine.max_model_len={longest} is more than the {places} positions of the model in {folder} "
            f"(max_position_embeddings). Set engine.max_model_len to {places} or less."
        )


def check_numbers(folder: Path) -> None:
    """TrainerError if a weight is NaN or infinite. Reads all weights, one at a time."""
    import torch
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - no mapping
                if not torch.isfinite(weights.get_tensor(name)).all():
                    raise TrainerError(
                        f"The weights in {path} hold NaN or infinity (first in {name}): the saved model is broken. "
                        f"Copy or download it again, or use an earlier checkpoint."
                    )


def stop_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The token ids at which the model in `folder` stops: its generation config's and its tokenizer's. TrainerError."""
    path = folder / "generation_config.json"
    named = read_object(path).get("eos_token_id") if path.exists() else None
    ids = named if isinstance(named, list) else [named]
    if wrong := [one for one in ids if one is not None and (not isinstance(one, int) or isinstance(one, bool))]:
        raise TrainerError(f"{path}: eos_token_id must be a token id or a list of them, not {json.dumps(wrong[0])}.")
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the model. TrainerError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TrainerError(f"{path} is not JSON ({error}); download or copy it again.") from error
    if not isinstance(values, dict):
        raise TrainerError(f"{path} holds {type(values).__name__} instead of a JSON object; download or copy it again.")
    return values


def context_length(config: Any) -> int | None:
    """Positions that the model has, with its rope scaling as vLLM computes it; None if the config names no limit."""
    places = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if places is None or kind in ("default", "su", "longrope", "llama3", "mrope") or not rope.get("factor"):
        return None if places is None else int(places)
    return int(rope.get("original_max_position_embeddings", places) * float(rope["factor"]))


def load_whole(kind: Any, folder: Path, **options: Any) -> Any:
    """`kind.from_pretrained(folder)` for an Auto class. TrainerError unless every weight of the model is in the folder
    in its shape, and none is left over."""
    from transformers.utils import logging

    def read() -> Any:
        return kind.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, **PLAIN, **options)

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it would print a table; ours is the message below
    logging.disable_progress_bar()
    try:
        model, found = loading(f"the model in {folder}", read)
    finally:
        logging.set_verbosity(before)
    if faults := [*_wrapped(found), *_misfits(found)]:
        raise TrainerError(
            f"The weights in {folder} do not fit the architecture {type(model).__name__} of its config.json: "
            f"{faults[0]}. Save or download the model again; it would be loaded with random weights otherwise."
        )
    return model


def check_fit(folder: Path, config: Any) -> bool:
    """Whether the model is a classifier. TrainerError unless its weights, by their headers, fit the architecture."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    _check_stored(folder, load_whole(kind, folder, device_map={"": "meta"}))
    return classifies


def _check_stored(folder: Path, model: Any) -> None:
    """TrainerError if weights are stored as anything but plain floating-point numbers, or the head is tied to the
    embeddings by the config and has weights of its own: some programs would tie it, others not."""
    from safetensors import safe_open

    names = {id(one): name for name, one in model.named_parameters(remove_duplicate=False)}
    ends = [getattr(layer, "weight", None) for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    tied: dict[str, Any] = {names[id(weight)]: None for weight in ends if id(weight) in names}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - no mapping
                stored = weights.get_slice(name)
                if name.endswith(".weight") and stored.get_dtype() not in PLAIN_NUMBERS:
                    raise TrainerError(
                        f"The weights in {path} are quantised ({name} is stored as {stored.get_dtype()}), and "
                        f"config.json does not say how; prefloop needs them unquantised. Use the original model."
                    )
                if name in tied:
                    tied[name] = stored[:TIED_ROWS]
    found = [(name, rows) for name, rows in tied.items() if rows is not None]
    if model.config.get_text_config().tie_word_embeddings and len(found) > 1 and not found[0][1].equal(found[1][1]):
        embedding, head = tied
        raise TrainerError(
            f"config.json in {folder} ties the head to the embeddings (tie_word_embeddings), but {head} and "
            f"{embedding} in its weights differ, so it is unclear which model is meant. Set tie_word_embeddings to "
            f"false there if the head was trained on its own; otherwise remove {head} from the weights."
        )


def read_config(folder: Path) -> Any:
    """The model's config."""
    from transformers import AutoConfig

    return loading(f"config.json in {folder}", lambda: AutoConfig.from_pretrained(folder, **PLAIN))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. TrainerError if it cannot be loaded."""
    from transformers import AutoTokenizer

    return loading(f"the tokenizer in {folder}", lambda: AutoTokenizer.from_pretrained(folder, **PLAIN))


def loading(what: str, read: Callable[[], Any], library: str = "transformers", check: str = WHOLE) -> Any:
    """What `read` returns. TrainerError in one sentence, with what to `check`, for whatever the library raises, except
    for lack of memory."""
    try:
        return read()
    except (MemoryError, TrainerError):
        raise
    except Exception as error:  # the boundary to foreign parsers, which raise anything
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason or "custom code" in reason:
            raise TrainerError(
                f"{what[:1].upper()}{what[1:]} needs code of its own (auto_map), which prefloop does not run. Use a "
                f"model whose architecture {library} knows, or a version of {library} that knows this one."
            ) from error
        raise TrainerError(
            f"{library} cannot load {what}: {reason[:300].rstrip('.')}. Check {check}, and that this version of "
            f"{library} knows the architecture."
        ) from error


def _check_plain(folder: Path, config: dict[str, Any]) -> None:
    """Neither an adapter beside the weights nor quantised weights."""
    if (folder / "adapter_config.json").is_file():
        raise TrainerError(
            f"The model folder {folder} holds whole weights and a LoRA adapter (adapter_config.json), so it is unclear "
            f"which model is meant. Merge the adapter (PEFT: merge_and_unload) or move its files away."
        )
    if quantised := config.get("quantization_config"):
        how = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else "quantised"
        raise TrainerError(
            f"The weights in {folder} are quantised ({how}, quantization_config in config.json); prefloop samples from "
            f"and trains the weights that it saves, so it needs them unquantised. Use the original model, or "
            f"dequantise it once: model.dequantize() and save_pretrained."
        )


def _check_one_copy(folder: Path) -> None:
    """The index and the files beside it are one model: no whole file of before, no shards of another."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        shards = sorted(path.name for path in folder.glob("model-*-of-*.safetensors"))
        if shards:
            whole = (folder / "model.safetensors").is_file()
            raise TrainerError(
                f"The model folder {folder} has shards ({shards[0]}, …) without model.safetensors.index.json"
                f"{', and a whole model.safetensors' if whole else ''}: it is unclear which weights are meant. "
                f"{'Remove the older of the two' if whole else 'Download or copy the index, too'}."
            )
        return
    named = set(read_object(index).get("weight_map", {}).values())
    found = {path.name for path in folder.glob("model*.safetensors")}
    if stray := sorted(found - named):
        raise TrainerError(
            f"The model folder {folder} has {', '.join(stray[:3])} beside the files that its index names: the weights "
            f"of another save. transformers and vLLM would choose differently; remove what is not meant."
        )


def _check_stops(folder: Path, tokenizer: Any, vocabulary: int) -> None:
    stops = stop_ids(folder, tokenizer)
    if not stops:
        raise TrainerError(
            f"The model in {folder} has no token that ends a response: neither its tokenizer (eos_token) nor "
            f"generation_config.json (eos_token_id) names one, so every response would be cut off. Set one of them."
        )
    if wrong := sorted(i for i in stops if not 0 <= i < vocabulary):
        raise TrainerError(
            f"The end token {wrong[0]} of the model in {folder} is no token of it (it has 0 to {vocabulary - 1}): "
            f"correct eos_token_id in generation_config.json, or the tokenizer's eos_token."
        )


def _wrapped(found: Any) -> list[str]:
    unexpected = sorted(found["unexpected_keys"])
    for beginning, way in WRAPPERS.items():
        if unexpected and all(name.startswith(beginning) for name in unexpected):
            return [f"every name begins with {beginning!r}, which comes from {way}"]
    return []


def _misfits(found: Any) -> list[str]:
    """Faults, the worst first."""
    faults = []
    for name, saved, wanted in sorted(found["mismatched_keys"], key=lambda one: str(one[0])):
        faults.append(f"{name} has the shape {list(saved)}, not {list(wanted)}")
    if missing := sorted(found["missing_keys"]):
        faults.append(f"it has no weights for {_first(missing)}")
    if unexpected := sorted(found["unexpected_keys"]):
        faults.append(f"the architecture has no place for {_first(unexpected)}")
    return faults


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
