"""Command `fork`: a run that continues from a finished iteration of another, which is only read. Outputs become hard
links (copies where the file system has none), records are copied. The folder is renamed when it is complete."""

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loop.campaign.context import Campaign
from loop.campaign.run import walk
from loop.campaign.stages.limits import check_files
from loop.config.load import LoadedConfig, diff
from loop.config.settings import JudgeConfig
from loop.config.yaml_text import to_yaml
from loop.errors import UserError, explain_obstacle
from loop.redact import redacted, setting_text, unchanged
from loop.store.files import new_folder, share, write_file
from loop.store.lineage import Lineage, Parent, changes_of, inherited_caches, settings_of, write_lineage
from loop.store.locate import check_path
from loop.store.model_folder import weights_hash
from loop.store.model_refs import models_needed
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json
from loop.store.stage import OPTIONAL, StageFolder
from loop.view.display import Display
from loop.view.status import collect, write_metrics
from loop.workers.pool import WorkerPool


@dataclass(frozen=True, slots=True)
class ForkResult:
    """A new fork, and how many files it shares with its parent or holds as copies."""

    run: RunFolder
    parent: RunFolder
    iteration: int
    changes: list[tuple[str, object, object]]
    linked: int
    copied: int

    def as_json(self) -> Json:
        """Plain values."""
        changes = [{"key": key, "from": old, "to": new} for key, old, new in self.changes]
        where = {"run": str(self.run), "parent": str(self.parent), "iteration": self.iteration}
        return where | {"changes": changes, "linked": self.linked, "copied": self.copied}


class ReadOnlyCampaign(Campaign):
    """Walks through the stages to check them; raises if one would have to run."""

    def begin_work(self) -> None:
        """UserError: a stage of the parent is not finished."""
        raise UserError(f"{self.run} is not finished that far; continue it with `prefloop run {self.run}`.")


def fork(parent: RunFolder, k: int, target: RunFolder, overrides: Sequence[str]) -> ForkResult:
    """Make `target` a run continuing from iteration `k` of `parent` (0: its base model) with changed settings.
    UserError if that iteration is unfinished or damaged, if a change would invalidate it, or if `target` exists."""
    refuse_taken(target)
    before, loaded = settings_of(parent), settings_of(parent, overrides)
    check_forkable(parent, k, before, loaded)
    try:
        with new_folder(target.root) as folder:
            partial = RunFolder(folder)
            count = _adopt(parent, k, partial)
            changes = diff(before.raw, loaded.raw)
            _record(parent, k, partial, target.name, changes)
            write_file(partial.config, to_yaml(loaded.raw).encode("utf-8"))
            write_metrics(partial, collect(partial))
    except OSError as error:
        problem = f"{target} could not be created: {explain_obstacle(error)}"
        raise UserError(f"{problem} Nothing is left of it, and {parent} is unchanged.") from error
    return ForkResult(target, parent, k, changes, count["linked"], count["copied"])


def refuse_taken(target: RunFolder) -> None:
    """UserError unless a run can be made there."""
    check_path(target.root, "a run")
    if target.root.exists():
        what = "is a run already" if target.exists() else "exists already"
        raise UserError(f"{target} {what}; choose another name for the fork, or remove that folder.")


def check_forkable(parent: RunFolder, k: int, before: LoadedConfig, loaded: LoadedConfig) -> None:
    """UserError unless the parent is complete to iteration `k` and the settings `loaded` leave all of that valid."""
    if missing := unfinished(parent, k):
        earlier = f"Fork an earlier one ({parent.name}@{k - 1}), or finish" if k else "Finish"
        raise UserError(
            f"Iteration {k} of {parent} is not finished ({', '.join(missing)} missing), so it cannot be forked. "
            f"{earlier} it with `prefloop run {parent}`."
        )
    if loaded.iterations < k:
        raise UserError(f"iterations is {loaded.iterations}, but the fork begins with {k} finished ones; raise it.")
    _check_whole(parent, k, loaded)
    display = Display(quiet=True)
    campaign = ReadOnlyCampaign(parent, loaded, WorkerPool(parent, loaded.base, display), display)
    campaign.judge = _judge(before.base.judge, loaded.base.judge, parent.stage(1, "judge"))
    campaign.eval_judge = _judge(before.base.eval_judge, loaded.base.eval_judge, parent.stage(0, "eval"))
    check_files(campaign)
    walk(campaign, k)


def unfinished(run: RunFolder, k: int) -> list[str]:
    """Describe what iterations 0 to `k` lack."""
    folders = finished_stages(run, k)
    missing = [str(folder) for folder in folders if folder.manifest() is None]
    return missing + [f"the decision of iteration {i}" for i in range(k + 1) if not run.promotion(i).exists()]


def finished_stages(run: RunFolder, k: int) -> list[StageFolder]:
    """The stages that a run with `k` finished iterations has, those of every attempt that was made."""
    folders = [folder for i in range(1, k + 1) for folder in run.stages_of(i, run.attempts(i))]
    asked_for = [folder for folder in folders if folder.stage not in OPTIONAL or folder.manifest()]
    ease = run.stage(0, "ease")
    return [run.prompts(), *([ease] if ease.manifest() else []), run.stage(0, "eval"), *asked_for]


def _check_whole(parent: RunFolder, k: int, loaded: LoadedConfig) -> None:
    for folder in finished_stages(parent, k):
        manifest = folder.manifest()
        assert manifest is not None
        if bad := folder.damaged(manifest):
            raise UserError(
                f"{parent} cannot be forked at iteration {k}: {', '.join(map(str, bad))} is missing or has changed "
                f"since it was written. Put the original back, or rebuild it with `prefloop run {parent} --repair`."
            )
    pruned = {folder.model for folder in parent.stages() if folder.pruned_path.exists()}
    for model in models_needed(parent, k, loaded.base):
        if model.path in pruned:
            raise UserError(
                f"{parent} cannot be forked at iteration {k}: {model} was pruned. Fork an iteration whose model is "
                "still there."
            )
        found = weights_hash(model.path) if model.path.is_dir() else "missing"
        if found != model.hash:
            raise UserError(
                f"{parent} cannot be forked at iteration {k}: {model} should be in {model.path} with the hash "
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


def _adopt(parent: RunFolder, k: int, target: RunFolder) -> Counter[str]:
    """Link or copy the finished work of iterations 0 to `k` into another run; returns the number of files by kind."""
    count: Counter[str] = Counter()
    for folder in finished_stages(parent, k):
        manifest = folder.manifest()
        assert manifest is not None
        for name in folder.present(manifest):
            linked = share(folder.path / name, target.root / folder.path.relative_to(parent.root) / name)
            count["linked" if linked else "copied"] += 1
        _copy(parent, folder.unlisted(manifest), target)
        count["copied"] += len(folder.unlisted(manifest))
    records = [parent.promotion(i) for i in range(k + 1)] + [parent.named_reference] * parent.named_reference.exists()
    _copy(parent, records, target)
    count["copied"] += len(records)
    return count


def _copy(parent: RunFolder, files: Sequence[Path], target: RunFolder) -> None:
    """Files that may be edited are never shared."""
    for path in files:
        copy = target.root / path.relative_to(parent.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


def _record(
    parent: RunFolder, k: int, run: RunFolder, name: str, changes: Sequence[tuple[str, object, object]]
) -> None:
    """The lineage of a fork: where it comes from, by hashes, and what was changed."""
    manifests = {str(folder): folder.manifest() for folder in finished_stages(parent, k)}
    caches = [parent.verdict_cache.absolute(), *inherited_caches(parent)]
    origin = Parent(
        run=str(parent.root.absolute()),
        iteration=k,
        time=round(time.time(), 3),
        policy=parent.policy(k),
        digests={stage: manifest.digest for stage, manifest in manifests.items() if manifest},
        changes=changes_of(changes),
    )
    existing = tuple(str(path) for path in caches if path.exists())
    run.write_format()
    write_lineage(run, Lineage(name, (), origin, existing))
    run.event("forked", parent=str(parent.root.absolute()), iteration=k)


def print_forked(done: ForkResult) -> None:
    """Print the new run and next step."""
    what = f"iterations 0 to {done.iteration}" if done.iteration else "the base model's evaluation"
    print(
        f"{done.run} begins with {what} of {done.parent}: {done.linked} files by hard links, {done.copied} as copies."
    )
    for key, old, new in done.changes:
        print(f"  {key}: {setting_text(old, key)} → {setting_text(new, key)}")
    print(f"Continue with: prefloop run {done.run}")
