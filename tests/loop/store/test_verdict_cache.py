"""Verdicts that were paid for: kept one by one, never paid for twice, whatever kills the process that judges."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from judges.context import Usage
from judges.types import JudgeError
from loop.config.engine_section import EngineConfig
from loop.config.settings import JudgeConfig
from loop.errors import UserError
from loop.prompts.chat_template import ChatFormat
from loop.prompts.row import PromptRow
from loop.store import tables
from loop.store.run_folder import RunFolder
from loop.store.verdict_cache import VerdictCache
from loop.view.status import collect
from loop.view.status_tables import judge_line
from loop.workers.judge_service import JudgedShard, JudgeService, JudgeTask
from loop.workers.sampling_service import EngineService
from tests.helpers.campaigns import Cli, events, read, refusal, rows
from tests.helpers.llm_server import KEY, LLMServer

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = tuple(PromptRow(f"p{i}", [{"role": "user", "content": f"Question {i}?"}], None, {}) for i in range(20))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLMServer]:
    """An endpoint, and its key where the judges look for it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with LLMServer().running() as running:
        yield running


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Two responses to each of the prompts."""
    found = [
        {
            "prompt_id": row.id,
            "response_id": f"{row.id}-{i}",
            "text": f"{row.id} {i}" + "!" * i,
            "finish_reason": "stop",
        }
        for row in PROMPTS
        for i in range(2)
    ]
    path = tmp_path / "shard.parquet"
    path.write_bytes(tables.to_bytes(found, tables.RESPONSES, {}))
    return path


def settings(server: LLMServer, name: str = "llm-grade", **args: Any) -> JudgeConfig:
    return JudgeConfig(name=name, args={"base_url": server.base_url, "model": "m", "retry_wait": 0.01, **args})


def ignore(**progress: Any) -> None:
    pass


def label(service: JudgeService, shard: Path, to: Path) -> JudgedShard:
    return service.label(JudgeTask("shard 0", shard, to, PROMPTS), ignore)


def test_values_and_spending_outlive_the_process_and_a_value_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "verdicts.sqlite"
    cache = VerdictCache(path)
    assert (cache.get("a"), cache.spent("j")) == (None, Usage())
    assert not path.exists()
    cache.charge("j", Usage(calls=1))
    cache.put("a", "first", "j", Usage(0, 10, 2))
    cache.put("a", "second", "j", Usage(1, 1, 1))
    cache.put("b", "other", "k", Usage(1, 5, 5))
    cache.close()
    again = VerdictCache(path)
    assert (again.get("a"), again.get("b"), again.get("c")) == ("first", "other", None)
    assert (again.spent("j"), again.spent("k")) == (Usage(2, 11, 3), Usage(1, 5, 5))


def test_a_fork_reads_its_parents_and_writes_only_its_own(tmp_path: Path) -> None:
    parent, child = tmp_path / "parent.sqlite", tmp_path / "child.sqlite"
    first = VerdictCache(parent)
    first.put("a", "of the parent", "j", Usage(1, 5, 5))
    fork = VerdictCache(child, [parent, tmp_path / "gone.sqlite"])
    assert fork.get("a") == "of the parent"
    assert (fork.spent("j"), child.exists()) == (Usage(), False)
    fork.put("b", "of the child", "j", Usage(1, 1, 1))
    assert (fork.get("a"), fork.get("b"), first.get("b")) == ("of the parent", "of the child", None)


def test_a_cache_is_shown_by_judge_and_by_word_with_those_of_the_parents(cli: Cli) -> None:
    run = RunFolder(cli.runs / "fork")
    run.root.mkdir(parents=True)
    run.write_format()
    run.config.write_text("iterations: 1\n", encoding="utf-8")
    parent, own = cli.folder / "parent.sqlite", run.verdict_cache
    run.lineage.write_text(json.dumps({"verdict_caches": [str(parent)]}), encoding="utf-8")
    for path, words in ((parent, {"a": '{"text": "poor"}'}), (own, {"b": '{"text": "fine"}', "c": '{"text": "poor"}'})):
        cache = VerdictCache(path)
        for key, word in words.items():
            cache.put(key, word, "j" * 64, Usage(1, 10, 2))
        cache.close()
    first, second = json.loads(cli("show", "fork", "--cache", "--json").out)
    assert first["judges"] == [{"judge": "j" * 64, "kept": 2, "calls": 2, "prompt_tokens": 20, "completion_tokens": 4}]
    assert [(one["key"], one["word"]) for one in first["words"]] == [("b", {"text": "fine"}), ("c", {"text": "poor"})]
    assert (second["cache"], second["judges"][0]["calls"], len(second["words"])) == (str(parent), 1, 1)
    limited = json.loads(cli("show", "fork", "--cache", "--prompt", "poor", "--limit", "1", "--json").out)
    assert [[one["key"] for one in cache["words"]] for cache in limited] == [["c"], []]
    assert "2 kept, 2 calls paid for, 20 + 4 tokens" in cli("show", "fork", "--cache").out


def test_a_damaged_cache_is_one_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(
        JudgeError, match=r"verdicts.sqlite cannot be used \(file is not a database\).*run the same"
    ) as e:
        VerdictCache(path).get("a")
    assert "\n" not in str(e.value)
    with pytest.raises(JudgeError, match=str(path)):
        VerdictCache(tmp_path / "own.sqlite", [path]).get("a")


def test_a_damaged_cache_stops_the_judging_with_its_own_words(server: LLMServer, shard: Path, tmp_path: Path) -> None:
    (tmp_path / "verdicts.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(JudgeError, match=r"\AThe verdict cache .*cannot be used"):
        label(JudgeService(settings(server), tmp_path / "verdicts.sqlite"), shard, tmp_path / "v.parquet")
    assert server.calls == []


def test_a_second_process_waits_its_turn_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    code = (
        "import sys; from pathlib import Path; from judges.context import Usage\n"
        "from loop.store.verdict_cache import *\n"
        "cache = VerdictCache(Path(sys.argv[1]))\n"
        "for i in range(100): cache.put(f'{sys.argv[2]}{i}', 'x', 'j', Usage(1, 1, 1))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name], cwd=ROOT) for name in "ab"]
    assert [writer.wait(240) for writer in writers] == [0, 0]
    assert VerdictCache(path).spent("j") == Usage(200, 200, 200)


JUDGING = """
import sys, tests.loop.store.test_verdict_cache as t
from pathlib import Path
folder, config = Path(sys.argv[1]), t.JudgeConfig.model_validate_json(sys.argv[2])
t.label(t.JudgeService(config, folder / "verdicts.sqlite"), folder / "shard.parquet", folder / "verdicts.parquet")
"""


@pytest.mark.parametrize("name", ["llm-grade", "llm-compare"])
def test_a_kill_costs_the_calls_in_flight_and_no_other(
    server: LLMServer, shard: Path, tmp_path: Path, name: str
) -> None:
    server.delay = 0.05
    config = settings(server, name, concurrency=4)
    process = subprocess.Popen([sys.executable, "-c", JUDGING, str(tmp_path), config.model_dump_json()], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(server.answered) < 12:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "verdicts.parquet").exists()
    time.sleep(0.2)  # what was in flight ends
    before = server.answered
    assert 12 <= len(before) < 40
    service = JudgeService(config, tmp_path / "verdicts.sqlite")
    server.delay = 0.0
    result = label(service, shard, tmp_path / "verdicts.parquet")
    assert result.counts == {"score": 40}
    assert len(server.answered) == 40
    assert sum(server.answered.values()) <= 40 + 4  # four were in flight
    assert result.remembered >= len(before) - 4
    label(JudgeService(config, tmp_path / "fresh.sqlite"), shard, tmp_path / "uninterrupted.parquet")
    assert (tmp_path / "uninterrupted.parquet").read_bytes() == (tmp_path / "verdicts.parquet").read_bytes()


def test_judging_again_costs_no_call(server: LLMServer, shard: Path, tmp_path: Path) -> None:
    for number in range(2):
        service = JudgeService(settings(server), tmp_path / "verdicts.sqlite")
        label(service, shard, tmp_path / f"{number}.parquet")
    assert len(server.calls) == 40
    used = {"calls": 40, "prompt_tokens": 4000, "completion_tokens": 400}
    assert [tables.notes_of(tmp_path / f"{number}.parquet")["used"] for number in range(2)] == [used, used]


def test_too_many_errors_stop_the_shard_and_keep_what_was_paid(server: LLMServer, shard: Path, tmp_path: Path) -> None:
    server.fault = lambda number, body: "500" if "p3 " in str(body) or "p4 " in str(body) else None
    with pytest.raises(UserError, match=r"failed on 4 of 40 responses.*no verdict is paid for twice"):
        label(JudgeService(settings(server, retries=0), tmp_path / "verdicts.sqlite"), shard, tmp_path / "v.parquet")
    server.fault = lambda number, body: None
    label(JudgeService(settings(server, retries=0), tmp_path / "verdicts.sqlite"), shard, tmp_path / "v.parquet")
    assert set(server.answered.values()) == {1}


COSTLY = """
from judges import PairwiseJudge, PointwiseJudge


class Grade(PointwiseJudge):
    costly = True

    def one(self, prompt, response):
        with open("asked", "a") as file:
            file.write(response.id + "\\n")
        return len(response.text)


class Compare(PairwiseJudge):
    costly = True

    def compare(self, prompt, first, second):
        with open("asked", "a") as file:
            file.write(first.id + " " + second.id + "\\n")
        return first.text > second.text
"""


@pytest.mark.parametrize("name", ["Grade", "Compare"])
def test_a_costly_judge_of_ones_own_is_remembered_too(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "costly.py").write_text(COSTLY, encoding="utf-8")
    for number in range(2):
        service = JudgeService(JudgeConfig(name=f"costly.py:{name}"), tmp_path / "verdicts.sqlite")
        label(service, shard, tmp_path / f"{number}.parquet")
    assert len((tmp_path / "asked").read_text(encoding="utf-8").splitlines()) == 40
    assert rows(tmp_path / "0.parquet") == rows(tmp_path / "1.parquet")


def test_the_policy_judges_its_responses_in_the_sampling_engine(toys: Path, shard: Path, tmp_path: Path) -> None:
    judging = {
        "settings": JudgeConfig(name="llm-grade", args={"engine": "policy", "max_tokens": 8}),
        "cache": tmp_path / "verdicts.sqlite",
    }
    engine = EngineService(EngineConfig(kind="transformers", max_model_len=4096, batch=8), ChatFormat())
    task = JudgeTask("shard 0", shard, tmp_path / "v.parquet", PROMPTS[:2])
    two = [row for row in rows(shard) if row["prompt_id"] in ("p0", "p1")]
    shard.write_bytes(tables.to_bytes(two, tables.RESPONSES, {}))
    result = engine.label(task, toys / "model", "hash", judging, ignore)
    assert result.counts == {"abstain": 4}  # random weights write no verdict line
    used = tables.notes_of(task.path)["used"]
    assert used["calls"] == 4
    assert used["prompt_tokens"] > 4 * 500
    assert 4 <= used["completion_tokens"] <= 4 * 8
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as cache:
        assert cache.execute("SELECT count(*) FROM verdicts").fetchone() == (4,)


@pytest.mark.slow
def test_a_campaign_with_a_paid_judge_stops_at_its_budget_and_goes_on(
    cli: Cli, settings: dict[str, Any], server: LLMServer, toys: Path
) -> None:
    server.worth = lambda text: len(text) % 7
    args = {"base_url": server.base_url, "model": "m", "budget": {"max_calls": 40}}
    settings |= {"iterations": 1, "judge": {"name": "llm-grade", "args": args}, "pairs": {"rule": "best_vs_worst"}}
    config = cli.write(settings)
    told = refusal(cli("run", config))
    assert "budget is used up: max_calls is 40 and 40 is spent" in told
    run = cli.run(config, "judge.args.budget.max_calls=1000")
    assert set(server.answered.values()) == {1}
    sampled = rows(*sorted((run / "iter-001" / "sample").glob("shard-*.parquet")))
    counts = read(run / "iter-001" / "judge" / "manifest.json")["counts"]
    distinct = {(row["prompt_id"], row["text"], row["finish_reason"]) for row in sampled}
    assert (counts["score"], counts["judge_calls"]) == (64, len(distinct))
    assert events(run, "verdicts_remembered")
    assert KEY not in "".join(p.read_text(encoding="utf-8", errors="replace") for p in run.rglob("*") if p.is_file())
    paid = len(server.answered)
    assert judge_line(collect(RunFolder(run))) == f"Judge: {paid} paid calls and {110 * paid:,} tokens so far."
