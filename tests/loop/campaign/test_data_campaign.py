"""Whole campaigns on given pairs (sDPO) and on sampled, replayed and offline ones: what each iteration trains on can be
traced, and a kill changes nothing."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loop.campaign.context import Iteration, ModelRoles
from loop.campaign.stages.take_prompts import take_prompts
from loop.commands.export import export_pairs
from loop.config.load import load_config
from loop.config.reward_settings import RunPairs
from loop.format import percent
from loop.prompts.row import PromptRow
from loop.report.model_card import model_card
from loop.store.model_refs import Model
from loop.store.run_folder import RunFolder
from loop.view.frame import scores
from loop.view.progress import look
from loop.view.prompt_records import collect_prompts
from loop.view.run_view import RunView
from loop.workers.measure_service import read_logps
from loop.workers.reward_service import read_run
from loop.workers.train_service import read_preferences
from tests.helpers import tiny
from tests.helpers.campaigns import Cli, assert_same_results, copy_run, events, read, refusal, rows
from tests.helpers.inprocess import Here

pytestmark = pytest.mark.slow
ASKING = tiny.TEMPLATE.replace("a:", "{% if add_generation_prompt %}a:{% endif %}")
"""A template that begins an answer only where one is asked for."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, preference data about sums, and transcripts about other things."""
    folder = tmp_path_factory.mktemp("data")
    (tiny.save_model(folder / "model") / "chat_template.jinja").write_text(ASKING, encoding="utf-8")
    sums = [{"prompt": f"{a} + {a % 7} =", "chosen": str(a + a % 7), "rejected": str(a + 9)} for a in range(30)]
    sums += [{**row, "rejected": "?"} for row in sums[::3]]
    yes = [{side: f"\n\nHuman: {i}?\n\nAssistant: {side}" for side in ("chosen", "rejected")} for i in range(20)]
    for name, pairs in (("sums", sums), ("talks", yes)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def settings_of_parts(data: Path) -> dict[str, Any]:
    prompts = {"source": "preferences", "path": str(data / "sums.jsonl"), "gate": 5, "test": 5}
    return {
        "iterations": 2,
        "threads": 1,
        "model": {"base": str(data / "model")},
        "prompts": {**prompts, "parts": 2, "order": "easy_to_hard"},
        "train": {"precision": "fp32", "learning_rate": 1e-4, "batch_pairs": 4, "checkpoint_every": 1},
        "promote": {"rule": "always"},
    }


@pytest.fixture(scope="module")
def parts(settings_of_parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sDPO campaign of two parts; tests only read it."""
    cli = Cli(tmp_path_factory.mktemp("parts"))
    return cli.run(cli.write(settings_of_parts))


def pairs(run: Path, k: int) -> list[dict[str, Any]]:
    return rows(run / f"iter-{k:03d}" / "pair" / "pairs.parquet")


def test_each_iteration_trains_on_its_part_and_no_engine_is_started(parts: Path) -> None:
    train = {row["id"]: json.loads(row["columns"])["pairs"] for row in rows(parts / "prompts" / "train.parquet")}
    first, second = ({pair["prompt_id"] for pair in pairs(parts, k)} for k in (1, 2))
    assert not first & second
    assert first | second == train.keys()
    for k, part in ((1, first), (2, second)):
        assert Counter(pair["prompt_id"] for pair in pairs(parts, k)) == {id: len(train[id]) for id in part}
        assert {(pair["rule"], pair["source_iteration"]) for pair in pairs(parts, k)} == {("given", k)}
    assert [event["worker"] for event in events(parts, "worker_started")] == ["trainer"]


def test_the_easy_part_comes_first_by_the_base_models_log_probs(parts: Path) -> None:
    logps = read_logps(parts / "iter-000" / "ease" / "train-logps.parquet")

    def ease(k: int) -> list[float]:
        gaps: dict[str, list[float]] = {}
        for pair in pairs(parts, k):
            gaps.setdefault(pair["prompt_id"], []).append(logps[pair["chosen_id"]] - logps[pair["rejected_id"]])
        return [sum(each) / len(each) for each in gaps.values()]

    assert min(ease(1)) >= max(ease(2))


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data / "model")


def test_given_answers_are_what_the_data_say_and_end_with_the_end_token(parts: Path, tokenizer: Any) -> None:
    for row in rows(*parts.glob("iter-*/pair/answers.parquet"), *parts.glob("iter-000/eval/*-answers.parquet")):
        assert tokenizer.decode(row["token_ids"]) == f"{row['text']}<eos>"
        assert tokenizer.decode(row["prompt_token_ids"]).endswith("=\na:")


def test_the_trained_model_is_the_next_reference_and_starts_at_it(parts: Path) -> None:
    first, second = (read(parts / f"iter-{k:03d}" / "promotion.json") for k in (1, 2))
    assert second["reference"]["hash"] == second["start"]["hash"] == first["candidate"]["hash"]
    for k in (1, 2):
        lines = (parts / f"iter-{k:03d}" / "train" / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(lines[0])["margin"] == 0.0
        assert sum(json.loads(line)["pairs"] for line in lines) == len(pairs(parts, k))


def test_models_are_measured_by_the_preferences_that_were_held_out(parts: Path) -> None:
    base, last = (read(parts / f"iter-{k:03d}" / "eval" / "metrics.json")["gate"] for k in (0, 2))
    assert base["preference_accuracy"]["value"] == 0.5
    before, own = (read_logps(parts / f"iter-{k:03d}" / "eval" / "gate-logps.parquet") for k in (0, 2))
    held_out = {row["id"]: json.loads(row["columns"])["pairs"] for row in rows(parts / "prompts" / "gate.parquet")}
    assert last["pairs"] == sum(map(len, held_out.values()))
    answers = rows(parts / "iter-000" / "eval" / "gate-answers.parquet")
    id_of = {(row["prompt_id"], row["text"]): row["response_id"] for row in answers}
    margins = [
        sum(sign * (own[i] - before[i]) for side, sign in (("chosen", 1), ("rejected", -1))
            for i in [id_of[prompt_id, pair[side][0]["content"]]])
        for prompt_id, of_prompt in held_out.items() for pair in of_prompt
    ]  # fmt: skip
    assert last["mean_margin"] == pytest.approx(sum(margins) / len(margins))
    assert last["preference_accuracy"]["value"] == sum(margin > 0 for margin in margins) / len(margins)


def test_a_killed_campaign_on_given_pairs_ends_the_same(
    parts: Path, settings_of_parts: dict[str, Any], here: Here
) -> None:
    config = here.write(settings_of_parts)
    here.pause_at("*/iter-001/pair/.pairs*", config).kill()
    assert_same_results(here.run(config), parts)


def test_show_and_export_know_given_pairs(parts: Path, tmp_path: Path) -> None:
    run = RunFolder(parts)
    (shown,) = collect_prompts(run, 1, "train", None, 1)
    (chosen, rejected), *_ = shown.pairs
    assert {chosen, rejected} <= {answer.response_id for answer in shown.responses}
    assert len(collect_prompts(run, 2, "gate", None, 99)) == 5
    assert export_pairs(run, 2, tmp_path / "out.jsonl", "conversational") == len(pairs(parts, 2))
    exported = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(row["chosen"][0]["content"].isdigit() for row in exported)
    assert "Its pairs are given (preferences)" in model_card(run, 2)


def test_report_status_and_notebook_tell_of_preferences(parts: Path) -> None:
    assert not events(parts, "report_failed")
    metrics = read(parts / "iter-002" / "eval" / "metrics.json")["test"]
    value = metrics["preference_accuracy"]["value"]
    before = read(parts / "iter-001" / "eval" / "metrics.json")["test"]["preference_accuracy"]["value"]
    page = (parts / "report.html").read_text(encoding="utf-8")
    assert "preference accuracy on the test prompts changed by" in page
    assert "nothing is sampled: the pairs come from the data" in page
    campaign = RunView.open(parts)
    assert campaign.metrics()[2].to_arrow()["eval/test/preference"].to_pylist() == [value]
    assert campaign.responses().iterations == []
    for row in campaign.pairs().to_arrow().to_pylist():
        first, second = map(int, row["prompt"].removesuffix(" =").split(" + "))
        assert row["chosen"] == str(first + second) != row["rejected"]
    assert list(scores(look(RunFolder(parts), load_config(parts / "campaign.yaml")), 80)) == [
        f"test preference %  0: 50.0  1: {percent(before)}  2: {percent(value)}"
    ]
    assert {event["stage"] for event in events(parts, "alarm")} <= {"train"}


def test_another_order_of_finished_parts_is_refused(parts: Path, here: Here) -> None:
    copy_run(parts, here)
    said = refusal(here("run", str(here.runs / "campaign"), "prompts.order=hard_to_easy"))
    assert 'prompts.order was "easy_to_hard" and is now "hard_to_easy"' in said


# ---- sampled pairs with others beside them ----


@pytest.fixture(scope="module")
def beside(reference: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference campaign, continued by an iteration with replayed and offline pairs; tests only read it."""
    cli = Cli(tmp_path_factory.mktemp("beside"))
    run = copy_run(reference, cli)
    offline = f"{{path: {data / 'talks.jsonl'}, share: 0.25}}"
    settings = ["iterations=3", "per_iteration.3.pairs.replay={1: 0.25, 2: 0.5}"]
    ended = cli("run", str(run), *settings, f"per_iteration.3.pairs.offline={offline}")
    assert (ended.code, ended.err) == (0, ""), ended.out + ended.err
    return run


def test_replayed_and_offline_pairs_are_as_many_as_was_asked_for(beside: Path) -> None:
    by_source = [Counter(pair["source_iteration"] for pair in pairs(beside, k)) for k in (1, 2, 3)]
    new = [counts[k] for k, counts in enumerate(by_source, start=1)]
    replayed = {2: min(round(0.25 * new[2]), new[1]), 1: min(round(0.5 * new[2]), new[0])}
    others = new[2] + sum(replayed.values())
    assert by_source[2] == {3: new[2], **replayed, 0: min(round(others / 3), 20)}
    counts = read(beside / "iter-003" / "pair" / "manifest.json")["counts"]
    assert counts["replayed"] == {str(source): count for source, count in replayed.items()}
    assert (counts["offline"], counts["pairs"]) == (by_source[2][0], len(pairs(beside, 3)))
    for source in (1, 2):
        own = pairs(beside, source)
        assert all(pair in own for pair in pairs(beside, 3) if pair["source_iteration"] == source)


def test_what_is_replayed_trains_as_the_tokens_that_were_sampled(beside: Path, tokenizer: Any) -> None:
    run = RunFolder(beside)
    own, others = run.response_files(3)
    found = read_preferences(own, run.stage(3, "pair").pairs, others)
    assert len(found.relations) == len(pairs(beside, 3))
    trained = {r.id: (list(r.token_ids), r.sampled_logp) for group in found.groups for r in group.responses}
    sampled = {row["response_id"]: row for row in rows(*sorted(beside.glob("iter-*/sample/*.parquet")))}
    for id, (ids, logp) in trained.items():
        if "given" not in id:
            assert ids == sampled[id]["token_ids"]
            assert (logp is not None) == id.startswith("3-")
    talked = {tokenizer.decode(ids) for id, (ids, _) in trained.items() if "given" in id}
    assert talked == {"chosen<eos>", "rejected<eos>"}
    assert read(beside / "iter-003" / "train" / "manifest.json")["counts"]["pairs"] == len(pairs(beside, 3))


def test_report_and_notebook_hold_pairs_of_all_sources(beside: Path) -> None:
    assert not events(beside, "report_failed")
    signal = read(beside / "iter-003" / "pair" / "manifest.json")["counts"]["signal"]
    new = sum(pair["source_iteration"] == 3 for pair in pairs(beside, 3))
    assert signal["per_prompt"] == new / 16
    for row in RunView.open(beside).pairs()[3].to_arrow().to_pylist():
        assert (row["chosen_score"], row["rejected_score"]) == (row["score_w"], row["score_l"])
        if not row["source_iteration"]:
            assert (row["prompt"][-1], row["chosen"], row["rejected"]) == ("?", "chosen", "rejected")


def test_a_reward_model_sees_a_replayed_pair_once(beside: Path) -> None:
    whole = read_run(RunPairs(source="run", run=str(beside)))
    last = read_run(RunPairs(source="run", run=str(beside), iterations=[3]))
    own = sum(pair["source_iteration"] in (k, 0) for k in (1, 2, 3) for pair in pairs(beside, k))
    assert (len(whole.relations), len(last.relations)) == (own, len(pairs(beside, 3)))


def test_the_second_pass_goes_by_the_solve_rates_of_the_first(reference: Path) -> None:
    rates: dict[str, list[float]] = {}
    for row in rows(*sorted(reference.glob("iter-*/judge/*.parquet"))):
        rates.setdefault(row["prompt_id"], []).append(row["score"])
    rate = {id: sum(each) / len(each) for id, each in rates.items()}
    train = [PromptRow(id, [], None, {}) for id in sorted(rates)]
    base = load_config(reference / "campaign.yaml", ["prompts.order=hard_to_easy"]).base
    campaign: Any = SimpleNamespace(base=base, run=RunFolder(reference))

    def of(k: int) -> Iteration:
        model = Model(reference, "hash", 0)
        return Iteration(campaign, k, base, ModelRoles(model, model, model), {"train": train})

    first, third, fourth = (take_prompts(of(k)) for k in (1, 3, 4))
    assert (first.made_from, third.inputs["prompts.order"]) == ({}, "hard_to_easy")
    hard, easy = ([rate[row.id] for row in one.rows()] for one in (third, fourth))
    assert (len(hard), len(easy)) == (16, 16)
    assert min(easy) >= max(hard) > min(hard)
    assert third.made_from == fourth.made_from != {}


def test_other_pairs_to_replay_in_a_finished_iteration_are_refused(beside: Path, here: Here) -> None:
    copy_run(beside, here)
    said = refusal(here("run", str(here.runs / "campaign"), "per_iteration.3.pairs.replay={1: 0.4}"))
    assert "pairs.replay was" in said
