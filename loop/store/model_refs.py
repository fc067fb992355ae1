"""Find the models that the next iteration needs; a fork checks that they exist, and prune keeps them."""

from dataclasses import dataclass
from pathlib import Path

from loop.config.settings import Config
from loop.store.run_folder import RunFolder
from loop.store.run_records import ModelRecord
from loop.store.run_state import ReferenceCounts


@dataclass(frozen=True, slots=True)
class Model:
    """A model: its folder, content hash and the iteration that produced it (0: the base model)."""

    path: Path
    hash: str
    iteration: int
    what: str = ""
    """Description, for a model that is neither the base model nor a candidate."""

    def __str__(self) -> str:
        return self.what or ("the base model" if self.iteration == 0 else f"the model of iteration {self.iteration}")

    @property
    def named(self) -> str:
        """Description with the first digits of the hash."""
        return f"{self} ({self.hash[:8]})"


def model_of(run: RunFolder, record: ModelRecord) -> Model:
    """The model that a decision names; paths inside the run folder are relative to it."""
    return Model(run.root / record.path, record.hash, record.iteration, record.what)


def model_record(run: RunFolder, model: Model) -> ModelRecord:
    """The model as a decision names it."""
    inside = model.path.is_relative_to(run.root)
    path = model.path.relative_to(run.root) if inside else model.path
    return ModelRecord(str(path), model.hash, model.iteration, model.what)


def models_needed(run: RunFolder, k: int, config: Config) -> list[Model]:
    """The models that iteration `k + 1` starts from, samples from or has as reference, the base model first, without
    a reference that the user names."""
    records = [run.base().policy, run.policy(k)]
    decision = run.decision(k) if k else None
    if decision and "previous" in (config.start, config.reference):
        records.append(decision.candidate)
    models = [model_of(run, record) for record in records]
    return list(dict.fromkeys(models + (averages(run, k)[-1:] if config.reference == "ema" else [])))


def averages(run: RunFolder, k: int) -> list[Model]:
    """The moving averages of `reference: ema` for iterations 1 to `k`; the last one is valid."""
    folders = [run.stage(i, "reference") for i in run.iterations() if 1 <= i <= k]
    made = [(folder, manifest) for folder in folders if (manifest := folder.manifest())]
    hashes = [(folder, manifest.counted(ReferenceCounts).weights_hash) for folder, manifest in made]
    return [Model(f.model, hash, f.iteration, f"the moving average for iteration {f.iteration}") for f, hash in hashes]
