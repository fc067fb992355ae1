"""Run folder: the only module that knows its paths, its manifests and its lock.

A stage is finished when its manifest exists.

    runs/NAME/  run.json  campaign.yaml  lineage.json  events.jsonl  metrics.jsonl  lock  logs/
      prompts/{train,gate,test}.parquet
      cache/{verdicts.sqlite,iterations/,report/}  trackers.jsonl  trackers/  report.html  report-data/
      iter-001/{sample,judge,pair,train,eval}/  shard-000.parquet …  manifest.json      promotion.json
      iter-001/attempt-2/{train,eval,guard}/  a retry of the round
      iter-001/{reference,guard}/  the average of `reference: ema`, what the gate's limits measured
      iter-001/look-2/  further samples on the gate prompts, of the candidate or as a later one's incumbent
      iter-000/ease/  how easy the base model finds given pairs
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loop.errors import UserError
from loop.redact import redacted
from loop.store.files import (
    PARTIAL,
    append_line,
    has_its_checksum,
    is_readable,
    last_rows,
    read_lines,
    take_lock,
    to_json,
    write_file,
)
from loop.store.run_records import (
    BaseRecord,
    Event,
    Json,
    ModelRecord,
    PromotionRecord,
    ReferenceRecord,
    as_record,
    read_record,
)
from loop.store.stage import LOOKS, REPEATED, STAGES, Manifest, StageFolder

FORMAT = 1
"""Format of a run folder, in run.json; no other is read. Raise it when another version would misread a folder."""


@dataclass(frozen=True, slots=True)
class RecordPaths:
    """Where the decision, evaluations and manifests of an iteration lie."""

    decision: str
    evaluations: list[str]
    manifests: list[str]


class RunFolder:
    """All of one campaign on disk."""

    def __init__(self, root: Path) -> None:
        self.root, self.name, self._shown = root.absolute(), root.name, str(root)
        self.about = root / "run.json"
        """The folder's format; the first file of a new run."""
        self.config = root / "campaign.yaml"
        self.lineage = root / "lineage.json"
        self.events = root / "events.jsonl"
        self.metrics = root / "metrics.jsonl"
        self.lock = root / "lock"
        """The process that works on the run, or the last one that did."""
        self.tracker_log = root / "trackers.jsonl"
        """The points that trackers have received, as JSON lines."""
        self.trackers = root / "trackers"
        """Files that trackers write."""
        self.report = root / "report.html"
        self.verdict_cache = root / "cache" / "verdicts.sqlite"
        """Verdicts that cost money or minutes; forks of this run read it."""
        self.heard: Callable[[Json], None] = lambda line: None
        """Called with every new line of events.jsonl."""
        self.named_reference = root / "iter-000" / "reference.json"
        """What `reference: path` resolved to."""

    def __str__(self) -> str:
        return self._shown

    def exists(self) -> bool:
        """Whether a campaign was started here."""
        return self.config.exists()

    def was_started(self) -> bool:
        """As `exists`, also of a run whose settings were lost."""
        return self.exists() or (self.about.exists() and self.lineage.exists())

    def write_format(self) -> None:
        """Mark a new run with the format of its folder; comes before campaign.yaml, which makes the folder a run."""
        write_file(self.about, to_json({"format": FORMAT}))

    def check_format(self, *, repair: bool = False) -> None:
        """UserError if there is a run of another format, or of none. With `repair`, run.json is written again if it is
        damaged and this version of prefloop made the run."""
        if not self.exists():
            return
        try:
            found = json.loads(self.about.read_text(encoding="utf-8"))["format"]
        except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
            found = None
        if found is None and repair and self._is_of_this_version():
            self.write_format()
        elif found != FORMAT:
            problem = "has no format number in run.json" if found is None else f"has the run folder format {found!r}"
            raise UserError(
                f"{self} {problem}; this version of prefloop reads format {FORMAT} only. Use the version of prefloop "
                f"that wrote it (lineage.json names it), or start a new run with its settings: prefloop run "
                f"{self.config} --name NEW." + ("" if found else f" If it was damaged: prefloop run {self} --repair.")
            )

    def _is_of_this_version(self) -> bool:
        made = self.prompts().manifest()
        return made is not None and made.versions.get("prefloop") == version("prefloop")

    def sweep(self) -> None:
        """Remove the files that killed processes left half-written; only for the process that holds the lock."""
        for leftover in self.root.rglob(f".*{PARTIAL}"):
            leftover.unlink(missing_ok=True)

    def log(self, worker: str) -> Path:
        """Where a worker's own output goes."""
        return self.root / "logs" / f"{worker}.log"

    def cached_iteration(self, iteration: int, what: str = "iterations") -> Path:
        """What was computed from a decided iteration, so that it is not read again; for `what` also "report"."""
        return self.root / "cache" / what / f"{iteration:03d}.json"

    def prompts(self) -> StageFolder:
        """The folder of the three prompt sets."""
        return StageFolder(self.root / "prompts", "prompts", 0)

    def stage(self, iteration: int, stage: str, attempt: int = 1) -> StageFolder:
        """The folder of one stage; iteration 0 is the base model, which is only evaluated. Retries have folders
        of their own."""
        folder = self.root / f"iter-{iteration:03d}"
        folder = folder / f"attempt-{attempt}" if attempt > 1 else folder
        return StageFolder(folder / stage, stage, iteration, attempt)

    def begun(self, iteration: int) -> int:
        """Number of attempts at the iteration's round that were begun, at least 1."""
        folders = (self.root / f"iter-{iteration:03d}").glob("attempt-[0-9]*")
        return max((int(path.name[8:]) for path in folders), default=1)

    def attempts(self, iteration: int) -> int:
        """Number of the attempt that was decided on, or of the last one begun while nothing is decided."""
        if iteration == 0:
            return 1
        decision = self.decision(iteration)
        return len(decision.attempts) if decision else self.begun(iteration)

    def latest(self, iteration: int, stage: str) -> StageFolder:
        """The folder of a stage; if retries repeat it, that of the last attempt."""
        return self.stage(iteration, stage, self.attempts(iteration) if stage in REPEATED else 1)

    def judged_shards(self, iteration: int, which: str, attempt: int | None = None) -> list[tuple[Path, Path]]:
        """Responses and verdicts, file by file: of the training prompts, or of the "gate" or "test" set in the given or
        the last attempt."""
        if which == "train":
            samples, verdicts = self.stage(iteration, "sample"), self.stage(iteration, "judge")
            return [(path, verdicts.path / path.name) for path in sorted(samples.path.glob("shard-*.parquet"))]
        folder = self.stage(iteration, "eval", attempt or self.attempts(iteration)).path
        found = sorted(folder.glob(f"{which}-[0-9]*.parquet"))
        return [(path, path.with_name(path.name.replace(which, f"{which}-verdicts"))) for path in found]

    def response_files(self, iteration: int) -> tuple[list[Path], list[Path]]:
        """Files with the responses of an iteration's finished pairs: its own samples, and those from the data and from
        earlier iterations."""
        pairs = self.stage(iteration, "pair")
        manifest = pairs.manifest()
        assert manifest is not None, iteration
        others = [path for path in (pairs.answers, pairs.offline) if path.name in manifest.outputs]
        for source in map(int, manifest.counts.get("replayed", {})):
            answers = self.stage(source, "pair").answers
            others += [*self.sampled(source), *([answers] if answers.exists() else [])]
        return self.sampled(iteration), others

    @staticmethod
    def verdicts_of(responses: Path) -> Path:
        """The verdicts on a shard of sampled responses; answers from the data have none."""
        return responses.parents[1] / "judge" / responses.name

    def sampled(self, iteration: int) -> list[Path]:
        """The shards of an iteration's responses."""
        return [path for path, _ in self.judged_shards(iteration, "train")]

    def promotion(self, iteration: int) -> Path:
        """The decision that ends an iteration; the next one reads nothing else."""
        return self.root / f"iter-{iteration:03d}" / "promotion.json"

    def decision(self, iteration: int) -> PromotionRecord | None:
        """The decision on an iteration's candidate; None until it is made. UserError if the file is damaged."""
        path = self.promotion(iteration)
        return read_record(path, PromotionRecord) if path.exists() else None

    def base(self) -> BaseRecord:
        """The base model. UserError if the file is missing or damaged."""
        return read_record(self.promotion(0), BaseRecord)

    def policy(self, iteration: int) -> ModelRecord:
        """The incumbent after a decided iteration; after iteration 0, the base model."""
        return (read_record(self.promotion(iteration), PromotionRecord) if iteration else self.base()).policy

    @staticmethod
    def names_in(runs: Path) -> list[str]:
        """Names of the runs in a folder."""
        return sorted(path.parent.name for path in runs.glob("[!.]*/campaign.yaml"))

    def iterations(self) -> list[int]:
        """Numbers of the iterations that have a folder, ascending."""
        return sorted(int(path.name[5:]) for path in self.root.glob("iter-[0-9]*"))

    def stages(self) -> list[StageFolder]:
        """Every stage that may exist, in the order of the campaign."""
        return [self.prompts(), *(f for k in self.iterations() for f in self.stages_of(k, self.begun(k)))]

    def stages_of(self, iteration: int, attempts: int) -> list[StageFolder]:
        """Every stage that an iteration may have, with its attempts."""
        found = [self.stage(iteration, stage) for stage in ("ease", "reference", *STAGES, "guard", *LOOKS)]
        return found + [self.stage(iteration, stage, n) for n in range(2, attempts + 1) for stage in REPEATED]

    def misshapen(self) -> list[Path]:
        """The records of stages and decisions that are no JSON, or do not have the shape of their kind or their own
        checksum."""
        kinds: dict[Path, Any] = {self.named_reference: ReferenceRecord}
        for folder in self.stages():
            kinds |= {folder.manifest_path: Manifest, folder.pruned_path: list[str], folder.inputs_path: Json}
        kinds |= {self.promotion(k): PromotionRecord if k else BaseRecord for k in self.iterations()}
        existing = {path: kind for path, kind in kinds.items() if path.exists()}
        return [p for p, kind in existing.items() if not (self._is_record(p, kind) and has_its_checksum(p))]

    def _is_record(self, path: Path, kind: Any) -> bool:
        return is_readable(partial(read_record, path, kind))

    def record_paths(self, k: int) -> RecordPaths:
        """The records of an iteration and of its later attempts; as text, for pathlib would take most of the time of
        those who look at hundreds of them."""
        folder = os.path.join(self.root, f"iter-{k:03d}")
        places = [folder, *(f"{folder}/attempt-{n}" for n in range(2, self.begun(k) + 1))]
        manifests = [f"{place}/{stage}/manifest.json" for place in places for stage in (*STAGES, "guard", *LOOKS)]
        return RecordPaths(f"{folder}/promotion.json", [f"{place}/eval/metrics.json" for place in places], manifests)

    def event(self, what: str, **details: Any) -> None:
        """Append a line to events.jsonl, without secrets, and pass it on."""
        line = {"time": round(time.time(), 3), "event": what, **redacted(details)}
        append_line(self.events, line)
        self.heard(line)

    def latest_events(self) -> Iterator[Event]:
        """The lines of events.jsonl, the last one first. UserError if one has another shape."""
        return (as_record(line, Event, self.events) for line in last_rows(self.events))

    def read_events(self) -> list[Event]:
        """The lines of events.jsonl. UserError if one has another shape."""
        return [as_record(line, Event, self.events) for line in read_lines(self.events)]

    def locked(self) -> AbstractContextManager[None]:
        """Lock the run for this process. UserError if another one has it."""
        return locked(self.root, "a run")


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder, created if missing, for this process. UserError if another one has it; `what` names it there."""
    folder.mkdir(parents=True, exist_ok=True)
    with RunFolder(folder).lock.open("a+", encoding="utf-8") as file:
        if not take_lock(file):
            file.seek(0)
            raise UserError(
                f"{folder} is being worked on by another process ({file.read().strip() or 'unknown'}). "
                f"Wait until it ends, or end it; {what} has one writer."
            )
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
