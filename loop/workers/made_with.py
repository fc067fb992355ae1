"""What samples were made with besides settings and weights: the engine's version, device, threads and so on. A resume
on another machine compares it with the run's first samples."""

from functools import partial
from pathlib import Path

from loop.errors import UserError
from loop.store import tables
from loop.store.files import is_readable
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json

ENGINE = "engine."
"""How the keys begin that say what made a shard."""


def named_identity(identity: Json) -> Json:
    """What decides the samples besides settings and weights, by dotted key."""
    return {f"engine.{'kind' if key == 'engine' else key}": value for key, value in identity.items()}


def refuse_mixing(before: Json, now: Json) -> None:
    """UserError if the run's first samples were made with something else than the next ones would be."""
    if changed := mixed(before, now):
        raise UserError(
            f"The samples of this run were made with other settings or on another machine: {changed}. There, the same "
            "seeds can give other responses, so the rest would not continue the run exactly. Set it back or continue "
            "on a machine like the first, or accept samples of both kinds with sampling.exact=false, which records "
            "them as mixed."
        )


def mixed(before: Json, now: Json) -> str:
    """What differs between two samples' origins; empty if nothing does."""
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if before.get("engine.device") == now.get("engine.device") == "cuda":  # a GPU's results do not depend on the cores
        changed = [key for key in changed if key != "engine.threads"]
    return "; ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in changed)


def made_with(path: Path) -> Json:
    """What a shard of responses was made with, by dotted key; empty if it does not say so, or is no such shard."""
    spec = tables.notes_of(path).get("spec")
    return {key: value for key, value in spec.items() if key.startswith(ENGINE)} if isinstance(spec, dict) else {}


def first_made_with(run: RunFolder) -> Json | None:
    """What the run's first samples were made with; None if there are none that say so."""
    for folder in run.stages():
        for path in folder.responses:
            if is_readable(partial(tables.notes_of, path)) and (found := made_with(path)):
                return found
    return None
