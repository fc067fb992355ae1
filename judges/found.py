"""Room judges, models by name for a judge that runs alone: a local folder comes in, the folder and its hash go out.

In a campaign the loop hands in its own way to find models, which also knows the hub and packages.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

DECIDING = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""The files that decide what a model says: weights, settings, tokenizer."""


@dataclass(frozen=True, slots=True)
class Found:
    """A Hugging Face folder, and a hash over all that decides what its model says."""

    folder: Path
    digest: str


def find_folder(name: str) -> Found:
    """The model in a local folder. JudgeError if there is none."""
    from judges.contract import JudgeError

    folder = Path(name).expanduser().absolute()
    if not (folder / "config.json").is_file():
        raise JudgeError(
            f"The judge's model {name!r} is no folder with a config.json (looked at {folder}). Give the folder of a "
            f"Hugging Face model; hub ids are known inside a campaign and to `prefloop judge test`."
        )
    names = sorted({path.name for pattern in DECIDING for path in folder.glob(pattern)})
    total = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return Found(folder, total.hexdigest())
