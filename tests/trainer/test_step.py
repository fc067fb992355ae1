"""One optimizer step has one denominator: how its pairs lie in rows changes neither loss nor gradient."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.data import PreferenceData, Single
from trainer.diagnostics import StepTotals
from trainer.errors import TrainerError
from trainer.learner import Learner
from trainer.model import choose_arithmetic, load_model, make_trainable
from trainer.objective import Objective
from trainer.optimizer import learning_rate
from trainer.reference import RowReference
from trainer.scorer import RowScorer
from trainer.settings import TrainSettings
from trainer.step import accumulate_step, clip_gradients
from trainer.step_rows import StepContext
from trainer.tree.rows import Layout, Plan, Step, plan_rows

SETTINGS = TrainSettings(precision="fp32", batch_pairs=32)


def planned(data: PreferenceData, layout: Layout = "tree", row_tokens: int = 48) -> Plan:
    return plan_rows(data, SETTINGS.model_copy(update={"row_tokens": row_tokens}), seed=0, layout=layout)


def run(
    policy: Path, data: PreferenceData, plan: Plan, settings: TrainSettings = SETTINGS, shift: float = 0.3
) -> tuple[StepTotals, torch.Tensor]:
    """Totals and all gradients of the plan's only step; reference = -20 and a shift for every second response."""
    model = load_model(policy, choose_arithmetic(settings))
    context = context_of(model, data, settings, plan.layout)
    (step,) = plan.steps
    reference = reference_of(data, plan, shift)
    totals = accumulate_step(context, step, reference, number=0, check_zero=False, tick=lambda: None)
    return totals, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def context_of(model: Any, data: PreferenceData, settings: TrainSettings, layout: Layout) -> StepContext:
    learner = Learner(model, Objective(settings.terms))
    return StepContext(RowScorer(model), learner, data, choose_arithmetic(settings), layout)


def reference_of(data: PreferenceData, plan: Plan, shift: float) -> list[RowReference]:
    """Made-up reference sums that depend on the response only."""
    return [
        RowReference(
            torch.tensor([-20.0 + shift * ((tree.group + r) % 5) for tree in row.trees for r in tree.responses]), None
        )
        for row in plan.steps[0].rows
    ]


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_uneven_rows_give_the_same_loss_and_gradient_as_one_row(policy: Path, toy_data: PreferenceData) -> None:
    whole, uneven = planned(toy_data, row_tokens=100_000), planned(toy_data)
    sizes = {len(row.relations) for row in uneven.steps[0].rows}
    assert len(whole.steps[0].rows) == 1
    assert len(sizes) > 1
    (one, gradient), (many, accumulated) = run(policy, toy_data, whole), run(policy, toy_data, uneven)
    assert many.means() == pytest.approx(one.means(), rel=1e-5)
    close(accumulated, gradient)


def test_a_mean_of_row_means_would_be_another_gradient(policy: Path, toy_data: PreferenceData) -> None:
    whole, uneven = planned(toy_data, row_tokens=100_000), planned(toy_data)
    _, gradient = run(policy, toy_data, whole)
    rows = uneven.steps[0].rows
    wrong = torch.zeros_like(gradient)
    for row in rows:
        _, of_row = run(policy, toy_data, replace(uneven, steps=(Step((row,)),)))
        wrong += of_row / len(rows)
    assert (wrong - gradient).abs().max() > 1e-3 * gradient.abs().max()


def test_a_row_over_which_no_term_is_written_changes_no_gradient(policy: Path, toy_data: PreferenceData) -> None:
    """`sft` is written over good responses only; here one row has none."""
    settings = SETTINGS.model_copy(update={"loss": "sft", "row_tokens": 16})
    labels = tuple(Single(group.id, "r0", good=at > 0) for at, group in enumerate(toy_data.groups))
    mixed, good = PreferenceData(toy_data.groups, labels), PreferenceData(toy_data.groups, labels[1:])
    plans = [plan_rows(data, settings, seed=0, layout="tree") for data in (mixed, good)]
    rows = plans[0].steps[0].rows
    assert [relation.index for row in rows for relation in row.relations if len(row.relations) == 1].count(0) == 1
    (many, gradient), (few, expected) = run(policy, mixed, plans[0], settings), run(policy, good, plans[1], settings)
    assert many.means()["loss"] == pytest.approx(few.means()["loss"], rel=1e-5)
    close(gradient, expected)


def test_trees_and_plain_rows_give_the_same_step(policy: Path, toy_data: PreferenceData) -> None:
    tree, gradient = run(policy, toy_data, planned(toy_data))
    plain, expected = run(policy, toy_data, planned(toy_data, layout="plain"))
    assert tree.means() == pytest.approx(plain.means(), rel=1e-5)
    close(gradient, expected)
    assert tree.tokens < 0.4 * plain.plain_tokens
    assert tree.plain_tokens == plain.plain_tokens


def test_a_weight_counts_like_repeated_pairs(policy: Path, toy_data: PreferenceData) -> None:
    first, *rest = toy_data.relations
    doubled = PreferenceData(toy_data.groups, (replace(first, weight=2.0), *rest))
    repeated = PreferenceData(toy_data.groups, (first, first, *rest))
    _, of_weight = run(policy, doubled, planned(doubled, row_tokens=100_000))
    settings = SETTINGS.model_copy(update={"batch_pairs": 33, "row_tokens": 100_000})
    _, of_repeat = run(policy, repeated, plan_rows(repeated, settings, seed=0, layout="tree"))
    close(of_weight * len(toy_data.relations), of_repeat * len(repeated.relations))


def test_the_logged_loss_is_dpo_plus_weighted_nll(policy: Path, toy_data: PreferenceData) -> None:
    means = run(policy, toy_data, planned(toy_data), SETTINGS.model_copy(update={"nll_weight": 0.25}))[0].means()
    assert means["loss"] == pytest.approx(means["dpo"] + 0.25 * means["nll"], rel=1e-6)


def test_a_false_reference_fails_the_zero_check(policy: Path, toy_data: PreferenceData) -> None:
    plan = planned(toy_data)
    model = load_model(policy, choose_arithmetic(SETTINGS))
    context = context_of(model, toy_data, SETTINGS, "tree")
    reference = [RowReference(torch.zeros(row.responses), None) for row in plan.steps[0].rows]
    with pytest.raises(TrainerError, match="Step-0 check failed"):
        accumulate_step(context, plan.steps[0], reference, number=0, check_zero=True, tick=lambda: None)


def test_a_loss_that_is_no_number_names_step_and_prompts(policy: Path, toy_data: PreferenceData) -> None:
    plan = planned(toy_data)
    with pytest.raises(TrainerError, match=r"step 0: the loss is nan, with the prompts p\d"):
        run(policy, toy_data, plan, shift=float("nan"))


def test_a_gradient_that_is_no_number_stops() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, float("inf")])
    with pytest.raises(TrainerError, match="step 7: the gradient norm is inf, with the prompts p1, p2"):
        clip_gradients([parameter], 1.0, number=7, prompts=["p1", "p2"])


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 2 / 3, 1 / 3]),
        ("cosine", [0.5, 1, 1, 0.75, 0.25]),
    ],
)
def test_learning_rate_by_hand(schedule: str, rates: list[float]) -> None:
    settings = TrainSettings.model_validate({"learning_rate": 1, "warmup_share": 0.4, "schedule": schedule})
    assert [learning_rate(step, 5, settings) for step in range(5)] == pytest.approx(rates)


def test_bf16_casts_are_shared_by_the_rows_of_a_step(policy: Path, toy_data: PreferenceData) -> None:
    """The cast weights are cached over rows; each row's gradient must still reach the fp32 weights."""
    bf16 = SETTINGS.model_copy(update={"precision": "bf16-autocast"})
    _, gradient = run(policy, toy_data, planned(toy_data), bf16)
    _, expected = run(policy, toy_data, planned(toy_data))
    cosine = torch.nn.functional.cosine_similarity(gradient, expected, dim=0)
    assert gradient.dtype == torch.float32
    assert cosine > 0.999
    assert gradient.norm().item() == pytest.approx(expected.norm().item(), rel=0.02)


def test_gradient_checkpointing_changes_nothing(policy: Path, toy_data: PreferenceData) -> None:
    plan = planned(toy_data)
    gradients = []
    for checkpointing in (False, True):
        settings = SETTINGS.model_copy(update={"gradient_checkpointing": checkpointing})
        model = make_trainable(load_model(policy, choose_arithmetic(settings)), settings, seed=0)
        context = context_of(model, toy_data, settings, "tree")
        reference = reference_of(toy_data, plan, 0.3)
        accumulate_step(context, plan.steps[0], reference, number=0, check_zero=False, tick=lambda: None)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.equal(*gradients)
