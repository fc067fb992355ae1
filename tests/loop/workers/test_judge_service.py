"""One shard in the judge's worker process: verdicts column by column, and foreign code that cannot end the stage."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from judges import Group, JudgeError, Prompt, Response, Verdict, build_judge, judge_groups
from judges.context import JudgeContext
from loop.config.load import load_config
from loop.config.settings import JudgeConfig
from loop.errors import UserError
from loop.prompts.row import PromptRow
from loop.store import tables
from loop.workers.judge_service import JudgedShard, JudgeService, JudgeTask, read_groups, timer, verdict_table
from loop.workers.process import Job, Worker, call
from tests.helpers.campaigns import is_alive

JUDGE = """
import os, re, signal, time
from judges import *


class Isolated(PointwiseJudge):
    isolated = True
    time_limit = 1.0

    def one(self, prompt, response):
        if response.text == "hang":
            time.sleep(60)
        if response.text == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        return os.getpid() if response.text == "pid" else 1.0


class Plain(PointwiseJudge):
    def one(self, prompt, response):
        if response.text == "leave":
            print("last words", flush=True)
            os._exit(7)
        if response.text == "hang":
            time.sleep(60)
        if response.text == "match":
            re.match(r"(a|a)*b", "a" * 99)
        if response.text == "fork":
            os.fork()
        return 1.0


class Endless(PointwiseJudge):
    examples = (Example.on(None, "yes", 1.0, {}),)

    def one(self, prompt, response):
        while True:
            pass
"""


def responses(path: Path, *texts: str, prompts: int = 1) -> tuple[PromptRow, ...]:
    """A shard's file with the texts as responses of each prompt; the prompts."""
    rows = [
        {"prompt_id": f"p{prompt}", "response_id": f"p{prompt}/{index}", "text": text, "finish_reason": "stop"}
        for prompt in range(prompts)
        for index, text in enumerate(texts)
    ]
    path.write_bytes(tables.to_bytes(rows, tables.RESPONSES, {}))
    return tuple(PromptRow(f"p{prompt}", [{"role": "user", "content": "?"}], "18", {}) for prompt in range(prompts))


def task(folder: Path, *texts: str, prompts: int = 1) -> JudgeTask:
    rows = responses(folder / "shard.parquet", *texts, prompts=prompts)
    return JudgeTask("shard", folder / "shard.parquet", folder / "verdicts.parquet", rows)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "wild.py").write_text(JUDGE, encoding="utf-8")
    made = []

    def make(name: str, *, stall_seconds: float = 60.0, **settings: Any) -> Worker:
        judge = JudgeConfig(name=f"{tmp_path}/wild.py:{name}", **settings)
        log = tmp_path / "judge.log"
        arguments = {"settings": judge, "cache": tmp_path / "verdicts.sqlite"}
        made.append(
            Worker(
                "judge",
                "loop.workers.judge_service:JudgeService",
                arguments,
                log,
                stall_seconds,
                1,
                lambda *_, **__: None,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def label(worker: Worker, shard: JudgeTask) -> JudgedShard:
    result: JudgedShard = call(worker, Job("judging shard", "label", {"task": shard}))
    return result


def test_foreign_code_costs_single_verdicts_inside_the_worker_too(worker: Any, tmp_path: Path) -> None:
    judge = worker("Isolated", max_error_share=1.0)
    assert label(judge, task(tmp_path, "ok", "hang", "ok", "crash", "ok")).counts == {"score": 3, "error": 2}
    rows = tables.read(tmp_path / "verdicts.parquet").to_pylist()
    assert [row["kind"] for row in rows] == ["score", "error", "score", "error", "score"]
    assert rows[1]["why"] == "the judge took longer than 1 s and was killed"
    assert judge.starts == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_the_judges_children_end_when_the_worker_is_killed(worker: Any, tmp_path: Path) -> None:
    judge = worker("Isolated")
    label(judge, task(tmp_path, *["pid"] * 200))
    pids = {int(row["score"]) for row in tables.read(tmp_path / "verdicts.parquet", ["score"]).to_pylist()}
    judge.kill()
    end = time.monotonic() + 3
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize(
    ("text", "why"),
    [("leave", "ended with code 7 at response p0/1"), ("hang", "still at response p0/1 after 1.5 s")],
)
def test_a_judge_that_ends_or_blocks_its_worker_stops_with_what_happened(
    worker: Any, tmp_path: Path, text: str, why: str
) -> None:
    judge = worker("Plain", seconds_per_response=1.5)
    with pytest.raises(UserError, match=f"The judge worker failed 2 times at judging shard: .*{why}"):
        label(judge, task(tmp_path, "ok", text))


def test_a_judge_that_hangs_in_its_self_test_is_noticed(worker: Any, tmp_path: Path) -> None:
    judge = worker("Endless", seconds_per_response=1.0)
    with pytest.raises(UserError, match=r"at the self-test: it was still at response example 0 after 1 s, the last"):
        call(judge, Job("the self-test", "prepare", {"correct_at": 1.0}))


@pytest.mark.parametrize("text", ["hang", "match"])
def test_a_judge_that_hangs_in_the_main_process_is_noticed_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "wild.py").write_text(JUDGE, encoding="utf-8")
    judge = build_judge(f"{tmp_path}/wild.py:Plain", {})
    judge.bind(JudgeContext(on_item=timer(0.5)))
    texts = ["ok", text, "ok"]
    responses = tuple(Response(f"r{number}", said, "stop") for number, said in enumerate(texts))
    with pytest.raises(JudgeError, match=r"still at response r1 after 0.5 s\. If a judge needs that long, raise"):
        judge_groups(judge, [Group(Prompt("p", (), None, {}), responses)])
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


def test_a_judge_that_forks_is_one_worker_with_one_result(worker: Any, tmp_path: Path) -> None:
    judge = worker("Plain")
    assert label(judge, task(tmp_path, "ok", "fork", "ok")).counts == {"score": 3}
    assert label(judge, task(tmp_path, "ok")).counts == {"score": 1}


def test_too_many_errors_keep_no_verdict_and_show_the_first(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from judges import *\n\n\nclass Bad(PointwiseJudge):\n"
        "    def one(self, prompt, response): return float('nan') if response.text == 'x' else 1.0\n",
        encoding="utf-8",
    )
    shard = task(tmp_path, "x", *["ok"] * 9)
    service = JudgeService(JudgeConfig(name=f"{tmp_path}/bad.py:Bad"), tmp_path / "verdicts.sqlite")
    with pytest.raises(UserError, match=r"failed on 1 of 10 responses of shard, .*max_error_share=0.05.* got nan"):
        service.label(shard, lambda **_: None)
    assert not shard.path.exists()
    tolerant = JudgeService(
        JudgeConfig(name=f"{tmp_path}/bad.py:Bad", max_error_share=0.1), tmp_path / "verdicts.sqlite"
    )
    assert tolerant.label(shard, lambda **_: None).counts == {"error": 1, "score": 9}


def test_the_table_of_verdicts_has_a_row_for_each_in_its_order() -> None:
    """Column by column gives what rows would: the same bytes."""
    groups = [Group(Prompt(p, (), None, {}), tuple(Response(f"{p}/{i}", "", "stop") for i in range(2))) for p in "ab"]
    verdicts = [
        Verdict.of(1.0, "18", "because", True, {"b": 1.0, "a": 0.5}),
        Verdict.of(0.0),
        Verdict.abstain("no idea"),
        Verdict.error("broken"),
    ]
    ids = [("a", "a/0"), ("a", "a/1"), ("b", "b/0"), ("b", "b/1")]
    rows = [
        {
            **{"prompt_id": prompt, "response_id": response, "judge": "j", "version": "1", "kind": v.kind},
            **{"score": v.score, "extracted": v.extracted, "why": v.why, "well_formed": v.well_formed},
            "parts": json.dumps(v.parts, sort_keys=True),
        }
        for (prompt, response), v in zip(ids, verdicts, strict=True)
    ]
    table = verdict_table(groups, verdicts, {"name": "j", "version": "1"})
    assert tables.table_bytes(tables.noted(table, {})) == tables.to_bytes(rows, tables.VERDICTS, {})


def test_responses_are_read_by_prompt_in_the_order_of_the_shard(tmp_path: Path) -> None:
    prompts = responses(tmp_path / "shard.parquet", "one", "two", prompts=2)
    groups = read_groups(tmp_path / "shard.parquet", prompts)
    assert [(g.prompt.id, g.prompt.target, [(r.id, r.text) for r in g.responses]) for g in groups] == [
        ("p0", "18", [("p0/0", "one"), ("p0/1", "two")]),
        ("p1", "18", [("p1/0", "one"), ("p1/1", "two")]),
    ]


def test_the_files_of_a_combinations_judges_are_found_from_the_folder_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inner = "{judge: combine, args: {parts: [{judge: 'mine.py:A'}]}}"
    (tmp_path / "my.yaml").write_text(
        "prompts: {source: reasoning-gym, task: chain_sum}\n"
        f"judge: {{name: combine, args: {{parts: [{{judge: 'sub/mine.py:B'}}, {inner}, {{judge: exact}}]}}}}\n",
        encoding="utf-8",
    )
    parts = load_config("my.yaml", []).base.judge.args["parts"]
    assert parts[0]["judge"] == f"{tmp_path}/sub/mine.py:B"
    assert parts[1]["args"]["parts"][0]["judge"] == f"{tmp_path}/mine.py:A"
    assert parts[2]["judge"] == "exact"
    assert os.path.isabs(parts[0]["judge"])
