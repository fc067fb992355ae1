"""Stages sample, judge, pair and train of an online iteration: slices of prompts go through all four in turn, each
sampled from the weights trained on the slices before it.

A slice is a shard. Its files lie where the offline stages put them, and the four manifests are written at the end, so
every reader of a run folder can read this one too. A killed run resumes at the last checkpoint: existing samples and
verdicts are kept, pairs are rebuilt from them, and the trainer continues inside the slice it had reached.
"""

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from loop.campaign.context import Iteration
from loop.campaign.stages.online_record import OnlineRecord
from loop.campaign.stages.pair import given_answers, refuse_nothing, write_relations
from loop.campaign.stages.sample import Sources, announce_widening, one_shard
from loop.campaign.stages.take_prompts import Take
from loop.config.fit import prompts_per_slice
from loop.config.rule_table import RULES
from loop.pairing.io import read_judged, table_of
from loop.pairing.iteration import Pairing, joined, pair_all
from loop.pairing.records import Answers
from loop.prompts.row import PromptRow
from loop.store.model_refs import Model
from loop.store.stage import Manifest
from loop.view.display import PHASES, Bar
from loop.workers.handover import handover_folder
from loop.workers.online_service import RoundProgress, SliceData
from loop.workers.process import Job, OnProgress, call
from loop.workers.shards import Shard, is_current, is_sampled
from loop.workers.train_service import TrainResult


def online_stages(it: Iteration, taken: Take) -> Manifest:
    """Sample, judge, pair and train the iteration slice by slice; return the pair manifest. The train stage then finds
    its candidate finished."""
    record = OnlineRecord(it, taken)
    if finished := record.finished():
        return finished
    it.campaign.begin_work()
    announce_widening(it)
    rows, n = taken.rows(), it.config.sampling.n
    with it.campaign.bar(record.samples, "sample, judge, pair and train", len(rows) * n, "responses") as bar:
        work = OnlineWork(record, cut(rows, prompts_per_slice(it.config)), bar)
        result = work.walk()
    shards = [work.shard(at, record.sampler(at)) for at in range(len(work.slices))]
    made = [work.made[at] for at in range(len(work.slices))]
    return record.finish(shards, made, work.answers, result, work.seconds)


def cut(rows: Sequence[PromptRow], most: int) -> list[Sequence[PromptRow]]:
    """Split the prompts into the fewest slices of at most `most`, as equal as possible."""
    count = -(-len(rows) // most)
    ends = [len(rows) * (i + 1) // count for i in range(count)]
    return [rows[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class OnlineWork:
    """An online iteration in progress."""

    def __init__(self, record: OnlineRecord, slices: list[Sequence[PromptRow]], bar: Bar) -> None:
        self.record, self.slices, self.bar = record, slices, bar
        self.it, self.campaign, self.config = record.it, record.it.campaign, record.it.config
        self.task = record.task(len(slices))
        self.made: dict[int, Pairing] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.stand = RoundProgress(0, 0, 0)

    def walk(self) -> TrainResult:
        """Go from the first slice to the candidate. Slices already trained are only paired
        again; after a lost worker, it returns to the slice that the new one needs."""
        record, at = self.record, 0
        record.train.claim(record.identity)
        for folder in (record.samples, record.verdicts):
            folder.keep_only([folder.shard(at) for at in range(len(self.slices))])
        with handover_folder(self.it.start.path, record.train.work / "handed-over") as self.place:
            self.open()
            while True:
                while at < len(self.slices):
                    at = self.take(at)
                refuse_nothing(joined([*self.made.values()], self.it.k), record.pairs)
                result = self.ask("close_round", self.note)
                if not isinstance(result, RoundProgress):
                    return cast(TrainResult, result)
                at = result.next

    def open(self) -> None:
        """Open the round in the trainer. If samples or verdicts of a trained slice are gone, the weights that sampled
        them cannot be recovered, so the round restarts."""
        self.stand = self.ask("open_round")
        gone = [at for at in range(self.stand.trained) if not self.is_made(self.shard(at, self.record.sampler(at)))]
        if gone:
            self.campaign.display.say(
                f"  slice {gone[0]} of iteration {self.it.k} was trained on, but its samples or verdicts are gone: "
                "training the round again from the start"
            )
            shutil.rmtree(self.record.train.path)
            self.record.train.claim(self.record.identity)
            self.stand = self.ask("open_round")

    def take(self, at: int) -> int:
        """Sample, judge, pair and train slice `at`; return the next slice."""
        shard = self.shard(at, self.record.sampler(at))
        if at and self.stand.steps and not self.is_made(shard):
            folder = self.place / f"slice-{at:04d}"
            self.stand = self.ask("publish_weights", number=at, folder=folder)
            if self.stand.next != at:
                return self.stand.next
            shard = self.shard(at, Model(folder, shard.task.policy_hash, self.it.k))
        self.label(at, shard)
        self.made[at] = self.pair(shard)
        if at >= self.stand.next:
            self.stand = self.train(at, shard, self.made[at])
            return self.stand.next
        return at + 1

    def label(self, at: int, shard: Shard) -> None:
        """Sample and judge the slice."""
        self.bar.before = sum(map(len, self.slices[:at])) * self.config.sampling.n
        with self.timed("label"):
            labelled = self.campaign.pool.label([shard], self.campaign.pool.judge, self.bar)
        for part, seconds in labelled.seconds.items():
            self.seconds[part] += seconds

    def pair(self, shard: Shard) -> Pairing:
        """Pair the slice's judged responses."""
        with self.timed("pair"):
            groups = read_judged(shard.task.path, shard.verdicts)
            return pair_all(groups, self.config.pairs, self.it.k, answers=self.answers, seed=self.config.seed)

    def train(self, at: int, shard: Shard, pairing: Pairing) -> RoundProgress:
        """Train on the slice, while engine and judge leave the device to the trainer."""
        path: Path | None = None
        if pairing.relations:
            path = self.record.train.work / "slice.parquet"
            rule = self.config.pairs.rule
            write_relations(path, table_of(pairing.relations, RULES[rule].kind, pairing.iteration, rule))
        part = SliceData(at, shard.task.path, path, self.record.pairs.answers if self.answers else None)
        with self.timed("train"):
            stand: RoundProgress = self.campaign.pool.train(self.job("train_slice", self.note, part=part))
        return stand

    def shard(self, at: int, sampler: Model) -> Shard:
        """The shard of slice `at`."""
        return one_shard(self.it, Sources.of(self.it, sampler), at, self.slices[at])

    def is_made(self, shard: Shard) -> bool:
        """Whether the shard's samples and verdicts exist; stale ones are removed."""
        sampled = is_sampled(shard.task)
        return sampled and is_current(shard.verdicts, "judge", self.campaign.judge)

    @cached_property
    def answers(self) -> Mapping[str, Answers]:
        """Gold and bad answers for all prompts of the iteration."""
        rows = [row for part in self.slices for row in part]
        return given_answers(self.it, rows)

    def job(self, method: str, on_progress: OnProgress, **details: Any) -> Job:
        return Job(f"training iteration {self.it.k}", method, {"task": self.task, **details}, on_progress)

    def ask(self, method: str, on_progress: OnProgress = lambda _: None, **details: Any) -> Any:
        """Run a trainer job that takes no optimizer steps, and return its result."""
        with self.timed("train"):
            return call(self.campaign.pool.trainer, self.job(method, on_progress, **details))

    def note(self, progress: Mapping[str, Any]) -> None:
        """Show the trainer's slow phases other than optimizer steps."""
        if progress.get("phase") in ("load", "save") and not progress["done"]:
            self.bar.note(PHASES[progress["phase"]])

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started
