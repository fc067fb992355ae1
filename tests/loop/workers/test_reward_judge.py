"""A reward model as a campaign's judge: planned without being loaded, refused before anything is sampled, and its
verdicts are what the judge says of the sampled texts apart."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from judges import Group, JudgeError, Prompt, Response, build_judge, judge_groups
from judges.context import Usage
from loop.config.settings import JudgeConfig
from loop.store.verdict_cache import VerdictCache
from loop.workers.judge_service import JudgeService
from tests.helpers import tiny
from tests.helpers.campaigns import Cli, events, read, refusal, rows
from tests.helpers.classifiers import save_classifier
from tests.loop.cli.test_startup import COMMAND, HEAVY, REPORT, heavy_modules_after
from tests.loop.workers.test_log_prob_service import logp


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("reward") / "model", max_position_embeddings=512)


def test_a_plan_loads_no_library_and_hashes_no_weights(cli: Cli, settings: dict[str, Any], tmp_path: Path) -> None:
    """The model need not even be there."""
    settings["judge"] = {"name": "reward-model", "args": {"model": str(tmp_path / "not yet there")}}
    arguments = ["plan", str(cli.write(settings)), "--json"]
    assert heavy_modules_after(COMMAND.format(arguments=arguments, report=REPORT.format(heavy=HEAVY)), tmp_path) == []


def test_a_plan_says_how_many_verdicts_that_is_and_speaks_of_no_money(cli: Cli, settings: dict[str, Any]) -> None:
    settings["judge"] = {"name": "reward-model", "args": {"model": "a/b"}}
    told = cli("plan", cli.write(settings)).out
    assert f"at most {2 * 16 * 4 + 3 * 14 * 3} verdicts, each on a text of at most 128 tokens" in told
    assert "price" not in told


def test_a_batch_is_one_transaction(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "v.sqlite")
    cache.put("a", "1", "j", Usage(calls=1))
    cache.put_all({"a": "other", "b": "2", "c": "3"}, "j", Usage(calls=3))
    assert [cache.get(key) for key in "abc"] == ["1", "2", "3"]  # what is there stays
    assert cache.spent("j") == Usage(calls=4)
    with pytest.raises(JudgeError, match="cannot be used"):
        cache.put_all({"d": "4", "e": object()}, "j", Usage(calls=2))  # type: ignore[dict-item]
    assert cache.get("d") is None  # all or nothing
    assert cache.spent("j") == Usage(calls=4)


@pytest.mark.slow
def test_a_campaign_trains_on_a_reward_model_and_is_measured_by_an_implicit_reward(
    cli: Cli, settings: dict[str, Any], reward: Path, tmp_path: Path
) -> None:
    """The reward model is named by a relative path; the base model counts as tuned from another one."""
    (tmp_path / "my-model").symlink_to(reward)
    reference = tiny.save_model(tmp_path / "reference", seed=1)
    settings |= {"iterations": 1, "judge": {"name": "reward-model", "args": {"model": "my-model"}}}
    settings["pairs"] = {"rule": "best_vs_worst"}
    settings["eval"]["judge"] = {"name": "implicit-reward", "args": {"reference": str(reference)}}
    config = cli.write(settings)
    run = cli.run(config)
    check_rewards(run, reward)
    for number, policy in ((0, Path(settings["model"]["base"])), (1, run / "iter-001" / "train" / "model")):
        check_implicit(run / f"iter-{number:03d}" / "eval", policy, reference)
    assert not events(run, "worker_lost")
    assert "nothing left to do" in cli("run", config).out
    save_classifier(reward, seed=9, max_position_embeddings=512)
    assert "would invalidate it: judge was" in refusal(cli("run", config))


def check_rewards(run: Path, reward: Path) -> None:
    """What is stored is what the judge says of the sampled texts apart; each content was scored once."""
    sampled = rows(*sorted((run / "iter-001" / "sample").glob("*.parquet")))
    said = {row["response_id"]: row for row in rows(*sorted((run / "iter-001" / "judge").glob("*.parquet")))}
    prompts = {row["id"]: json.loads(row["messages"]) for row in rows(run / "prompts" / "train.parquet")}
    groups = [
        Group(
            Prompt(row["prompt_id"], tuple(prompts[row["prompt_id"]]), None, {}),
            (Response(row["response_id"], row["text"], row["finish_reason"]),),
        )
        for row in sampled
    ]
    apart = judge_groups(build_judge("reward-model", {"model": str(reward)}), groups)
    for group, (verdict,) in zip(groups, apart, strict=True):
        assert said[group.responses[0].id]["score"] == pytest.approx(verdict.score, abs=1e-5)
    assert read(run / "iter-001" / "judge" / "manifest.json")["counts"]["judge_calls"] == len(sampled)
    distinct = {(row["prompt_id"], row["text"], row["finish_reason"]) for row in sampled}
    with sqlite3.connect(run / "cache" / "verdicts.sqlite") as cache:
        assert cache.execute("SELECT count(*) FROM verdicts").fetchone() == (len(distinct),)


def check_implicit(folder: Path, policy: Path, reference: Path) -> None:
    """The candidate's own log-ratio, on the ids that it sampled."""
    said = {row["response_id"]: row["score"] for row in rows(*folder.glob("gate-verdicts*.parquet"))}
    sampled = [row for row in rows(*folder.glob("gate*.parquet")) if "token_ids" in row]
    assert said
    for row in sampled[:3]:
        ids = row["prompt_token_ids"], row["token_ids"]
        assert said[row["response_id"]] == pytest.approx(0.1 * (logp(policy, *ids) - logp(reference, *ids)), abs=1e-3)


def test_a_model_without_a_head_stops_the_test_before_the_campaign(toys: Path, tmp_path: Path) -> None:
    settings = JudgeConfig(name="reward-model", args={"model": str(toys / "model")})
    with pytest.raises(JudgeError, match=r"no weights for score\.weight"):
        JudgeService(settings, tmp_path / "v.sqlite").prepare(lambda **_: None, 1.0)
