"""Supervised examples in every step: their loss by hand, their gradient, their order, what a kill does to them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.logs import log_of
from trainer.checkpoint import REFERENCE
from trainer.data import PreferenceData, PromptGroup, Response, Single
from trainer.errors import TrainerError
from trainer.learner import Learner
from trainer.losses.terms import terms_of
from trainer.mix import add_mix, mix_context, plan_mix
from trainer.model import Arithmetic, load_model
from trainer.objective import Objective
from trainer.round import train_round
from trainer.scorer import RowScorer
from trainer.settings import MixSettings, TrainSettings, WarmStart
from trainer.spec import RoundSpec
from trainer.step_rows import StepContext
from trainer.summary import MixSummary

Spec = Callable[..., RoundSpec]
CPU = Arithmetic(torch.device("cpu"), "fp32")
MIX = MixSettings(path="mix.jsonl", weight=0.5, per_step=3)


def silent(_: dict[str, Any]) -> None:
    """A report that nobody reads."""


def examples_of(count: int) -> PreferenceData:
    """Examples of different lengths."""
    groups = tuple(
        PromptGroup(f"m{at}", [4, 5 + at], (Response(f"m{at}", list(range(10 + at, 14 + at + at % 3))),))
        for at in range(count)
    )
    return PreferenceData(groups, tuple(Single(group.id, group.id, good=True) for group in groups))


def nll_alone(model: Any, group: PromptGroup) -> torch.Tensor:
    """Mean NLL of a response's tokens, from the model's own logits for one sequence."""
    prompt, response = list(group.token_ids), list(group.responses[0].token_ids)
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
    predicted = logits[len(prompt) - 1 : -1].log_softmax(dim=1)
    return -predicted.gather(1, torch.tensor(response)[:, None]).mean()


def test_loss_and_gradient_by_hand(make_spec: Spec) -> None:
    """`weight * mean over the step's examples of their NLL per token`, added to whatever the gradients were."""
    examples, settings = examples_of(3), TrainSettings(mix=MIX, row_tokens=16)
    model = load_model(make_spec().policy, CPU)
    mix = plan_mix(examples, settings, steps=1, seed=0)
    assert len(mix.plan.steps[0].rows) > 1
    expected = torch.stack([nll_alone(model, group) for group in examples.groups]).mean()
    (0.5 * expected).backward()
    expected = expected.detach()
    wanted = [parameter.grad.clone() + 1 for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner = Learner(model, Objective(terms_of("dpo", beta=None, nll_weight=None)))
    context = mix_context(StepContext(RowScorer(model), learner, examples, CPU, "tree"), mix)
    found = add_mix({"loss": 2.0, "dpo": 2.0}, context, mix, number=0, tick=lambda: None)
    assert found["mix"] == pytest.approx(float(expected), abs=1e-5)
    assert found["loss"] == pytest.approx(2.0 + 0.5 * float(expected), abs=1e-5)
    assert (found["dpo"], found["mix_examples"], found["mix_tokens"]) == (2.0, 3, 5 + 6 + 7)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)


def test_every_example_is_used_before_one_comes_again() -> None:
    mix = plan_mix(examples_of(10), TrainSettings(mix=MIX), steps=11, seed=0)
    assert len(mix.plan.order) == 11
    drawn = [[relation.index for row in mix.plan.steps[at].rows for relation in row.relations] for at in mix.plan.order]
    assert all(1 <= len(step) <= 3 for step in drawn)
    for first in (0, 4):
        assert sorted(index for step in drawn[first : first + 4] for index in step) == list(range(10))
    assert drawn[:4] != drawn[4:8]


def test_examples_are_logged_counted_and_learnt(make_spec: Spec, toy_data: PreferenceData) -> None:
    long = PromptGroup("long", [1] * 60, (Response("long", [2] * 10),))  # the context holds 64
    examples = examples_of(6)
    given = PreferenceData((*examples.groups, long), (*examples.relations, Single("long", "long", good=True)))
    spec = make_spec(mix=MIX, epochs=6)
    summary = train_round(spec, toy_data, report=silent, examples=given)
    steps = log_of(spec.work)
    dropped = {"longer than the model's context": 1}
    assert summary.mix == MixSummary(examples=6, dropped=dropped, trained=3 * len(steps))
    assert all(step["loss"] == pytest.approx(step["dpo"] + step["nll"] + 0.5 * step["mix"]) for step in steps)
    assert steps[-1]["mix"] < steps[0]["mix"] - 0.5
    assert summary.first["margin"] == 0.0
    plain = train_round(make_spec("plain", epochs=6), toy_data, report=silent)
    assert plain.mix is None
    assert not [key for key in plain.first if key.startswith("mix")]
    assert plain.first["dpo"] == summary.first["dpo"]


@pytest.mark.parametrize("loss", ["tr_dpo", "bco", "kto"])
def test_losses_that_keep_something_are_not_disturbed(make_spec: Spec, toy_data: PreferenceData, loss: str) -> None:
    """A moving reference, running statistics, two passes over a step: the first step's own parts stay the same."""
    alone = train_round(make_spec("alone", loss=loss, max_steps=3), toy_data, report=silent)
    spec = make_spec("mixed", loss=loss, max_steps=3, mix=MIX)
    mixed = train_round(spec, toy_data, report=silent, examples=examples_of(6))
    assert mixed.first[loss] == alone.first[loss]
    assert mixed.last["mix"] < mixed.first["mix"]
    assert not list(spec.work.rglob(REFERENCE))


def test_a_warm_start_mixes_them_in_too(make_spec: Spec, toy_data: PreferenceData) -> None:
    seen: list[dict[str, Any]] = []
    spec = make_spec(mix=MIX, max_steps=2, warm_start=WarmStart(epochs=1, learning_rate=1e-3))
    train_round(spec, toy_data, report=seen.append, examples=examples_of(6))
    assert {event["phase"] for event in seen if "mix" in event} == {"warm start", "train"}


def test_stopped_and_resumed_equals_uninterrupted(make_spec: Spec, toy_data: PreferenceData) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["done"] == 5 and "loss" not in event:
            raise InterruptedError

    examples = examples_of(7)
    whole, broken = (make_spec(name, mix=MIX, epochs=2, checkpoint_every=2) for name in ("whole", "broken"))
    train_round(whole, toy_data, report=silent, examples=examples)
    with pytest.raises(InterruptedError):
        train_round(broken, toy_data, report=stop, examples=examples)
    with pytest.raises(TrainerError, match=r"belongs to another round: it differs in examples\."):
        train_round(broken, toy_data, report=silent, examples=examples_of(8))
    assert train_round(broken, toy_data, report=silent, examples=examples).notes == ("resumed at step 4",)
    ours, theirs = (load_file(spec.out / "model.safetensors") for spec in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert log_of(broken.work) == log_of(whole.work)


def test_examples_and_settings_go_together(make_spec: Spec, toy_data: PreferenceData) -> None:
    with pytest.raises(TrainerError, match=r"train\.mix names mix\.jsonl, but the round got no examples"):
        train_round(make_spec(mix=MIX), toy_data, report=silent)
    with pytest.raises(TrainerError, match=r"examples were given, but train\.mix is not set"):
        train_round(make_spec("other"), toy_data, report=silent, examples=examples_of(2))
    foreign = replace(examples_of(1), groups=(PromptGroup("m0", [1], (Response("m0", [97]),)),))
    with pytest.raises(TrainerError, match=r"token id 97, but the model's vocabulary has 97"):
        train_round(make_spec("third", mix=MIX), toy_data, report=silent, examples=foreign)
