"""A judge's own model in an engine of its own: it is that model which answers, a crash is retried, and wrong settings
are refused before anything is sampled."""

import json
import os
import signal
import sqlite3
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from judges import JudgeError, build_judge, fingerprint
from judges.context import JudgeContext, LocalModel, ModelRef
from loop.commands.judge_test import named_judge, run_test
from loop.config.engine_section import EngineConfig
from loop.config.settings import JudgeConfig
from loop.engines.judge_engine import asked_for, judge_engine
from loop.engines.transformers_engine import TransformersEngine
from loop.errors import UserError
from loop.prompts.chat_template import ChatFormat
from loop.store.model_folder import find_model
from loop.workers.judge_service import JudgeService, JudgeTask
from loop.workers.sampling_service import EngineService
from tests.helpers import tiny
from tests.helpers.campaigns import Cli, events, read, rows
from tests.loop.workers.test_judge_service import responses

OWN: dict[str, Any] = {"engine": "transformers", "max_tokens": 6, "engine_settings": {"max_model_len": 4096}}


@pytest.fixture(scope="module")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("judge"), seed=5)


def test_it_is_the_judges_model_that_answers(own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored reply is what that model says to the judge's question when it is asked apart."""
    monkeypatch.chdir(own_model.parent)  # a relative name, so that the seed, which depends on it, is always the same
    args = {**OWN, "model": own_model.name, "temperature": 1.5, "max_tokens": 24}
    settings = JudgeConfig(name="llm-grade", args=args)
    prompts = responses(tmp_path / "shard.parquet", "eighteen")
    judging = {"settings": settings, "cache": tmp_path / "verdicts.sqlite"}
    prepared = JudgeService(**judging).prepare(lambda **_: None, 1.0)
    assert prepared.needs == ("engine",)
    assert prepared.local_model is not None
    own = judge_engine(prepared.local_model, EngineConfig(batch=8))
    assert (own.settings.kind, own.settings.batch, own.settings.max_model_len) == ("transformers", 8, 4096)
    service = EngineService(own.settings, ChatFormat(own.chat_template_kwargs))
    task = JudgeTask("shard", tmp_path / "shard.parquet", tmp_path / "v.parquet", prompts)
    asked = []
    service.answering(own_model, own.found.digest, lambda **_: None)
    real = service.engine.generate  # type: ignore[union-attr]
    service.engine.generate = lambda requests, progress: asked.extend(requests) or real(requests, progress)  # type: ignore
    service.label(task, own_model, own.found.digest, judging, lambda **_: None)
    (request,) = asked
    apart = TransformersEngine(own_model, own.settings).generate([request], max)
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as cache:
        (stored,) = [json.loads(value) for (value,) in cache.execute("SELECT value FROM verdicts")]
    assert stored["text"] == apart[0].text
    other = TransformersEngine(tiny.save_model(tmp_path / "other", seed=6), own.settings)
    assert other.generate([request], max)[0].token_ids != apart[0].token_ids


@pytest.mark.slow
def test_a_campaign_keeps_the_second_engine_and_retries_its_crash(
    cli: Cli, settings: dict[str, Any], own_model: Path
) -> None:
    """A model of random weights writes no verdict, so that a rule decides; both judges ask the same engine."""
    grade = {"judge": "llm-grade", "args": {**OWN, "model": str(own_model)}}
    parts = [grade, {"judge": settings["judge"]["name"]}]
    settings |= {"iterations": 1, "judge": {"name": "combine", "args": {"how": "fallback", "parts": parts}}}
    settings["eval"]["judge"] = {
        "name": "combine",
        "args": {"how": "fallback", "parts": [grade, {"judge": "length", "args": {"most": 3}}]},
    }
    running = cli.start("run", cli.write(settings), "--name", "own")
    log = cli.runs / "own" / "events.jsonl"

    def started() -> list[dict[str, Any]]:
        found = events(cli.runs / "own", "worker_started") if log.exists() else []
        return [event for event in found if event["worker"] == "judge-engine"]

    running.wait_for("the judge's engine", lambda: bool(started()))
    os.kill(started()[0]["pid"], signal.SIGKILL)
    ended = running.end()
    assert ended.code == 0, ended.out + ended.err
    assert [event["worker"] for event in events(cli.runs / "own", "worker_lost")] == ["judge-engine"]
    assert len(started()) == 2  # for gate, test and training shards, and two judges
    run = cli.runs / "own"
    assert read(run / "iter-001" / "judge" / "manifest.json")["counts"]["judge_calls"] > 0
    assert {row["kind"] for row in rows(*(run / "iter-001" / "judge").glob("*.parquet"))} == {"score"}


def test_the_command_starts_the_engine_too(own_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "labelled.jsonl"
    data.write_text('{"prompt": "1 + 1 =", "response": "2", "label": "abstain"}\n', encoding="utf-8")
    arguments = [f"model={own_model}", "engine=transformers", "max_tokens=4", "engine_settings={max_model_len: 4096}"]
    found = run_test(named_judge("llm-grade", arguments, None), data, limit=None, tolerance=0, show=1, quiet=True)
    assert found.trial.agreed == 1  # random weights write no verdict
    assert found.used.calls == 1
    assert 1 <= found.used.completion_tokens <= 4


@pytest.mark.parametrize(("label", "agrees"), [("abstain", True), ("right", False)])
def test_labelled_examples_are_tried_with_the_model_that_answers(
    own_model: Path, tmp_path: Path, label: str, agrees: bool
) -> None:
    (tmp_path / "e.jsonl").write_text(json.dumps({"prompt": "1 + 1 =", "response": "2", "label": label}) + "\n")
    args = {**OWN, "model": str(own_model)}
    settings = JudgeConfig(name="llm-grade", args=args, examples=str(tmp_path / "e.jsonl"))
    judging = {"settings": settings, "cache": tmp_path / "v.sqlite"}
    prepared = JudgeService(**judging).prepare(lambda **_: None, 1.0)  # the examples wait: nobody answers here
    assert prepared.local_model is not None
    own = judge_engine(prepared.local_model, EngineConfig())
    service = EngineService(own.settings, ChatFormat())
    with nullcontext() if agrees else pytest.raises(JudgeError, match="agrees with 0 of 1 labelled examples"):
        assert service.try_examples(1.0, own_model, own.found.digest, judging, lambda **_: None) == 1


# ---- settings ----


def local(model: Path, **changes: Any) -> LocalModel:
    judge = build_judge("llm-grade", {**OWN, "model": str(model), **changes})
    judge.bind(JudgeContext(find=find_model))
    found = asked_for(judge)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"engine_settings": {"max_modellen": 5}}, "engine_settings is wrong: max_modellen: Extra inputs"),
        ({"engine_settings": {"batch": 0}}, "engine_settings is wrong: batch: Input should be greater than 0"),
        ({"engine_settings": {"kind": "vllm"}}, "kind cannot be given; judge.args.engine names it"),
        ({"engine_settings": {}, "max_tokens": 512}, "max_tokens=512 leaves no room for a question: .* takes 512"),
    ],
)
def test_wrong_settings_are_one_paragraph(own_model: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        judge_engine(local(own_model, **changes), EngineConfig())


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"engine": "vllm"}, "with engine: vllm set model"),
        ({"engine": "vllm", "model": "m", "base_url": "http://x/v1"}, "and no base_url"),
        ({"engine": "vllm", "model": "m", "request": {"a": 1}}, "use chat_template_kwargs"),
        ({"engine": "policy", "engine_settings": {"batch": 2}}, "need engine: vllm or transformers"),
        ({"engine": "vllm", "model": "m", "max_tokens": None}, "must be numbers"),
    ],
)
def test_arguments_that_belong_to_another_engine_are_refused(args: dict[str, Any], why: str) -> None:
    with pytest.raises(JudgeError, match=why):
        build_judge("llm-compare", args)


def test_one_judge_has_one_engine(own_model: Path, toys: Path) -> None:
    mine, other = ({"judge": "llm-grade", "args": {**OWN, "model": str(m)}} for m in (own_model, toys / "model"))
    self_judged = {"judge": "llm-grade", "name": "self", "args": {"engine": "policy"}}
    for parts in ([mine, {**other, "name": "b"}], [mine, self_judged]):
        judge = build_judge("combine", {"parts": parts})
        judge.bind(JudgeContext(find=find_model))
        with pytest.raises(UserError, match="use different models"):
            asked_for(judge)
    same = build_judge("combine", {"parts": [mine, {**mine, "name": "b"}]})
    same.bind(JudgeContext(find=find_model))
    assert asked_for(same) == local(own_model)


def test_other_weights_or_a_shorter_window_are_another_judge_and_a_smaller_batch_is_not(own_model: Path) -> None:
    def version(digest: str = "a", **settings: Any) -> Any:
        judge = build_judge("llm-grade", {**OWN, "model": "m", "engine_settings": settings})
        judge.bind(JudgeContext(find=lambda name: ModelRef(Path(name), digest)))
        return fingerprint(judge, "j")

    assert version() == version(batch=2, gpu_memory_share=0.3)
    assert len({str(v) for v in (version(), version("b"), version(max_model_len=2000), version(dtype="float16"))}) == 4


def test_a_judge_model_that_is_none_is_refused_when_the_judge_starts(tmp_path: Path) -> None:
    settings = JudgeConfig(name="llm-grade", args={**OWN, "model": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=r"judge.args.model: there is no folder"):
        JudgeService(settings, tmp_path / "v.sqlite")
