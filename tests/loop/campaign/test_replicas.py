"""Several engines sample one stage: the same files however many there are, also if one dies, and little time lost."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loop.view.display import Display
from loop.workers import shards
from loop.workers.judge_service import JudgedShard
from loop.workers.process import Job
from loop.workers.sampling_service import SampledShard, SampleTask
from loop.workers.shards import JudgeHandle, Shard, ShardQueue, ShardTotals
from tests.helpers.campaigns import Cli, assert_same_results, events
from tests.helpers.inprocess import InProcess, Lost, run_here


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> dict[str, Any]:
    """One iteration of six shards, on a machine with four cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    prompts = settings["prompts"] | {"train": 12, "per_iteration": 12, "gate": 4, "test": 4}
    sampling = settings["sampling"] | {"shard_prompts": 2}
    return settings | {"iterations": 1, "prompts": prompts, "sampling": sampling, "eval": {"samples": 1}}


def test_one_two_and_three_engines_give_the_same_files_and_a_lost_shard_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: dict[str, Any]
) -> None:
    runs, made = {}, {}
    for replicas in (1, 2, 3):
        by: list[str] = []

        def note(worker: InProcess, job: Job, by: list[str] = by) -> None:
            if job.name.startswith("sampling shard"):
                by.append(worker.name)
                if by == ["engine-1", "engine-2"]:
                    path = job.details["task"].path
                    path.unlink()
                    raise Lost

        engine = small["engine"] | {"replicas": replicas, "threads": 1}
        name = f"run-{replicas}"
        runs[replicas] = run_here(monkeypatch, tmp_path, small | {"engine": engine}, name, after=note)
        made[replicas] = by
    assert made[1] == ["engine"] * 6
    assert made[2] == ["engine-1", "engine-2", "engine-2", "engine-1", "engine-2", "engine-1", "engine-2"]
    assert set(made[3]) == {"engine-1", "engine-2", "engine-3"}
    for replicas in (2, 3):
        assert_same_results(runs[replicas], runs[1])


@pytest.mark.slow
def test_an_engine_that_is_killed_in_mid_shard_leaves_the_results_of_a_single_one(
    cli: Cli, settings: dict[str, Any], reference: Path
) -> None:
    settings["engine"] |= {"replicas": 2, "threads": 1}
    at = "os.link:*/iter-001/sample/.shard-002.parquet.partial*"
    hooks = {"PAUSE_AT": at, "PAUSE_MARK": str(cli.folder / "died"), "PAUSE_ACTION": "die"}
    run = cli.run(cli.write(settings), env=hooks)
    assert [loss["job"] for loss in events(run, "worker_lost")] == ["sampling shard 2 of iteration 1"]
    started = [event["worker"] for event in events(run, "worker_started")]
    assert sorted(set(started)) == ["engine-1", "engine-2", "judge", "trainer"]
    assert len(started) == 5
    assert_same_results(run, reference)


class Clock:
    """The real time that the driver takes, and the pretended time that engines take."""

    def __init__(self) -> None:
        self.pretended, self.started = 0.0, time.perf_counter()

    def now(self) -> float:
        return self.pretended + time.perf_counter() - self.started


class Scripted:
    """A worker that takes a known time for a job."""

    def __init__(self, name: str, clock: Clock, seconds: float) -> None:
        self.name, self.clock, self.seconds = name, clock, seconds
        self.job: Job | None = None
        self.ends, self.worked = 0.0, 0.0

    def submit(self, job: Job) -> None:
        assert self.job is None
        self.job, self.ends = job, self.clock.now() + self.seconds
        self.worked += self.seconds

    def take(self) -> Job:
        job, self.job = self.job, None
        assert job is not None
        job.on_progress({"done": 1})
        job.result = JudgedShard({}, 0.0, 0) if job.method == "label" else SampledShard(1, 1, 0, {}, 0.0, 0.0)
        return job


def work(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, count: int, engines: Sequence[Scripted], judge: JudgeHandle | None
) -> ShardTotals:
    """Hand out this many shards."""

    def wait(workers: list[Scripted]) -> list[tuple[Scripted, Job]]:
        busy = [worker for worker in workers if worker.job is not None]
        clock.pretended += max(0.0, min(worker.ends for worker in busy) - clock.now())
        now = clock.now()
        return [(worker, worker.take()) for worker in busy if worker.ends <= now]

    monkeypatch.setattr(shards, "wait", wait)
    monkeypatch.setattr(shards, "is_sampled", lambda task: False)
    tasks = [SampleTask(str(i), Path(f"/no/{i}"), (), (0.8,), 1.0, 8, (0,), Path("/no"), "") for i in range(count)]
    with Display(to_stderr=True).bar("sample", count, "responses") as bar:
        wanted = [Shard(task, Path(f"/no/verdicts-{task.name}")) for task in tasks]
        return ShardQueue(wanted, engines, judge, None, bar, lambda *_, **__: None).work()  # type: ignore[arg-type]


@pytest.mark.parametrize("replicas", [2, 16])
def test_two_thousand_shards_of_a_second_keep_the_engines_busy(monkeypatch: pytest.MonkeyPatch, replicas: int) -> None:
    clock = Clock()
    engines = [Scripted(f"engine-{i}", clock, 1.0) for i in range(replicas)]
    judge = JudgeHandle(Scripted("judge", clock, 0.001), {})  # type: ignore[arg-type]
    totals = work(monkeypatch, clock, 2000, engines, judge)
    assert totals.counts["responses"] == 2000 == sum(engine.worked for engine in engines)
    assert 2000 / (replicas * clock.now()) >= 0.95


def test_a_slow_engine_gets_fewer_shards_and_a_judge_that_asks_the_policy_has_all_engines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    engines = [Scripted("fast", clock, 1.0), Scripted("slow", clock, 3.0)]
    judge = JudgeHandle(Scripted("judge", clock, 1.0), {}, engines=engines)  # type: ignore[arg-type]
    work(monkeypatch, clock, 40, engines, judge)
    assert engines[0].worked + engines[1].worked / 3 == pytest.approx(80)
    assert clock.now() == pytest.approx(60, abs=4)
    assert judge.worker.worked == 0  # type: ignore[attr-defined]
