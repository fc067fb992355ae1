"""A supervised phase before the round: what it trains on, whose reference it becomes, what a kill does to it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.logs import log_of
from trainer.data import Pair, PreferenceData, Ranked, Response, Single
from trainer.errors import TrainerError
from trainer.round import chosen_only, first_round, train_round, weights_digest
from trainer.settings import WarmStart
from trainer.spec import RoundSpec
from trainer.summary import WarmStartSummary

Spec = Callable[..., RoundSpec]
WARM = WarmStart(epochs=4, learning_rate=5e-3)


def silent(_: dict[str, Any]) -> None:
    """A report that nobody reads."""


def test_every_preferred_response_is_an_example_once() -> None:
    data = PreferenceData((), (Pair("p", "a", "b"), Pair("p", "a", "c"), Pair("p", "b", "c"), Pair("q", "a", "b")))
    assert [(s.prompt_id, s.response_id, s.good) for s in chosen_only(data).relations if isinstance(s, Single)] == [
        ("p", "a", True),
        ("p", "b", True),
        ("q", "a", True),
    ]
    groups = PreferenceData((), (Ranked("p", ("b", "a")),))
    singles = PreferenceData((), (Single("p", "a", good=False), Single("p", "b", good=True)))
    assert chosen_only(groups).relations == chosen_only(singles).relations == (Single("p", "b", good=True),)


def test_the_round_starts_from_what_an_sft_round_makes_and_is_anchored_to_it(
    make_spec: Spec, toy_data: PreferenceData
) -> None:
    """By hand: a round with `sft` on the chosen responses, then a round from its result."""
    whole = make_spec("whole", warm_start=WARM, epochs=2)
    summary = train_round(whole, toy_data, report=silent)
    by_hand = make_spec("sft", loss="sft", epochs=4)
    first = train_round(by_hand, chosen_only(toy_data), report=silent)
    found = weights_digest(by_hand.out)
    models = {"policy": by_hand.out, "policy_hash": found, "reference": by_hand.out, "reference_hash": found}
    second = make_spec("dpo", epochs=2, **models)
    train_round(second, toy_data, report=silent)
    ours, theirs = (load_file(spec.out / "model.safetensors") for spec in (whole, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert log_of(whole.work) == log_of(second.work)
    assert summary.first["margin"] == 0.0
    assert summary.warm_start == WarmStartSummary(
        weights_hash=found, responses=24, steps=12, loss_first=first.first["sft"], loss_last=first.last["sft"]
    )
    assert first.last["sft"] < first.first["sft"] - 0.3
    assert sorted(path.name for path in whole.work.iterdir() if path.is_dir()) == []


def test_it_reports_its_steps_and_a_finished_round_is_not_repeated(make_spec: Spec, toy_data: PreferenceData) -> None:
    spec, seen = make_spec(warm_start=WARM, max_steps=2), []
    summary = train_round(spec, toy_data, report=seen.append)
    steps = [event["phase"] for event in seen if "loss" in event]
    assert steps == ["warm start"] * 12 + ["train"] * 2
    assert train_round(spec, toy_data, report=silent) == summary
    with pytest.raises(TrainerError, match=r"differs in warm_start\."):
        train_round(make_spec(warm_start=WarmStart(epochs=1), max_steps=2), toy_data, report=silent)


@pytest.mark.parametrize("at", [("warm start", 5), ("train", 3)], ids=["in the warm start", "in the round"])
def test_stopped_and_resumed_equals_uninterrupted(
    make_spec: Spec, toy_data: PreferenceData, at: tuple[str, int]
) -> None:
    def stop(event: dict[str, Any]) -> None:
        if (event["phase"], event["done"]) == at and "loss" not in event:
            raise InterruptedError

    whole, broken = (make_spec(name, warm_start=WARM, max_steps=5, checkpoint_every=2) for name in ("whole", "broken"))
    expected = train_round(whole, toy_data, report=silent)
    with pytest.raises(InterruptedError):
        train_round(broken, toy_data, report=stop)
    assert not broken.out.exists()
    seen: list[dict[str, Any]] = []
    summary = train_round(broken, toy_data, report=seen.append)
    first = next(event["done"] for event in seen if event["phase"] == at[0] and "loss" in event)
    assert first == (at[1] // 2) * 2 + 1  # the step after the last checkpoint
    assert summary.warm_start == expected.warm_start
    ours, theirs = (load_file(spec.out / "model.safetensors") for spec in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert log_of(broken.work) == log_of(whole.work)


def test_watched_prompts_stay_unseen(make_spec: Spec, toy_data: PreferenceData) -> None:
    spec = make_spec(warm_start=WARM, max_steps=1, probe_pairs=8)
    summary = train_round(spec, toy_data, report=silent)
    assert summary.warm_start is not None
    assert summary.warm_start.responses == 18  # 3 distinct chosen responses of 6 prompts; 2 prompts are watched


def test_the_sampler_is_not_compared_with_a_model_that_did_not_sample(
    make_spec: Spec, toy_data: PreferenceData
) -> None:
    def known(response: Response) -> Response:
        return replace(response, sampled_logp=-2.0 * len(response.token_ids))

    groups = tuple(replace(group, responses=tuple(map(known, group.responses))) for group in toy_data.groups)
    data = replace(toy_data, groups=groups)
    assert train_round(make_spec("cold", max_steps=1), data, report=silent).sampler_gap is not None
    assert train_round(make_spec("warm", warm_start=WARM, max_steps=1), data, report=silent).sampler_gap is None


def test_the_first_round_knows_nothing_of_the_loss_of_the_second(make_spec: Spec) -> None:
    spec = make_spec(warm_start=WARM, beta=0.3, nll_weight=0.5, max_steps=3, probe_pairs=4)
    settings = first_round(spec).settings
    assert [term.name for term in settings.terms] == ["sft"]
    assert (settings.epochs, settings.max_steps, settings.probe_pairs, settings.warm_start) == (4, None, 0, None)
    assert settings.batch_pairs == spec.settings.batch_pairs
