"""Losses with a statistic of the whole step: a step cut into many rows is the step in one row, also in bf16."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.test_architectures import assert_same
from tests.trainer.test_step import context_of, reference_of
from trainer.data import PreferenceData, as_kind
from trainer.losses.table import METHODS
from trainer.model import choose_arithmetic, load_model
from trainer.prepare import with_mismatched
from trainer.settings import TrainSettings
from trainer.step import accumulate_step
from trainer.tree.rows import Plan, Step, plan_rows

WHOLE = sorted(name for name, method in METHODS.items() if "step" in method.needs)
Result = tuple[dict[str, float], dict[str, torch.Tensor]]

LOSSES = {"beta_dpo": {"name": "beta_dpo", "keep": 0.5, "momentum": 0.0}}
"""A spread so wide that chance has a say in which pairs are kept."""


def test_the_losses_over_whole_steps() -> None:
    assert WHOLE == ["aot", "aot_unpaired", "bco", "beta_dpo", "kto"]


def run(policy: Path, toy_data: PreferenceData, name: str, *, precision: Any = "fp32") -> tuple[Result, Result]:
    """A step of all relations in one row, and in many, for which the prompts are cut too."""
    settings = TrainSettings(loss=LOSSES.get(name, name), precision=precision, batch_pairs=64)
    data = as_kind(toy_data, METHODS[name].kind)
    data = with_mismatched(data) if "mismatched" in METHODS[name].needs else data
    plans = [
        plan_rows(data, settings.model_copy(update={"row_tokens": tokens}), seed=0, layout="tree")
        for tokens in (100_000, 24)
    ]
    assert len(plans[0].steps[0].rows) == 1
    assert len(plans[1].steps[0].rows) > 8
    assert order(plans[0]) != order(plans[1])
    one, many = (step(policy, data, settings, plan) for plan in plans)
    return one, many


def order(plan: Plan) -> list[int]:
    return [relation.index for row in plan.steps[0].rows for relation in row.relations]


def step(policy: Path, data: PreferenceData, settings: TrainSettings, plan: Plan) -> Result:
    model = load_model(policy, choose_arithmetic(settings))
    context, reference = context_of(model, data, settings, plan.layout), reference_of(data, plan, 0.3)
    totals = accumulate_step(context, plan.steps[0], reference, number=3, check_zero=False, tick=lambda: None)
    means = {name: value for name, value in totals.means().items() if name != "entropy"}  # a mean of row means
    return means, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", WHOLE)
def test_many_rows_are_one_row(name: str, policy: Path, toy_data: PreferenceData) -> None:
    """Also what is drawn and how ties are ordered must not depend on the rows (beta_dpo, aot)."""
    one, many = run(policy, toy_data, name)
    assert many[0] == pytest.approx(one[0], rel=1e-5)
    assert_same(many[1], one[1])


@pytest.mark.parametrize("name", WHOLE)
def test_many_rows_are_one_row_in_bf16_up_to_rounding(name: str, policy: Path, toy_data: PreferenceData) -> None:
    one, many = run(policy, toy_data, name, precision="bf16-autocast")
    assert many[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-2)
    expected, gradient = (torch.cat([grad.flatten() for grad in result[1].values()]) for result in (one, many))
    assert torch.nn.functional.cosine_similarity(gradient, expected, dim=0) > 0.999


def test_a_mean_of_row_losses_would_be_another_loss(policy: Path, toy_data: PreferenceData) -> None:
    """The reference point of KTO is that of the step, not of a row."""
    settings = TrainSettings(loss="kto", precision="fp32", batch_pairs=64, row_tokens=40)
    data = with_mismatched(as_kind(toy_data, "singles"))
    whole = plan_rows(data, settings, seed=0, layout="tree")
    total = 0.0
    for row in whole.steps[0].rows:
        alone, _ = step(policy, data, settings, Plan("tree", (Step((row,)),), (0,), ""))
        total += alone["loss"] * len(row.relations)
    expected, _ = step(policy, data, settings, whole)
    assert total / len(data.relations) != pytest.approx(expected["loss"], rel=1e-3)
