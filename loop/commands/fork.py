"""Command `fork`: a run that continues from a finished iteration of another, which is only read. Outputs become hard
links (copies where the file system has none), records are copied. The folder is renamed when it is complete."""

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from loop.campaign.context import Campaign, StopPoint
from loop.campaign.run import walk
from loop.campaign.stages.limits import check_files
from loop.config.load import LoadedConfig, diff
from loop.config.settings import JudgeConfig
from loop.config.yaml_text import to_yaml
from loop.errors import StoppedAtUntil, UserError, explain_obstacle
from loop.redact import redacted, setting_text, unchanged
from loop.store.files import new_folder, share, write_file
from loop.store.lineage import Lineage, Parent, changes_of, inherited_caches, settings_of, write_lineage
from loop.store.locate import check_path
from loop.store.model_folder import weights_hash
from loop.store.model_refs import models_needed
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json
from loop.store.stage import OPTIONAL, STAGES, StageFolder
from loop.view.display import Display
from loop.view.run_log import Level
from loop.view.status import collect, write_metrics
from loop.workers.pool import WorkerPool

IN_TURNS = ("sample", "judge", "pair")
"""Stages that an online iteration finishes only together with `train`."""


@dataclass(frozen=True, slots=True)
class ForkResult:
    """A new fork, and how many files it shares with its parent or holds as copies."""

    run: RunFolder
    parent: RunFolder
    iteration: int
    changes: list[tuple[str, object, object]]
    linked: int
    copied: int
    stage: str = ""
    """The last stage of the iteration that was taken over; empty if all were."""

    def as_json(self) -> Json:
        """Plain values."""
        changes = [{"key": key, "from": old, "to": new} for key, old, new in self.changes]
        where = {"run": str(self.run), "parent": str(self.parent), "iteration": self.iteration}
        where |= {"stage": self.stage} if self.stage else {}
        return where | {"changes": changes, "linked": self.linked, "copied": self.copied}


class ReadOnlyCampaign(Campaign):
    """Walks through the stages to check them; raises if one would have to run."""

    def begin_work(self) -> None:
        """UserError: a stage of the parent is not finished."""
        raise UserError(f"{self.run} is not finished that far; continue it with `prefloop run {self.run}`.")


class Silent(Display):
    """Prints nothing."""

    def say(self, text: str, level: Level = "info", details: Json | None = None) -> None:
        """Leave it out."""


class Origin(NamedTuple):
    """Where a fork begins: after an iteration of its parent, or after a stage of one."""

    run: RunFolder
    iteration: int
    stage: str = ""

    def __str__(self) -> str:
        return f"{self.run.name}@{self.iteration}{self.stage and f'/{self.stage}'}"

    @property
    def whole(self) -> int:
        """The last iteration that is taken over as a whole."""
        return self.iteration - bool(self.stage)

    @property
    def stages(self) -> list[StageFolder]:
        """The stages to take over, those of every attempt at a whole iteration."""
        run, k = self.run, self.iteration
        folders = [folder for i in range(1, self.whole + 1) for folder in run.stages_of(i, run.attempts(i))]
        if self.stage:
            folders += [run.stage(k, name) for name in ("reference", *STAGES[: STAGES.index(self.stage) + 1])]
        asked_for = [folder for folder in folders if folder.stage not in OPTIONAL or folder.manifest()]
        ease = run.stage(0, "ease")
        return [run.prompts(), *([ease] if ease.manifest() else []), run.stage(0, "eval"), *asked_for]

    @property
    def missing(self) -> list[str]:
        """Descriptions of what is not finished there."""
        found = [str(folder) for folder in self.stages if folder.manifest() is None]
        decided = range(self.whole + 1)
        return found + [f"the decision of iteration {i}" for i in decided if not self.run.promotion(i).exists()]


def fork(parent: RunFolder, k: int, target: RunFolder, overrides: Sequence[str], *, stage: str = "") -> ForkResult:
    """Make `target` a run continuing from iteration `k` of `parent` (0: its base model) with changed settings; with a
    `stage`, from that stage of the iteration. UserError if that is unfinished or damaged, if a change would invalidate
    it, or if `target` exists."""
    refuse_taken(target)
    origin = Origin(parent, k, stage)
    before, loaded = settings_of(parent), settings_of(parent, overrides)
    check_forkable(origin, before, loaded)
    try:
        with new_folder(target.root) as folder:
            partial = RunFolder(folder)
            count = _adopt(origin, partial)
            changes = diff(before.raw, loaded.raw)
            _record(origin, partial, target.name, changes)
            write_file(partial.config, to_yaml(loaded.raw).encode("utf-8"))
            write_metrics(partial, collect(partial))
    except OSError as error:
        problem = f"{target} could not be created: {explain_obstacle(error)}"
        raise UserError(f"{problem} Nothing is left of it, and {parent} is unchanged.") from error
    return ForkResult(target, parent, k, changes, count["linked"], count["copied"], stage)


def refuse_taken(target: RunFolder) -> None:
    """UserError unless a run can be made there."""
    check_path(target.root, "a run")
    if target.root.exists():
        what = "is a run already" if target.exists() else "exists already"
        raise UserError(f"{target} {what}; choose another name for the fork, or remove that folder.")


def check_forkable(origin: Origin, before: LoadedConfig, loaded: LoadedConfig) -> None:
    """UserError unless the parent is finished to that point and the settings `loaded` leave all of that valid."""
    parent, k, stage = origin
    if missing := origin.missing:
        earlier = f"Fork an earlier one ({parent.name}@{k - 1}), or finish" if k else "Finish"
        raise UserError(
            f"{f'Stage {stage} of iteration' if stage else 'Iteration'} {k} of {parent} is not finished "
            f"({', '.join(missing)} missing), so it cannot be forked. {earlier} it with `prefloop run {parent}`."
        )
    if loaded.iterations < k:
        raise UserError(f"iterations is {loaded.iterations}, but the fork begins with {k} finished ones; raise it.")
    _check_whole(origin, loaded)
    check_settings(origin, before, loaded)


def check_settings(origin: Origin, before: LoadedConfig, loaded: LoadedConfig) -> None:
    """UserError unless what is finished there is also valid with the settings `loaded`. Hashes nothing."""
    parent, k, stage = origin
    if stage in IN_TURNS and loaded.at(k).train.online:
        raise UserError(
            f"{origin} cannot be forked: iteration {k} is online, so its slices are sampled, judged, paired and "
            f"trained in turns. Fork {parent.name}@{k}/train, or {parent.name}@{k - 1}."
        )
    display = Silent(to_stderr=True)
    until = StopPoint(k, stage) if stage else None
    campaign = ReadOnlyCampaign(parent, loaded, WorkerPool(parent, loaded.base, display), display, until=until)
    campaign.judge = _judge(before.base.judge, loaded.base.judge, parent.stage(1, "judge"))
    campaign.eval_judge = _judge(before.base.eval_judge, loaded.base.eval_judge, parent.stage(0, "eval"))
    check_files(campaign)
    with suppress(StoppedAtUntil):
        walk(campaign, k)


def _check_whole(origin: Origin, loaded: LoadedConfig) -> None:
    parent = origin.run
    for folder in origin.stages:
        manifest = folder.manifest()
        assert manifest is not None
        if bad := folder.damaged(manifest):
            raise UserError(
                f"{origin} cannot be forked: {', '.join(map(str, bad))} is missing or has changed "
                f"since it was written. Put the original back, or rebuild it with `prefloop run {parent} --repair`."
            )
    pruned = {folder.model for folder in parent.stages() if folder.pruned_path.exists()}
    for model in models_needed(parent, origin.whole, loaded.base):
        if model.path in pruned:
            raise UserError(
                f"{origin} cannot be forked: {model} was pruned. Fork an iteration whose model is still there."
            )
        found = weights_hash(model.path) if model.path.is_dir() else "missing"
        if found != model.hash:
            raise UserError(
                f"{origin} cannot be forked: {model} should be in {model.path} with the hash "
                f"{model.hash[:12]}, and what is there is {found[:12]}. Put the original folder back."
            )


def _judge(before: JudgeConfig | None, now: JudgeConfig | None, folder: StageFolder) -> dict[str, object]:
    """The fingerprint on record, if the settings still name the same judge. (A run tests the judge itself.)"""
    if now is None:
        return {}
    manifest = folder.manifest()
    same = before is not None and unchanged(redacted([before.name, before.args]), [now.name, now.args])
    if same and manifest is not None:
        return dict(manifest.inputs["judge"])
    return {"name": now.name, "args": now.args}


def _adopt(origin: Origin, target: RunFolder) -> Counter[str]:
    """Link or copy the finished work into another run; returns the number of files by kind."""
    parent = origin.run
    count: Counter[str] = Counter()
    for folder in origin.stages:
        manifest = folder.manifest()
        assert manifest is not None
        for name in folder.present(manifest):
            linked = share(folder.path / name, target.root / folder.path.relative_to(parent.root) / name)
            count["linked" if linked else "copied"] += 1
        _copy(parent, folder.unlisted(manifest), target)
        count["copied"] += len(folder.unlisted(manifest))
    records = [parent.promotion(i) for i in range(origin.whole + 1)]
    records += [parent.named_reference] * parent.named_reference.exists()
    _copy(parent, records, target)
    count["copied"] += len(records)
    return count


def _copy(parent: RunFolder, files: Sequence[Path], target: RunFolder) -> None:
    """Files that may be edited are never shared."""
    for path in files:
        copy = target.root / path.relative_to(parent.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


def _record(origin: Origin, run: RunFolder, name: str, changes: Sequence[tuple[str, object, object]]) -> None:
    """The lineage of a fork: where it comes from, by hashes, and what was changed."""
    parent, k, stage = origin
    manifests = {str(folder): folder.manifest() for folder in origin.stages}
    caches = [parent.verdict_cache.absolute(), *inherited_caches(parent)]
    recorded = Parent(
        run=str(parent.root.absolute()),
        iteration=k,
        time=round(time.time(), 3),
        policy=parent.policy(origin.whole),
        digests={stage: manifest.digest for stage, manifest in manifests.items() if manifest},
        changes=changes_of(changes),
        stage=stage,
    )
    existing = tuple(str(path) for path in caches if path.exists())
    run.write_format()
    write_lineage(run, Lineage(name, (), recorded, existing))
    run.event("forked", parent=str(parent.root.absolute()), iteration=k, stage=stage)


def print_forked(done: ForkResult) -> None:
    """Print the new run and next step."""
    what = f"iterations 0 to {done.iteration}" if done.iteration else "the base model's evaluation"
    what = f"iteration {done.iteration} up to its stage {done.stage}, and all before it," if done.stage else what
    print(
        f"{done.run} begins with {what} of {done.parent}: {done.linked} files by hard links, {done.copied} as copies."
    )
    for key, old, new in done.changes:
        print(f"  {key}: {setting_text(old, key)} → {setting_text(new, key)}")
    print(f"Continue with: prefloop run {done.run}")
