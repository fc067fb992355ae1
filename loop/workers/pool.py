"""Worker pool of a campaign: one worker each for engine, judge and trainer, and the shards they work on.

Shards go to the engine one after the other; each finished one is judged while the next is being sampled.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from judges.context import ModelRef
from loop.config.settings import Config, JudgeConfig
from loop.engines.judge_engine import JudgeEngine, judge_engine
from loop.errors import UserError
from loop.redact import unchanged
from loop.store import tables
from loop.store.lineage import inherited_caches
from loop.store.run_folder import RunFolder
from loop.view.display import Bar, Display
from loop.workers.judge_service import JudgeTask
from loop.workers.log_prob_service import Roles
from loop.workers.process import Job, Worker, call, wait
from loop.workers.sampling_service import SampleTask

BATCHES_PER_SHARD = 4
"""A shard holds about so many batches of the engine: fewer drain it too often, more are lost in a kill."""


def shard_size(config: Config, per_prompt: int) -> int:
    """Prompts per shard when the user names none."""
    return max(1, BATCHES_PER_SHARD * config.engine.batch // per_prompt)


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard to sample and where its verdicts go."""

    task: SampleTask
    verdicts: Path

    @property
    def responses(self) -> int:
        """How many responses it holds if no prompt is too long."""
        return self.task.responses


@dataclass(slots=True)
class ShardTotals:
    """Totals of sampling and judging some shards."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    identity: dict[str, Any] = field(default_factory=dict)

    def add(self, later: "ShardTotals") -> None:
        """Count in what came after."""
        self.counts.update(later.counts)
        for part, seconds in later.seconds.items():
            self.seconds[part] += seconds
        self.identity = later.identity or self.identity


@dataclass(slots=True)
class JudgeHandle:
    """A judge: its worker, its service's arguments and, once tested, its identity and needs."""

    worker: Worker
    judging: dict[str, Any]
    fingerprint: dict[str, Any] = field(default_factory=dict)
    measures: bool = False
    """Whether it measures log-probs."""
    compares: bool = False
    """Whether it judges a prompt's responses against each other."""
    engine: Worker | None = None
    """The engine that answers its questions; it judges there."""
    model: ModelRef | None = None
    """Who answers in that engine; None: the policy that sampled the shard."""

    @property
    def place(self) -> Worker:
        """Where it judges."""
        return self.engine or self.worker


class WorkerPool:
    """The workers: engine, judge (two if the evaluation has its own), trainer, and engines of judges' own models.

    Each starts with its first job and stays until the campaign ends.
    """

    def __init__(self, run: RunFolder, config: Config, display: Display) -> None:
        engine = {"settings": config.engine, "chat_template_kwargs": config.model.chat_template_kwargs}
        self.run, self.config, self.display = run, config, display
        self.initial: ModelRef | None = None
        self.judge_engines: list[tuple[JudgeEngine, Worker]] = []
        self.engine = self._worker("engine", "loop.workers.sampling_service:EngineService", engine)
        self.judge = self.eval_judge = self._seat("judge", config.judge) if config.judge is not None else None
        if config.eval_judge is not None and config.eval_judge != config.judge:
            self.eval_judge = self._seat("eval-judge", config.eval_judge)
        self.trainer = self._worker("trainer", "loop.workers.online_service:OnlineTrainService", {})

    def _worker(self, name: str, service: str, arguments: dict[str, Any]) -> Worker:
        settings = self.config.engine
        return Worker(
            name, service, arguments, self.run.log(name), settings.stall_seconds, settings.retries, self._event
        )

    def _seat(self, name: str, settings: JudgeConfig) -> JudgeHandle:
        judging = {"settings": settings, "cache": self.run.verdict_cache, "parents": inherited_caches(self.run)}
        return JudgeHandle(self._worker(name, "loop.workers.judge_service:JudgeService", judging), judging)

    def _event(self, what: str, **details: Any) -> None:
        self.run.event(what, **details)
        if what == "worker_lost":
            self.display.warn(f"the {details['worker']} worker was lost at {details['job']}: {details['why']}")

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in (*self.engines, *self.judges, self.trainer):
            worker.close()

    @property
    def judges(self) -> list[Worker]:
        """The judges' workers: none, one, or one more for the evaluation."""
        seats = [seat for seat in (self.judge, self.eval_judge) if seat is not None]
        return [seat.worker for seat in {id(seat): seat for seat in seats}.values()]

    @property
    def engines(self) -> list[Worker]:
        """The policy's engine, and those of judges."""
        return [self.engine, *(worker for _, worker in self.judge_engines)]

    def prepare(self, judge: JudgeHandle, correct_at: float) -> dict[str, Any]:
        """Test a judge and return its fingerprint; from here on it is known who answers its questions."""
        job = Job(f"the self-test of the {judge.worker.name}", "prepare", {"correct_at": correct_at})
        prepared = call(judge.worker, job)
        judge.measures, judge.compares = "log_probs" in prepared["needs"], prepared["compares"]
        judge.engine = self.engine if "generate" in prepared["needs"] else None
        if (model := prepared["local_model"]) is not None:
            judge.engine, judge.model = self._engine_for(judge_engine(model, self.config.engine)), model.found
            self._try_examples(judge, correct_at)
        judge.fingerprint = dict(prepared["fingerprint"])
        return judge.fingerprint

    def _try_examples(self, judge: JudgeHandle, correct_at: float) -> None:
        """The user's labelled examples, for a judge that asks a model of its own."""
        if judge.judging["settings"].examples is None:
            return
        assert judge.model is not None
        model = {"model": judge.model.folder, "model_hash": judge.model.digest}
        details = {"correct_at": correct_at, "judging": judge.judging, **model}
        call(judge.place, Job(f"the labelled examples of the {judge.worker.name}", "try_examples", details))

    def _engine_for(self, wanted: JudgeEngine) -> Worker:
        """The engine of a judge's own model; judges that ask for the same one share it."""
        for known, worker in self.judge_engines:
            if known == wanted:
                return worker
        arguments = {"settings": wanted.settings, "chat_template_kwargs": wanted.chat_template_kwargs}
        name = f"judge-engine{f'-{len(self.judge_engines) + 1}' if self.judge_engines else ''}"
        self.judge_engines.append(
            (wanted, self._worker(name, "loop.workers.sampling_service:EngineService", arguments))
        )
        return self.judge_engines[-1][1]

    def label(self, shards: Sequence[Shard], judge: JudgeHandle | None, bar: Bar) -> ShardTotals:
        """Bring every shard's responses and verdicts into being, re-using what is there; returns counts and seconds.

        Without a judge it is responses only.
        """
        labelled = ShardTotals()
        to_sample, to_judge = self._missing(shards, judge)
        judging = self.engine if judge is None else judge.place
        finished = sum(s.responses for s in shards) - sum(s.responses for s in to_sample)
        bar.count(shards=(len(shards) - len(to_sample), len(shards)))
        bar.resume_at(finished)
        sampled_at = time.perf_counter()
        while to_sample or to_judge or self.engine.job or judging.job:
            if to_sample and not self.engine.job:
                self._sample(to_sample[0], bar, finished)
            if judge is not None and to_judge and not judging.job:
                self._judge(to_judge[0], judge)
            for _, job in wait([self.engine] if judging is self.engine else [self.engine, judging]):
                if job.method == "label":
                    self._note_judged(labelled, job)
                    to_judge.popleft()
                else:
                    _note_sampled(labelled, job.result)
                    sampled_at = time.perf_counter()
                    finished += to_sample[0].responses
                    sampled = to_sample.popleft()
                    to_judge.extend([sampled] if judge is not None else [])
                    bar.count(tokens=job.result["tokens"], shards=(len(shards) - len(to_sample), len(shards)))
                    bar.set(finished)
        labelled.seconds["judge_after_sampling"] = time.perf_counter() - sampled_at
        return labelled

    def _sample(self, shard: Shard, bar: Bar, finished: int) -> None:
        def progress(said: dict[str, Any]) -> None:
            if "note" in said:
                bar.note(said["note"])
            else:
                bar.set(finished + said["done"])

        self.engine.submit(Job(f"sampling {shard.task.name}", "sample", {"task": shard.task}, progress))

    def _judge(self, shard: Shard, judge: JudgeHandle) -> None:
        """Hand a shard to the judge; one that asks the policy waits until sampling is finished."""
        task = JudgeTask(shard.task.name, shard.task.path, shard.verdicts, shard.task.prompts)
        policy = ModelRef(shard.task.policy, shard.task.policy_hash)
        details: dict[str, Any] = {"task": task}
        if judge.measures:
            assert self.initial is not None, "a judge that measures comes after the base model was found"
            details["roles"] = Roles(policy, self.initial)
        if judge.engine is not None:
            asked = judge.model or policy
            details |= {"policy": asked.folder, "policy_hash": asked.digest, "judging": judge.judging}
        judge.place.submit(Job(f"judging {task.name}", "label", details))

    def _note_judged(self, labelled: ShardTotals, job: Job) -> None:
        labelled.counts.update({f"verdicts_{kind}": n for kind, n in job.result["counts"].items()})
        labelled.seconds["judge"] += job.result["judge"]
        if job.result["remembered"]:
            self.run.event("verdicts_remembered", job=job.name, calls=job.result["remembered"])

    def _missing(self, shards: Sequence[Shard], judge: JudgeHandle | None) -> tuple[deque[Shard], deque[Shard]]:
        """Shards to sample, and shards that only lack verdicts; those made with other settings are removed."""
        to_sample: deque[Shard] = deque()
        to_judge: deque[Shard] = deque()
        for shard in shards:
            if not is_current(shard.task.path, "spec", shard.task.spec):
                shard.verdicts.unlink(missing_ok=True)
                to_sample.append(shard)
            elif judge is not None and not is_current(shard.verdicts, "judge", judge.fingerprint):
                to_judge.append(shard)
        return to_sample, to_judge

    def train(self, job: Job) -> Any:
        """Run a training job while engines and judges leave the device to it."""
        for worker in self.engines:
            if worker.starts:
                call(worker, Job("giving back the device's memory", "sleep", {}))
        for worker in self.judges:
            if worker.starts:
                call(worker, Job("giving back the device's memory", "rest", {}))
        return call(self.trainer, job)


def is_current(path: Path, key: str, wanted: Any) -> bool:
    """Whether the file exists, is whole and was made as `wanted` says; if not, it is removed."""
    if not path.exists():
        return False
    try:
        tables.read(path)  # no manifest knows this file yet, so its own checksums must do
        current = unchanged(tables.notes_of(path).get(key), wanted)
    except UserError:
        current = False
    if not current:
        path.unlink()
    return current


def _note_sampled(labelled: ShardTotals, result: dict[str, Any]) -> None:
    labelled.counts.update(
        {key: result[key] for key in ("responses", "tokens")} | {"prompts_too_long": result["too_long"]}
    )
    for part in ("load", "generate"):
        labelled.seconds[part] += result[part]
    labelled.identity = result["identity"]
