"""Command `prune`: removes weights of finished iterations, and what killed attempts left, if no rule keeps them.
Everything else stays, and so do the weights that the next iteration starts from or uses as reference."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loop.errors import UserError
from loop.format import in_bytes
from loop.measure.evaluation import read_evaluation
from loop.store.files import to_json, write_file
from loop.store.lineage import settings_of
from loop.store.model_refs import averages
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json
from loop.store.stage import StageFolder


@dataclass(frozen=True, slots=True)
class Rules:
    """Which weights to keep besides those a resume needs."""

    best: bool = True
    """The iteration with the best promotion metric on the gate prompts."""
    promoted: bool = True
    """Every iteration that was promoted."""
    last: int = 1
    """How many of the last finished iterations."""


@dataclass(frozen=True, slots=True)
class Removal:
    """Something removable: files of one folder, or a whole work folder."""

    folder: StageFolder
    what: str
    paths: tuple[Path, ...]
    weights: bool = False

    def bytes(self, *, shared: bool) -> int:
        """Their size: of files that this run alone holds, or of those that a fork holds too and that free nothing."""
        files = [file for path in self.paths for file in (path.rglob("*") if path.is_dir() else (path,))]
        return sum(f.stat().st_size for f in files if f.is_file() and (f.stat().st_nlink > 1) == shared)


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What stays, by iteration and reason, and what can go."""

    kept: dict[int, str]
    removals: list[Removal]

    @property
    def freed(self) -> int:
        """Bytes freed by removing all of it."""
        return sum(removal.bytes(shared=False) for removal in self.removals)

    def as_json(self) -> Json:
        """Plain values."""
        removals = [
            {"what": r.what, "paths": list(map(str, r.paths))}
            | {"bytes": r.bytes(shared=False), "shared_bytes": r.bytes(shared=True)}
            for r in self.removals
        ]
        return {"kept": self.kept, "removals": removals, "freed": self.freed}


def plan_prune(run: RunFolder, rules: Rules) -> PrunePlan:
    """What can be removed under the rules. UserError for a negative number."""
    if rules.last < 0:
        raise UserError(f"--keep-last is {rules.last}; it is 0 or more.")
    kept = kept_iterations(run, rules)
    return PrunePlan(kept, [*_weights(run, kept), *_leftovers(run)])


def kept_iterations(run: RunFolder, rules: Rules) -> dict[int, str]:
    """Iterations whose weights stay, with the first reason that holds."""
    decisions = {k: decision for k in run.iterations() if k and (decision := run.decision(k))}
    kept: dict[int, str] = {}
    if not decisions:
        return kept
    last = decisions[max(decisions)]
    kept[last.policy.iteration] = "the run continues from it"
    base = settings_of(run).base
    if "previous" in (base.start, base.reference):
        kept.setdefault(last.candidate.iteration, "start or reference is previous")
    if rules.best and (best := _best(run, sorted(decisions), base.promote.metric)) is not None:
        kept.setdefault(best, "best on the gate prompts")
    for k, decision in decisions.items():
        if rules.promoted and decision.promoted:
            kept.setdefault(k, "promoted")
    for k in sorted(decisions)[len(decisions) - min(rules.last, len(decisions)) :]:
        kept.setdefault(k, f"one of the last {rules.last}")
    return dict(sorted(kept.items()))


def _best(run: RunFolder, iterations: Sequence[int], metric: str) -> int | None:
    """The iteration with the highest metric on the gate prompts, the earliest if several share it."""
    gates = {k: read_evaluation(run.latest(k, "eval").metrics).gate.metric(metric) for k in iterations}
    known = {k: gate.value for k, gate in gates.items() if gate is not None and gate.value is not None}
    return max(known, key=lambda k: known[k]) if known else None


def _weights(run: RunFolder, kept: dict[int, str]) -> Iterator[Removal]:
    """Weights of iterations that no rule keeps, of attempts that were tried again, and of averages that moved on."""
    decided = [k for k in run.iterations() if k and run.promotion(k).exists()]
    for k in decided:
        last = run.attempts(k)
        for n in range(1, last + 1):
            if n < last or k not in kept:
                again = f", attempt {n}" if last > 1 else ""
                yield from _weights_of(run.stage(k, "train", n), f"weights of iteration {k}{again}")
    for average in averages(run, max(decided, default=0))[:-1]:
        yield from _weights_of(run.stage(average.iteration, "reference"), str(average))


def _weights_of(folder: StageFolder, what: str) -> Iterator[Removal]:
    manifest = folder.manifest()
    paths = [folder.path / name for name in (manifest.outputs if manifest else {}) if name.endswith(".safetensors")]
    if present := tuple(path for path in paths if path.exists()):
        yield Removal(folder, what, present, weights=True)


def _leftovers(run: RunFolder) -> Iterator[Removal]:
    """Checkpoints and half-written files of stages that are finished; those of unfinished ones serve a resume."""
    for folder in run.stages():
        if folder.manifest() is None:
            continue
        if folder.work.exists():
            yield Removal(folder, f"checkpoints of {folder}", (folder.work,))
        if partials := tuple(sorted(folder.path.rglob(".*.partial-*"))):
            yield Removal(folder, f"half-written files of {folder}", partials)


def remove(run: RunFolder, plan: PrunePlan) -> None:
    """Remove what the plan names. The record comes first, so that after a kill no stage seems damaged."""
    for removal in plan.removals:
        if removal.weights:
            names = {str(file.relative_to(removal.folder.path)) for file in removal.paths}
            write_file(removal.folder.pruned_path, to_json(sorted(names.union(removal.folder.pruned()))))
        for target in removal.paths:
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    run.event("pruned", removed=[removal.what for removal in plan.removals])


def print_plan(run: RunFolder, plan: PrunePlan) -> None:
    """Print what would be kept and what would be removed."""
    for k, why in plan.kept.items():
        print(f"keep    {f'weights of iteration {k}' if k else 'the base model'}: {why}")
    for removal in plan.removals:
        shared = removal.bytes(shared=True)
        also = f" ({in_bytes(shared)} more are shared with a fork and stay there)" if shared else ""
        print(f"remove  {removal.what}: {in_bytes(removal.bytes(shared=False))}{also}")
    print(f"{in_bytes(plan.freed)} would be freed in {run}." if plan.removals else f"Nothing to remove in {run}.")
