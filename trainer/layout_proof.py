"""Keeps the results of the layout probe in the user's cache: a model of the same architecture, config, versions,
device and number format is probed once. A proof that cannot be read or written is made again."""

import hashlib
import json
import math
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer.data import PreferenceData
from trainer.files import default_cache, publish_file
from trainer.layout_probe import MOST_GAP, Gaps, counts_places, narrowest_window, probe_rows, sample_trees
from trainer.parallel.team import ALONE, Team
from trainer.scorer import RowScorer

FOLDER = "layouts"
"""In the cache: a file for each proof, named after the hash of its key."""
OWN = ("layout_probe.py", "scorer.py", "tree/attention.py", "tree/branches.py", "tree/encode.py")
"""The files of this package that decide what a model makes of a tree row."""
LIBRARIES = ("torch", "transformers", "peft")
NOT_COMPARED = ("_name_or_path", "base_model_name_or_path", "transformers_version", "dtype", "architectures")
"""Entries of a config that say where the weights come from; class and dtype are those of the loaded model."""
Key = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Proof:
    """What a probe found, and on what."""

    tree: float | None
    """`Gaps.tree`; None if it is infinite."""
    plain: float
    longest: int
    """Tokens of the longest sequence of its data."""
    row_tokens: int

    @property
    def gaps(self) -> Gaps:
        """The result of the probe."""
        return Gaps(math.inf if self.tree is None else self.tree, self.plain)

    def covers(self, longest: int, row_tokens: int, *, lengths_matter: bool) -> bool:
        """Whether it holds for these data: of a model for which lengths matter, longer sequences show more faults."""
        if not lengths_matter:
            return True
        if self.gaps.tree <= MOST_GAP:
            return longest <= self.longest and row_tokens <= self.row_tokens
        return longest >= self.longest and row_tokens >= self.row_tokens


def proven_gaps(
    scorer: RowScorer, data: PreferenceData, *, device: torch.device, seed: int, row_tokens: int, team: Team = ALONE
) -> Gaps:
    """`probe_rows`, unless an earlier probe of such a model holds for these data. Every process must call it."""
    key = proof_key(scorer.model, device)
    path = default_cache() / FOLDER / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:40]}.json"
    known = team.gather(read_proof(path, key))[0]
    matter = lengths_matter(scorer.model, row_tokens)
    if known is not None and known.covers(data.longest, row_tokens, lengths_matter=matter):
        return known.gaps
    gaps = probe_rows(scorer, data, device=device, seed=seed, row_tokens=row_tokens)
    if team.leads and gaps.plain <= MOST_GAP and shows_enough(data, seed):
        tree = gaps.tree if math.isfinite(gaps.tree) else None
        write_proof(path, key, Proof(tree, gaps.plain, data.longest, row_tokens))
    return gaps


def proof_key(model: Any, device: torch.device) -> Key:
    """What decides whether a model reads tree rows correctly, apart from its weights and the data."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapters = [config.to_dict() for config in getattr(model, "peft_config", {}).values()]
    own = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in OWN))
    return {
        "architecture": type(inner).__name__,
        "attention": inner.config.get_text_config()._attn_implementation,
        "config": _digest(inner.config.to_dict()),
        "adapters": _digest(adapters),
        "versions": {name: version(name) for name in LIBRARIES} | {"prefloop": own.hexdigest()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}",
        "dtype": sorted({str(parameter.dtype) for parameter in model.parameters()}),
    }


def lengths_matter(model: Any, row_tokens: int) -> bool:
    """Whether long sequences or rows may be read wrongly where short ones are not: windows, scaled positions."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    scaled = [one for one in (rope, *rope.values()) if isinstance(one, dict)]
    kinds = {one["rope_type"] for one in scaled if "rope_type" in one}
    return counts_places(model, row_tokens) or narrowest_window(model) is not None or bool(kinds - {"default"})


def shows_enough(data: PreferenceData, seed: int) -> bool:
    """Whether the probe reads two prompts at least, the second with responses of more than one token."""
    trees = sample_trees(data, seed)
    return len(trees) > 1 and all(len(ids) > 1 for ids in trees[1][1])


def read_proof(path: Path, key: Key) -> Proof | None:
    """The proof in a file; None if there is none, or the file is damaged or belongs to another key."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("key") != key:
            return None
        proof = Proof(**found)
        numbers = (0.0 if proof.tree is None else proof.tree, proof.plain, proof.longest, proof.row_tokens)
        return proof if all(math.isfinite(number) and number >= 0 for number in numbers) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_proof(path: Path, key: Key, proof: Proof) -> None:
    """Write it whole or not at all; a folder that cannot be written only costs the next round its probe."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"key": key} | asdict(proof)), encoding="utf-8")
        publish_file(partial, path)
    except OSError:
        return


def _digest(values: Any) -> str:
    """sha256 over what is compared of these values."""
    text = json.dumps(_without(values, NOT_COMPARED), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _without(value: Any, names: tuple[str, ...]) -> Any:
    """The value without these keys, at any depth."""
    if isinstance(value, dict):
        return {str(key): _without(one, names) for key, one in value.items() if key not in names}
    if isinstance(value, set):
        return sorted(map(str, value))
    return [_without(one, names) for one in value] if isinstance(value, list | tuple) else value
