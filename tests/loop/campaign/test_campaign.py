"""A whole campaign with a tiny model: what it leaves behind adds up, and every number can be recomputed."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loop.store.model_folder import weights_hash
from loop.store.run_folder import RunFolder
from loop.view.status import collect
from tests.helpers import tiny
from tests.helpers.campaigns import events, read, rows
from tests.helpers.inprocess import Here

ITERATIONS = (1, 2)


def samples(run: Path, k: int) -> list[dict[str, Any]]:
    return rows(*sorted((run / f"iter-{k:03d}" / "sample").glob("*.parquet")))


def verdicts(run: Path, k: int) -> dict[str, dict[str, Any]]:
    found = rows(*sorted((run / f"iter-{k:03d}" / "judge").glob("*.parquet")))
    by_id = {row["response_id"]: row for row in found}
    assert len(by_id) == len(found)
    return by_id


def pairs(run: Path, k: int) -> list[dict[str, Any]]:
    return rows(run / f"iter-{k:03d}" / "pair" / "pairs.parquet")


def test_one_start_of_each_worker_serves_the_whole_campaign(reference: Path) -> None:
    started = [event["worker"] for event in events(reference, "worker_started")]
    assert sorted(started) == ["engine", "judge", "trainer"]


@pytest.mark.parametrize("k", ITERATIONS)
def test_every_prompt_gives_its_responses_and_every_response_its_verdict(reference: Path, k: int) -> None:
    sampled, judged = samples(reference, k), verdicts(reference, k)
    assert set(Counter(row["prompt_id"] for row in sampled).values()) == {4}
    assert len({row["prompt_id"] for row in sampled}) == 16
    assert [row["response_id"] for row in sampled] == list(judged)
    assert all(judged[row["response_id"]]["score"] == (len(row["text"]) % 2 == 0) for row in sampled)
    assert len({row["seed"] for row in sampled}) == len(sampled)
    assert {0.0, 1.0} == {verdict["score"] for verdict in judged.values()}


@pytest.mark.parametrize("k", ITERATIONS)
def test_a_response_ends_with_the_end_token_exactly_if_it_stopped(reference: Path, k: int) -> None:
    sampled = samples(reference, k)
    for row in sampled:
        assert (row["token_ids"][-1] == tiny.EOS) == (row["finish_reason"] == "stop")
        assert tiny.EOS not in row["token_ids"][:-1]
        assert row["finish_reason"] == "stop" or len(row["token_ids"]) == 12
        assert len(row["logprobs"]) == len(row["token_ids"])
    assert {row["finish_reason"] for row in sampled} == {"stop", "length"}


@pytest.mark.parametrize("k", ITERATIONS)
def test_pairs_prefer_right_to_wrong_and_the_counts_reconcile(reference: Path, k: int) -> None:
    sampled, judged, made = (
        {row["response_id"]: row for row in samples(reference, k)},
        verdicts(reference, k),
        pairs(reference, k),
    )
    counts = read(reference / f"iter-{k:03d}" / "pair" / "manifest.json")["counts"]
    assert made
    assert counts["pairs"] == len(made)
    assert sum(counts["responses"].values()) == len(sampled) == 64
    assert sum(counts["prompts"].values()) == 16
    used = {pair[side] for pair in made for side in ("chosen_id", "rejected_id")}
    assert counts["responses"]["used"] == len(used)
    for pair in made:
        chosen, rejected = sampled[pair["chosen_id"]], sampled[pair["rejected_id"]]
        assert chosen["prompt_id"] == rejected["prompt_id"] == pair["prompt_id"]
        assert (judged[pair["chosen_id"]]["score"], judged[pair["rejected_id"]]["score"]) == (1.0, 0.0)
        assert chosen["token_ids"] != rejected["token_ids"]
        assert chosen["finish_reason"] == "stop"


def test_prompt_sets_and_slices_are_disjoint(reference: Path) -> None:
    sets = {
        name: {row["id"] for row in rows(reference / "prompts" / f"{name}.parquet")}
        for name in ("train", "gate", "test")
    }
    assert {name: len(ids) for name, ids in sets.items()} == {"train": 48, "gate": 6, "test": 8}
    assert len(set.union(*sets.values())) == 62
    first, second = ({row["prompt_id"] for row in samples(reference, k)} for k in ITERATIONS)
    assert not first & second
    assert first | second < sets["train"]


def test_each_iteration_samples_from_and_trains_what_was_promoted(reference: Path) -> None:
    promotions = [read(reference / f"iter-{k:03d}" / "promotion.json") for k in (0, *ITERATIONS)]
    for k in ITERATIONS:
        before = promotions[k - 1]["policy"]["hash"]
        assert {row["policy_hash"] for row in samples(reference, k)} == {before}
        assert promotions[k]["incumbent"]["hash"] == promotions[k]["reference"]["hash"] == before
        assert promotions[k]["policy"]["hash"] == weights_hash(reference / f"iter-{k:03d}" / "train" / "model")
        assert read(reference / f"iter-{k:03d}" / "train" / "manifest.json")["counts"]["weights_hash"] != before


@pytest.mark.parametrize("k", ITERATIONS)
def test_training_starts_at_the_reference_and_walks_every_pair(reference: Path, k: int) -> None:
    text = (reference / f"iter-{k:03d}" / "train" / "steps.jsonl").read_text(encoding="utf-8")
    steps = [json.loads(line) for line in text.splitlines()]
    assert steps[0]["margin"] == 0.0
    assert steps[0]["dpo"] == pytest.approx(0.6931472)
    assert sum(step["pairs"] for step in steps) == len(pairs(reference, k))
    assert len(steps) > 2, "too few steps to be killed between"


def answers(run: Path, k: int, name: str) -> list[dict[str, Any]]:
    """Responses of an evaluation with their verdicts, read from the tables."""
    folder = run / f"iter-{k:03d}" / "eval"
    judged = {row["response_id"]: row for row in rows(*sorted(folder.glob(f"{name}-verdicts-*.parquet")))}
    return [row | {"verdict": judged[row["response_id"]]} for row in rows(*sorted(folder.glob(f"{name}-0*.parquet")))]


def share(successes: list[bool]) -> tuple[float | None, int]:
    return (sum(successes) / len(successes) if successes else None), len(successes)


@pytest.mark.parametrize("name", ["gate", "test"])
@pytest.mark.parametrize("k", [0, *ITERATIONS])
def test_the_accuracies_of_status_are_those_of_the_tables(reference: Path, k: int, name: str) -> None:
    shown = collect(RunFolder(reference)).iterations[k]
    metrics = getattr(shown, name)
    found = answers(reference, k, name)
    right = {row["response_id"]: row["verdict"]["score"] == 1.0 for row in found}
    sampled = [row for row in found if row["temperature"] > 0]
    formed = [row for row in sampled if row["verdict"]["well_formed"]]
    expected = {
        "sampled_accuracy": share([right[row["response_id"]] for row in sampled]),
        "greedy_accuracy": share([right[row["response_id"]] for row in found if row["temperature"] == 0]),
        "well_formed_share": share([bool(row["verdict"]["well_formed"]) for row in sampled]),
        "accuracy_among_well_formed": share([right[row["response_id"]] for row in formed]),
    }
    assert shown.iteration == k
    for metric, (value, n) in expected.items():
        interval = getattr(metrics, metric)
        assert (interval.value, interval.n) == (pytest.approx(value), n)
        assert value is None or 0 <= interval.low <= value <= interval.high <= 1
    assert len(sampled) == 2 * len({row["prompt_id"] for row in found})
    assert metrics.mean_length == pytest.approx(sum(len(r["token_ids"]) for r in sampled) / len(sampled))


def test_all_models_answer_the_same_held_out_prompts_with_the_same_seeds(reference: Path) -> None:
    for name in ("gate", "test"):
        asked = [
            [(r["prompt_id"], r["seed"], r["temperature"]) for r in answers(reference, k, name)] for k in (0, 1, 2)
        ]
        assert asked[0] == asked[1] == asked[2]


def test_metrics_jsonl_holds_the_iterations_of_status(reference: Path) -> None:
    lines = (reference / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    shown = json.loads(json.dumps(collect(RunFolder(reference)).as_json()["iterations"]))
    assert [json.loads(line) for line in lines] == shown
    assert [row["iteration"] for row in shown] == [0, 1, 2]


def test_a_candidate_loads_in_an_engine_and_answers_as_it_was_evaluated(reference: Path) -> None:
    from loop.config.engine_section import EngineConfig
    from loop.engines.base import Request
    from loop.engines.transformers_engine import TransformersEngine

    found = answers(reference, 2, "gate")
    engine = TransformersEngine(reference / "iter-002" / "train" / "model", EngineConfig(kind="transformers", batch=16))
    requests = [Request(r["prompt_token_ids"], r["seed"], r["temperature"], 1.0, 12) for r in found]
    assert [c.token_ids for c in engine.generate(requests, lambda *_: None)] == [r["token_ids"] for r in found]


@pytest.mark.slow
def test_a_rejected_candidate_leaves_the_incumbent_in_place(here: Here, settings: dict[str, Any]) -> None:
    settings["promote"] = {"rule": "better"}
    settings["train"] |= {"learning_rate": 1e-6, "lora": {"rank": 2}}
    settings["pairs"] = {"rule": "best_vs_worst"}
    settings |= {"reference": "initial"}
    settings["per_iteration"] = {2: {"sampling.temperature": 1.3}}
    run = here.run(here.write(settings))
    base = read(run / "iter-000" / "promotion.json")["policy"]
    for k in ITERATIONS:
        promotion = read(run / f"iter-{k:03d}" / "promotion.json")
        assert not promotion["promoted"]
        assert promotion["policy"] == promotion["reference"] == base
        assert promotion["candidate"]["hash"] != base["hash"]
        assert {row["policy_hash"] for row in samples(run, k)} == {base["hash"]}
        assert {pair["rule"] for pair in pairs(run, k)} == {"best_vs_worst"}
    assert [samples(run, k)[0]["temperature"] for k in ITERATIONS] == [pytest.approx(0.8), pytest.approx(1.3)]
    state = collect(RunFolder(run))
    assert (state.incumbent, state.complete) == (0, True)
