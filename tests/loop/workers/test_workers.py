"""Workers that crash, hang, fail or lose their driver: noticed, named, replaced; their work is done again or given up
in one paragraph."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loop.errors import UserError
from loop.workers.process import Job, Worker, call, call_all, wait
from tests.helpers.campaigns import Cli, assert_same_results, copy_run, descendants, events, is_alive

ROOT = Path(__file__).parents[3]


@pytest.fixture
def said() -> list[tuple[str, dict[str, Any]]]:
    """What the workers told of themselves."""
    return []


@pytest.fixture
def make_worker(tmp_path: Path, said: list[tuple[str, dict[str, Any]]]) -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def make(**changes: Any) -> Worker:
        values = {"name": "toy", "service": "tests.helpers.services:Toy", "arguments": {"marker": tmp_path / "marker"}}
        values |= {"log": tmp_path / "logs" / "toy.log", "stall_seconds": 60.0, "retries": 2}
        made.append(Worker(**values | changes, on_event=lambda what, **details: said.append((what, details))))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def job(method: str, **details: Any) -> Job:
    return Job(f"the job {method}", method, details)


def lost(said: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [details for what, details in said if what == "worker_lost"]


def test_one_process_serves_job_after_job_and_ends_with_its_pipe(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()
    first, second = call(worker, job("add", a=1, b=2)), call(worker, job("add", a=3, b=4))
    assert (first[:2], second[:2], worker.starts) == ((3, 1), (7, 2), 1)
    assert first[2] == second[2] != os.getpid()
    assert "adding 3 and 4" in worker.log.read_text(encoding="utf-8")
    worker.close()
    assert not is_alive(first[2])


def test_a_crash_is_named_and_the_job_is_done_by_a_new_process(
    make_worker: Callable[..., Worker], said: list[tuple[str, dict[str, Any]]]
) -> None:
    worker = make_worker()
    assert call(worker, job("crash_once")) == "survived"
    assert worker.starts == 2
    assert [(loss["worker"], loss["job"], loss["tries"]) for loss in lost(said)] == [("toy", "the job crash_once", 1)]
    assert lost(said)[0]["why"] == "the process was ended by SIGSEGV"


@pytest.mark.slow
def test_a_stall_is_named_and_the_job_is_done_by_a_new_process(
    make_worker: Callable[..., Worker], said: list[tuple[str, dict[str, Any]]]
) -> None:
    worker = make_worker(stall_seconds=3.0)
    hung = call(worker, job("add", a=1, b=1))[2]
    assert call(worker, job("hang_once")) == "woke up"
    assert not is_alive(hung)
    assert [(loss["job"], loss["why"]) for loss in lost(said)] == [
        ("the job hang_once", "it reported nothing for 3 seconds")
    ]


@pytest.mark.slow
def test_a_slow_job_that_shows_signs_of_life_is_no_stall(
    make_worker: Callable[..., Worker], said: list[tuple[str, dict[str, Any]]]
) -> None:
    worker = make_worker(stall_seconds=3.0)
    assert call(worker, job("work_long", seconds=4.0)) == "done"
    assert lost(said) == []


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("fail", r"RuntimeError: the shelf is empty \(services.py:\d+\), the last two times at the same place"),
        ("exit", "the process ended with code 7"),
    ],
)
def test_what_fails_every_time_ends_in_one_paragraph_with_the_last_lines_of_the_log(
    make_worker: Callable[..., Worker], said: list[tuple[str, dict[str, Any]]], method: str, words: str
) -> None:
    worker = make_worker(retries=1)
    with pytest.raises(UserError) as refused:
        call(worker, job(method))
    text = str(refused.value)
    assert re.match(rf"The toy worker failed 2 times at the job {method}: {words}\. Everything finished is kept", text)
    assert str(worker.log) in text
    assert text.endswith("    last words" if method == "exit" else f"its output is in {worker.log}.")
    assert "Traceback" not in text
    assert len(lost(said)) == 2


@pytest.mark.parametrize("method", ["fail", "fail_in_other_words"])
def test_an_error_at_the_same_place_twice_is_not_tried_again(
    make_worker: Callable[..., Worker], said: list[tuple[str, dict[str, Any]]], method: str
) -> None:
    with pytest.raises(UserError, match=r"failed 2 times .*the last two times at the same place") as refused:
        call(make_worker(retries=9), job(method))
    assert "\n" not in str(refused.value)
    assert len(lost(said)) == 2


def test_errors_at_different_places_are_tried_again(
    make_worker: Callable[..., Worker], said: list[tuple[str, dict[str, Any]]]
) -> None:
    assert call(make_worker(retries=2), job("fail_elsewhere")) == "found it"
    assert len({loss["why"] for loss in lost(said)}) == 2


HANGS = {
    "loop": r"it was still at item 2 after 1 s, the last .*raise judge.seconds_per_response; .*`isolated = True`",
    "exit": r"the process ended with code 7 at item 2, the last two times at the same place",
}


@pytest.mark.parametrize("how", HANGS)
def test_an_item_that_hangs_or_ends_the_worker_twice_is_named(
    make_worker: Callable[..., Worker], said: list[tuple[str, dict[str, Any]]], how: str
) -> None:
    with pytest.raises(UserError, match=HANGS[how]) as refused:
        call(make_worker(retries=9), job("do_items", count=4, seconds=0.0, at=2, how=how))
    assert "\n" not in str(refused.value)
    assert len(lost(said)) == 2


def test_items_that_end_are_signs_of_life(
    make_worker: Callable[..., Worker], said: list[tuple[str, dict[str, Any]]]
) -> None:
    worker = make_worker()
    call(worker, job("add", a=1, b=1))
    worker.stall_seconds = 2.0
    assert call(worker, job("do_items", count=8, seconds=0.4, limit=60.0)) == "done"
    assert lost(said) == []


def test_a_users_mistake_is_told_at_once_and_not_tried_again(
    make_worker: Callable[..., Worker], said: list[tuple[str, dict[str, Any]]]
) -> None:
    with pytest.raises(UserError, match=r"^the key is wrong; turn it\.$"):
        call(make_worker(), job("refuse"))
    assert lost(said) == []


def test_a_full_disk_is_told_at_once_with_the_way_out(make_worker: Callable[..., Worker]) -> None:
    with pytest.raises(UserError, match=r"^The disk is full.*No space left.*Free some space.*continues from here\.$"):
        call(make_worker(), job("fill"))


@pytest.mark.parametrize(("seconds", "written"), [(0.0, True), (60.0, False)])
def test_a_worker_that_is_asked_to_stop_has_time_for_a_checkpoint(
    make_worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, written: bool
) -> None:
    monkeypatch.setattr("loop.workers.process.PATIENCE", 10.0 if written else 0.2)
    worker, steps = make_worker(), []
    worker.submit(Job("training", "train", {"seconds": seconds}, on_progress=steps.append))
    while not steps:
        wait([worker])
    pid = worker._process.pid
    worker.stop()
    worker.close()
    assert not is_alive(pid)
    assert (tmp_path / "checkpoint").exists() == written


def test_a_busy_worker_that_makes_no_steps_ends_at_once_when_it_is_asked_to_stop(
    make_worker: Callable[..., Worker],
) -> None:
    worker, reports = make_worker(), []
    worker.submit(Job("working", "work_long", {"seconds": 60.0}, on_progress=reports.append))
    while not reports:
        wait([worker])
    process = worker._process
    worker.stop()
    process.join(10)
    assert process.exitcode == 143


def test_a_worker_leaves_ctrl_c_to_its_driver_from_its_first_moment_on(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()
    worker.start()
    for _ in range(5):
        os.kill(worker._process.pid, signal.SIGINT)
        time.sleep(0.02)
    assert call(worker, job("add", a=1, b=2))[:2] == (3, 1)
    os.kill(worker._process.pid, signal.SIGINT)
    assert call(worker, job("add", a=3, b=4))[:2] == (7, 2)
    assert worker.starts == 1
    assert "Traceback" not in worker.log.read_text(encoding="utf-8")


def test_a_log_that_cannot_be_opened_stops_no_work(make_worker: Callable[..., Worker], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert call(make_worker(log=tmp_path / "file" / "toy.log"), job("add", a=1, b=2))[0] == 3


def test_a_process_that_cannot_be_started_is_the_systems_error(
    make_worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("multiprocessing.util.spawnv_passfds", full)
    worker = make_worker()
    with pytest.raises(BlockingIOError):
        worker.submit(job("add", a=1, b=2))
    worker.close()


def test_a_process_that_was_killed_while_idle_is_replaced(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker()
    pid = call(worker, job("add", a=1, b=2))[2]
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    total, calls, other = call(worker, job("add", a=3, b=4))
    assert (total, calls) == (7, 1)
    assert other != pid


def test_two_workers_work_at_the_same_time(make_worker: Callable[..., Worker]) -> None:
    workers = [make_worker(name=name) for name in ("one", "two")]
    for worker in workers:
        call(worker, job("add", a=0, b=0))
        worker.submit(job("work_long", seconds=1.0))
    assert all(worker.job for worker in workers)
    done: list[Worker] = []
    while len(done) < 2:
        done += [worker for worker, _ in wait(workers)]
    assert {worker.name for worker in done} == {"one", "two"}


def test_a_worker_has_an_environment_of_its_own(make_worker: Callable[..., Worker]) -> None:
    workers = [make_worker(name=name, environment={"CUDA_VISIBLE_DEVICES": name}) for name in ("2,3", "GPU-8f3a")]
    jobs = [(worker, job("variable", name="CUDA_VISIBLE_DEVICES")) for worker in workers]
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    call_all(jobs)
    assert [done.result for _, done in jobs] == ["2,3", "GPU-8f3a"]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


DRIVER = """
import sys
from pathlib import Path
from loop.workers.process import Job, Worker, wait

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    toy = {"marker": folder / "marker"}
    worker = Worker("toy", "tests.helpers.services:Toy", toy, folder / "log", 600.0, 0, lambda *_, **__: None)
    worker.submit(Job("a deadlock", "hang_once", {}))
    while True:
        wait([worker])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the worker in /proc")
def test_no_worker_outlives_its_driver_even_if_it_hangs(tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, tmp_path / "driver.py", tmp_path], env=environment)
    while not (tmp_path / "marker").exists():
        time.sleep(0.02)
        assert driver.poll() is None
    workers = descendants(driver.pid)
    driver.kill()
    driver.wait()
    assert workers
    deadline = time.monotonic() + 5
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline, "a worker outlives its driver"
        time.sleep(0.02)


@pytest.mark.soak
def test_each_worker_of_a_campaign_may_die_mid_work_and_the_result_is_the_same(
    cli: Cli, settings: dict[str, Any], reference: Path
) -> None:
    deaths = {
        "engine": "os.link:*/iter-001/sample/.shard-002.parquet.partial*",
        "judge": "os.link:*/iter-001/judge/.shard-003.parquet.partial*",
        "trainer": "os.rename:*/iter-001/train/work/checkpoint-000003.partial",
    }
    hooks = {"PAUSE_AT": "|".join(deaths.values()), "PAUSE_MARK": str(cli.folder / "died"), "PAUSE_ACTION": "die"}
    run = cli.run(cli.write(settings), env=hooks)
    losses = events(run, "worker_lost")
    assert [(loss["worker"], loss["job"]) for loss in losses] == [
        ("engine", "sampling shard 2 of iteration 1"),
        ("judge", "judging shard 3 of iteration 1"),
        ("trainer", "training iteration 1"),
    ]
    (why,) = {loss["why"] for loss in losses}
    assert why.startswith("the process was killed (SIGKILL), most likely as memory was full; train.row_tokens, ")
    started = sorted(event["worker"] for event in events(run, "worker_started"))
    assert started == sorted([*deaths, *deaths, "engine"]), "the engine leaves its memory to a round that was killed"
    assert_same_results(run, reference)


@pytest.mark.slow
def test_a_judge_that_hangs_is_noticed_by_name_and_its_shard_judged_by_a_new_one(
    cli: Cli, settings: dict[str, Any], reference: Path
) -> None:
    run, folder = copy_run(reference, cli), reference / "iter-002" / "judge"
    for name in ("judge", "pair", "train", "eval"):
        shutil.rmtree(run / "iter-002" / name)
    (run / "iter-002" / "promotion.json").unlink()
    settings["judge"]["seconds_per_response"] = 5
    running = cli.start("run", cli.write(settings), env={"HANG_ONCE": str(cli.folder / "hung")})
    running.wait_for("the last verdicts", (run / "iter-002" / "judge" / "manifest.json").exists)
    running.kill()
    loss = events(run, "worker_lost")[0]
    assert (loss["worker"], loss["job"]) == ("judge", "judging shard 0 of iteration 2")
    assert re.fullmatch(r"it was still at response \S+ after 5 s", loss["why"])
    for path in sorted(folder.glob("*.parquet")):
        assert (run / "iter-002" / "judge" / path.name).read_bytes() == path.read_bytes()


def test_workers_do_not_import_the_script_that_starts_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from loop.workers.process import Job, Worker, call\n"
        "arguments = {'marker': Path('marker')}\n"
        "worker = Worker('toy', 'tests.helpers.services:Toy', arguments, Path('log'), 60.0, 0, lambda *_, **__: None)\n"
        "print(call(worker, Job('a sum', 'add', {'a': 1, 'b': 2}))[0], __name__)\n"
        "worker.close()\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "3 __main__\n"), done.stderr
