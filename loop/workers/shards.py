"""Sample and judge the shards of a stage with the pool's workers, reusing those that are finished."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judges.context import ModelRef
from loop.config.settings import Config
from loop.errors import UserError
from loop.redact import unchanged
from loop.store import tables
from loop.store.run_records import Json
from loop.view.display import Bar
from loop.workers.entry import Arguments, Progress
from loop.workers.judge_service import JudgedShard, JudgeTask
from loop.workers.log_prob_service import Roles
from loop.workers.made_with import ENGINE
from loop.workers.process import Job, Worker, wait
from loop.workers.sampling_service import SampledShard, SampleTask

BATCHES_PER_SHARD = 4
"""Batches of the engine in one shard: fewer drain the engine too often, more lose more work when a run is killed."""


def shard_size(config: Config, per_prompt: int) -> int:
    """Prompts per shard when the user names none."""
    return max(1, BATCHES_PER_SHARD * config.engine.batch // per_prompt)


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard to sample and the file of its verdicts."""

    task: SampleTask
    verdicts: Path


@dataclass(slots=True)
class ShardTotals:
    """Totals of sampling and judging some shards."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    made_with: Json = field(default_factory=dict)

    def add(self, later: "ShardTotals") -> None:
        """Add the totals of later shards."""
        self.counts.update(later.counts)
        for part, seconds in later.seconds.items():
            self.seconds[part] += seconds
        self.made_with = later.made_with or self.made_with

    def add_sampled(self, result: SampledShard) -> None:
        """Add a sampled shard."""
        sampled = {"responses": result.responses, "tokens": result.tokens, "prompts_too_long": result.too_long}
        self.counts.update(sampled)
        self.seconds["load"] += result.load
        self.seconds["generate"] += result.generate
        self.made_with = result.made_with

    def add_judged(self, result: JudgedShard) -> None:
        """Add a judged shard."""
        self.counts.update({f"verdicts_{kind}": n for kind, n in result.counts.items()})
        self.seconds["judge"] += result.seconds


@dataclass(slots=True)
class JudgeHandle:
    """A judge: its worker, its service's arguments and, once tested, its identity and needs."""

    worker: Worker
    judging: Arguments
    fingerprint: Json = field(default_factory=dict)
    measures: bool = False
    """Whether it measures log-probs."""
    compares: bool = False
    """Whether it judges a prompt's responses against each other."""
    engines: Sequence[Worker] = ()
    """The engines that answer its questions; it judges in any of them."""
    model: ModelRef | None = None
    """The model that answers in that engine; None: the policy that sampled the shard."""

    @property
    def places(self) -> Sequence[Worker]:
        """Where it judges."""
        return self.engines or (self.worker,)


@dataclass(slots=True)
class ShardQueue:
    """Samples shards, each by the next engine that is free, and judges the finished ones while others are being
    sampled. What a shard holds does not depend on who makes it, or when."""

    shards: Sequence[Shard]
    engines: Sequence[Worker]
    judge: JudgeHandle | None
    """None: the shards are only sampled."""
    initial: ModelRef | None
    """The base model, once it is known; a judge may measure with it."""
    bar: Bar
    on_event: Callable[..., None]
    to_sample: deque[Shard] = field(default_factory=deque)
    to_judge: deque[Shard] = field(default_factory=deque)
    sampling: dict[str, tuple[Shard, int]] = field(default_factory=dict)
    """By engine, the shard that it samples and how many responses of it are finished."""
    sampled: int = 0
    """Responses in the sampled shards."""
    totals: ShardTotals = field(default_factory=ShardTotals)
    sampled_at: float = 0.0
    """When the last shard was sampled."""
    starting: bool = False
    """Whether the engine is being started."""

    def work(self) -> ShardTotals:
        """Sample and judge the shards that are not finished; totals of these."""
        self._find_missing()
        self.bar.count(shards=self._progress)
        self.bar.resume_at(self.sampled)
        self.sampled_at = time.perf_counter()
        while self.to_sample or self.to_judge or any(worker.job for worker in self._workers):
            self._submit()
            for worker, job in wait(self._workers):
                if job.method == "label":
                    self._finish_judging(job)
                else:
                    self._finish_sampling(worker, job.result)
        self.totals.seconds["judge_after_sampling"] = time.perf_counter() - self.sampled_at
        return self.totals

    @property
    def _workers(self) -> list[Worker]:
        judging = () if self.judge is None else self.judge.places
        return [*self.engines, *(worker for worker in judging if worker not in self.engines)]

    @property
    def _progress(self) -> tuple[int, int]:
        """Sampled shards, of how many."""
        return len(self.shards) - len(self.to_sample) - len(self.sampling), len(self.shards)

    def _find_missing(self) -> None:
        """Find the shards to sample and those that only lack verdicts; remove those made with other settings."""
        for shard in self.shards:
            if not is_sampled(shard.task):
                shard.verdicts.unlink(missing_ok=True)
                self.to_sample.append(shard)
                continue
            self.sampled += shard.task.responses
            if self.judge is not None and not is_current(shard.verdicts, "judge", self.judge.fingerprint):
                self.to_judge.append(shard)

    def _submit(self) -> None:
        """Give idle workers their next shard; a judge that asks the policy waits until sampling is finished."""
        for engine in self.engines:
            if self.to_sample and not engine.job:
                self._submit_sampling(engine, self.to_sample.popleft())
        for worker in () if self.judge is None else self.judge.places:
            if self.judge is not None and self.to_judge and not worker.job:
                self._submit_judging(worker, self.to_judge.popleft(), self.judge)

    def _submit_sampling(self, engine: Worker, shard: Shard) -> None:
        self.sampling[engine.name] = (shard, 0)

        def show(progress: Progress) -> None:
            if "note" in progress:
                self.starting = True
                self.bar.note(progress["note"])
                return
            if self.starting:
                self.starting = False
                self.on_event("engine_ready")
            self.sampling[engine.name] = (shard, progress["done"])
            self._show_responses()

        engine.submit(Job(f"sampling {shard.task.name}", "sample", {"task": shard.task}, show))

    def _show_responses(self) -> None:
        self.bar.set(self.sampled + sum(done for _, done in self.sampling.values()))

    def _submit_judging(self, worker: Worker, shard: Shard, judge: JudgeHandle) -> None:
        task = JudgeTask(shard.task.name, shard.task.path, shard.verdicts, shard.task.prompts)
        policy = ModelRef(shard.task.policy, shard.task.policy_hash)
        details: Arguments = {"task": task}
        if judge.measures:
            assert self.initial is not None, "a judge that measures comes after the base model was found"
            details["roles"] = Roles(policy, self.initial)
        if judge.engines:
            model = judge.model or policy
            details |= {"policy": model.folder, "policy_hash": model.digest, "judging": judge.judging}
        worker.submit(Job(f"judging {task.name}", "label", details))

    def _finish_sampling(self, engine: Worker, result: SampledShard) -> None:
        self.totals.add_sampled(result)
        self.sampled_at = time.perf_counter()
        shard, _ = self.sampling.pop(engine.name)
        self.sampled += shard.task.responses
        if self.judge is not None:
            self.to_judge.append(shard)
        detail = "judging the rest" if self.to_judge and not self.to_sample and not self.sampling else ""
        self.bar.count(tokens=result.tokens, shards=self._progress, detail=detail)
        self._show_responses()

    def _finish_judging(self, job: Job) -> None:
        self.totals.add_judged(job.result)
        if job.result.remembered:
            self.on_event("verdicts_remembered", job=job.name, calls=job.result.remembered)


def is_sampled(task: SampleTask) -> bool:
    """Whether the shard is finished, whatever engine made it; a stale one is removed."""
    return is_current(task.path, "spec", task.spec, of_engine=False)


def is_current(path: Path, key: str, wanted: Any, *, of_engine: bool = True) -> bool:
    """Whether the file exists, is whole and its note `key` equals `wanted`; if not, it is removed. Without `of_engine`,
    what it says about its engine does not count."""
    if not path.exists():
        return False
    try:
        tables.read(path)  # no manifest knows this file yet, so its own checksums must do
        noted = tables.notes_of(path).get(key)
        if not of_engine and isinstance(noted, dict):
            noted = {name: value for name, value in noted.items() if not name.startswith(ENGINE)}
        current = unchanged(noted, wanted)
    except UserError:
        current = False
    if not current:
        path.unlink()
    return current
