"""The folder of one stage and its manifest, which is written last: its existence means that the stage is finished."""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from loop.redact import redacted, unchanged
from loop.store.files import FileRecord, is_intact, read_json, record_of, sealed_json, sha256_of, write_file
from loop.store.run_records import Json, as_record, read_record
from loop.store.tables import damaged, digest

T = TypeVar("T")
STAGES = ("sample", "judge", "pair", "train", "eval")
LOOKS = ("look-2", "look-3", "look-4", "look-5")
"""Further samples of a model on the gate prompts, which some decision asked for."""
REPEATED = ("train", "eval", "guard", *LOOKS)
"""Stages that a retry of a round goes through again."""
OPTIONAL = ("ease", "reference", "guard", *LOOKS)
"""Stages that only some settings ask for."""
MADE_WITH = (
    *(f"engine.{key}" for key in ("threads", "batch", "device", "version")),
    *(f"engine.{key}" for key in ("tensor_parallel", "pipeline_parallel", "args")),
    "threads",
)
"""Inputs of a stage that are recorded and do not invalidate it when they change."""
FURTHER = "shard-more"
"""Prefix of the shards of the second phase of adaptive sampling, whose names sort after those of the first."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished stage: its outputs, inputs, counts and duration."""

    stage: str
    iteration: int
    outputs: dict[str, FileRecord]
    inputs: Json
    counts: Json
    seconds: dict[str, float]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Identity of the stage's content: equal outputs, equal digest."""
        return digest({name: record.sha256 for name, record in self.outputs.items()})

    def counted(self, kind: type[T]) -> T:
        """The counts as a record. UserError if they do not have its shape."""
        return as_record(self.counts, kind, f"The manifest of stage {self.stage} of iteration {self.iteration}")

    @property
    def shards(self) -> list[str]:
        """Names of its tables of responses or verdicts, those of a first phase of sampling first."""
        return sorted(name for name in self.outputs if name.startswith("shard-"))


class StageFolder:
    """The folder of one stage of one iteration."""

    def __init__(self, path: Path, stage: str, iteration: int, attempt: int = 1) -> None:
        self.path, self.stage, self.iteration, self.attempt = path, stage, iteration, attempt
        self.pairs = self.relations("pairs")
        self.allocation = path / "allocation.json"
        """Further responses by prompt in the second phase of adaptive sampling."""
        self.answers = path / "answers.parquet"
        """Gold and bad answers that the pair stage added to the sampled responses; usually absent."""
        self.offline = path / "offline.parquet"
        """Answers of an offline preference set, besides the iteration's own; usually absent."""
        self.offline_prompts = path / "offline-prompts.parquet"
        """The prompts of these answers, as they are stored for the three sets."""
        self.model, self.work = path / "model", path / "work"
        self.last = self.work / "candidates" / "last"
        """With `train.select: best`, the model of the last step, besides earlier candidates."""
        self.steps = path / "steps.jsonl"
        self.running_steps = self.work / "steps.jsonl"
        """The step log of a round that is being trained; the finished one is `steps`."""
        self.metrics = path / "metrics.json"
        self.to_label, self.label_page = path / "to-label.jsonl", path / "to-label.html"
        """Items to label, as JSON lines and as a page for the browser."""
        self.labels = path / "labels.jsonl"
        """The labels that people provide."""
        self.pruned_path = path / "pruned.json"
        """Names of outputs that were pruned; the stage stays finished without them."""
        self.inputs_path = path / "inputs.json"
        """The inputs of a stage that was begun."""
        self.manifest_path = path / "manifest.json"

    def __str__(self) -> str:
        again = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"iteration {self.iteration}{again}, stage {self.stage}"

    def shard(self, number: int, prefix: str = "shard") -> Path:
        """Path of a shard; `prefix` separates several kinds in one folder."""
        return self.path / f"{prefix}-{number:03d}.parquet"

    def relations(self, kind: str) -> Path:
        """The pair stage's pairs, singles or groups."""
        return self.path / f"{kind}.parquet"

    def held_out(self, which: str) -> Path:
        """The answers of held-out pairs, in the base model's evaluation."""
        return self.path / f"{which}-answers.parquet"

    def logps(self, which: str) -> Path:
        """A model's log-probs of these answers."""
        return self.path / f"{which}-logps.parquet"

    @property
    def step_log(self) -> Path:
        """The finished step log, or else the running one."""
        return self.steps if self.steps.exists() else self.running_steps

    @property
    def responses(self) -> list[Path]:
        """Finished shards of responses, also of an unfinished stage."""
        found = sorted(self.path.glob("[a-z]*-[0-9]*.parquet"))
        return [path for path in found if "-verdicts-" not in path.name]

    def claim(self, inputs: Json) -> None:
        """Begin or continue the stage; work begun with other inputs is removed."""
        path = self.inputs_path
        if self.path.exists() and not (path.exists() and unchanged(read_json(path)["inputs"], inputs)):
            shutil.rmtree(self.path)
        write_file(path, sealed_json({"inputs": redacted(inputs)}))

    def keep_only(self, wanted: list[Path]) -> None:
        """Remove all other shards: with other settings, an unfinished stage may have been cut in another way."""
        for path in set(self.path.glob("shard-*.parquet")) - set(wanted):
            path.unlink()

    def manifest(self) -> Manifest | None:
        """The manifest, or None while the stage is not finished."""
        if not self.manifest_path.exists():
            return None
        return read_record(self.manifest_path, Manifest)

    def present(self, manifest: Manifest) -> dict[str, FileRecord]:
        """The outputs that were not pruned."""
        pruned = self.pruned()
        return {name: record for name, record in manifest.outputs.items() if name not in pruned}

    def pruned(self) -> list[str]:
        """Names of the outputs that were pruned. UserError if their file is damaged."""
        return read_record(self.pruned_path, list[str]) if self.pruned_path.exists() else []

    def finish(
        self, files: list[Path], *, inputs: Json, counts: Json, seconds: dict[str, float], versions: dict[str, str]
    ) -> Manifest:
        """Write the manifest last: the stage is finished, and its files are read-only by convention."""
        outputs = {str(path.relative_to(self.path)): record_of(path) for path in sorted(files)}
        manifest = Manifest(self.stage, self.iteration, outputs, redacted(inputs), counts, seconds, versions)
        write_file(self.manifest_path, sealed_json(asdict(manifest)))
        for leftover in self.path.glob(".*.partial-*"):  # of attempts that were killed
            leftover.unlink(missing_ok=True)
        return manifest

    def check(self, manifest: Manifest, *, verify: bool) -> None:
        """UserError unless every output that was not pruned has the recorded size and time, or the recorded content
        (always checked with `verify`)."""
        for name, record in self.present(manifest).items():
            path = self.path / name
            if not path.exists():
                raise damaged(path, "it is missing")
            stat = path.stat()
            if stat.st_size != record.size:
                raise damaged(path, f"it has {stat.st_size} bytes instead of {record.size}")
            if (verify or stat.st_mtime_ns != record.mtime_ns) and sha256_of(path) != record.sha256:
                raise damaged(path, "its content has changed")

    def damaged(self, manifest: Manifest) -> list[Path]:
        """Outputs that are missing or whose content has changed; hashes every file."""
        return [self.path / n for n, r in self.present(manifest).items() if not is_intact(self.path / n, r)]

    def unlisted(self, manifest: Manifest) -> list[Path]:
        """Finished files that the manifest does not list: itself, items to label, labels, descriptions of a model."""
        found = sorted(path for folder in (self.path, self.model) for path in folder.glob("[!.]*") if path.is_file())
        return [path for path in found if str(path.relative_to(self.path)) not in manifest.outputs]

    def repair(self, manifest: Manifest) -> list[Path]:
        """Remove every damaged output, and the manifest, so that only these are made again."""
        bad = self.damaged(manifest)
        if bad and self.stage in ("train", "reference"):  # a model folder is made again as a whole
            shutil.rmtree(self.path)
        elif bad:
            for path in bad:
                path.unlink(missing_ok=True)
            self.manifest_path.unlink()
        return bad


def is_further(shard: Path) -> bool:
    """Whether it is a shard of the second phase of adaptive sampling."""
    return shard.name.startswith(FURTHER)
