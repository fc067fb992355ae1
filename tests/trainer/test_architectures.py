"""One optimizer step on packed trees is the step on separately padded rows: loss and every gradient, on models of many
families as the trainer loads them, with and without adapters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.architectures import build
from tests.trainer.test_step import context_of, planned, reference_of
from trainer.data import PreferenceData, Response
from trainer.model import choose_arithmetic, load_model, make_trainable, trained_parameters
from trainer.settings import LoraSettings, TrainSettings
from trainer.step import accumulate_step
from trainer.tree.rows import Plan

SETTINGS = TrainSettings(precision="fp32", batch_pairs=32)
EXACT = ("llama-tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "granite", "cohere")
"""Windows are 16 tokens: as long as the longest sequence, shorter than the row."""


def step(model: Any, data: PreferenceData, plan: Plan) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """What the log says of the plan's only step, and the gradient of each trained tensor."""
    (only,) = plan.steps
    model.zero_grad()
    context, reference = context_of(model, data, SETTINGS, plan.layout), reference_of(data, plan, 0.3)
    totals = accumulate_step(context, only, reference, number=0, check_zero=False, tick=lambda: None)
    means = {name: value for name, value in totals.means().items() if name != "entropy"}  # a mean of row means
    return means, {name: parameter.grad.clone() for name, parameter in trained_parameters(model)}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in other.items():
        gap = (one[name] - gradient).abs().max() / gradient.abs().max()
        assert gap < 1e-5, f"{name}: {gap}"


@pytest.mark.parametrize("family", EXACT)
def test_trees_equal_separately_padded_rows(family: str, tmp_path: Path, toy_data: PreferenceData) -> None:
    model = load_model(build(family, tmp_path), choose_arithmetic(SETTINGS))
    tree, gradients = step(model, toy_data, planned(toy_data, "tree"))
    plain, expected = step(model, toy_data, planned(toy_data, "plain"))
    assert tree == pytest.approx(plain, rel=1e-5)
    assert_same(gradients, expected)


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt2"])
def test_trees_equal_plain_rows_with_adapters(family: str, tmp_path: Path, toy_data: PreferenceData) -> None:
    model = make_trainable(
        load_model(build(family, tmp_path), choose_arithmetic(SETTINGS)),
        SETTINGS.model_copy(update={"lora": LoraSettings(rank=4, alpha=8)}),
        seed=0,
    )
    with torch.no_grad():
        for _, parameter in trained_parameters(model):  # a fresh adapter's second half is 0, and gives no gradient
            parameter.add_(0.1 * torch.randn_like(parameter))
    _, gradients = step(model, toy_data, planned(toy_data, "tree"))
    _, expected = step(model, toy_data, planned(toy_data, "plain"))
    assert all("lora_" in name for name in gradients)
    assert_same(gradients, expected)


def test_a_sequence_beyond_the_window_would_give_another_gradient(tmp_path: Path, toy_data: PreferenceData) -> None:
    """The comparison above can fail: the same model, one response longer than its window."""
    model = load_model(build("mistral", tmp_path), choose_arithmetic(SETTINGS))
    first, *others = toy_data.groups
    long = replace(first, responses=(Response("r0", [5, 9] * 9), *first.responses[1:]))
    data = PreferenceData((long, *others), toy_data.relations)
    _, gradients = step(model, data, planned(data, "tree"))
    _, expected = step(model, data, planned(data, "plain"))
    with pytest.raises(AssertionError):
        assert_same(gradients, expected)
