"""Publish the current weights to a sampler, as a temporary folder that its engine can load. A file in shared memory is
slow to create but fast to overwrite, so two take turns: one is read, the other written."""

import json
import mmap
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.files import PARTIAL, fresh_partial
from trainer.merging import merged_weights
from trainer.model import copy_tokenizer, save_plain

Format = Literal["float32", "bfloat16", "float16"]
WEIGHTS = "model.safetensors"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64, "BOOL": torch.bool}
"""Dtypes by their names in safetensors files."""


class Publisher:
    """Publishes one model repeatedly."""

    def __init__(self) -> None:
        self.now: tuple[Path, dict[str, Tensor]] | None = None
        """The folder published last, with the tensors in its file."""
        self.spare: tuple[Path, dict[str, Tensor]] | None = None
        """The folder before it, which is no longer read."""

    @torch.no_grad()
    def publish(self, model: Any, folder: Path, *, policy: Path, number_format: Format) -> None:
        """Write the model with the policy's tokenizer to `folder`; of older folders only the last stays. The first one
        is compared with the model: TrainerError if its logits are others."""
        partial = folder.with_name(folder.name + PARTIAL)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        tensors = merged_weights(model, checked=self.now is None)
        places = self.spare[1] if self.spare is not None and self.spare[0].is_dir() else {}
        dtype = getattr(torch, number_format)
        if self.spare is not None and fits(tensors, places, dtype):
            self.spare[0].rename(partial)
            for name, place in places.items():
                place.copy_(tensors[name])
        else:
            fresh_partial(folder)
            cast = {id(one): one.to(dtype) if one.is_floating_point() else one for one in tensors.values()}
            state = {name: cast[id(one)] for name, one in tensors.items()}
            save_plain(inner, partial, state_dict=state)
            copy_tokenizer(policy, partial)
            places = in_place(partial / WEIGHTS) if (partial / WEIGHTS).exists() else {}
        partial.rename(folder)
        self.spare = self._put_aside()
        self.now = folder, places
        for other in folder.parent.iterdir():
            if other != folder and (self.spare is None or other != self.spare[0]):
                shutil.rmtree(other)

    def _put_aside(self) -> tuple[Path, dict[str, Tensor]] | None:
        """Rename the previous folder, so that it is no longer read."""
        if self.now is None or not self.now[0].is_dir():
            return None
        folder, places = self.now
        return folder.rename(folder.with_name(folder.name + PARTIAL)), places


def fits(tensors: dict[str, Tensor], places: dict[str, Tensor], dtype: torch.dtype) -> bool:
    """Whether a file holds exactly these weights under these names in this number format. Tied ones are stored once."""
    known = {id(tensors[name]) for name in places if name in tensors}
    return known == {id(one) for one in tensors.values()} and all(
        name in tensors
        and tensors[name].shape == place.shape
        and place.dtype == (dtype if tensors[name].is_floating_point() else tensors[name].dtype)
        for name, place in places.items()
    )


def in_place(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; writing to them writes to the file. Empty for a file with an unknown dtype."""
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    begin = 8 + int.from_bytes(memory[:8], "little")
    header: dict[str, Any] = json.loads(memory[8:begin])
    header.pop("__metadata__", None)
    if any(entry["dtype"] not in DTYPES for entry in header.values()):
        return {}
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        dtype = DTYPES[entry["dtype"]]
        flat = torch.frombuffer(memory, dtype=dtype, count=(end - start) // dtype.itemsize, offset=begin + start)
        found[name] = flat.view(entry["shape"])
    return found
