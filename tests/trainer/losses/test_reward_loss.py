"""The loss of reward models against numbers worked out by hand."""

import pytest
import torch

from tests.helpers.loss_cases import tensor
from trainer.reward.steps import bradley_terry


@pytest.mark.parametrize(
    ("reward_w", "reward_l", "margin", "expected"),
    [(1.2, 0.3, 0.0, 0.341154), (-0.5, 0.5, 0.0, 1.313262), (1.2, 0.3, 0.5, 0.513015)],
)
def test_bradley_terry(reward_w: float, reward_l: float, margin: float, expected: float) -> None:
    value = bradley_terry(tensor([reward_w]), tensor([reward_l]), margin=tensor([margin]), centre=0.0)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_both_rewards_are_pushed_apart_equally() -> None:
    rewards = (tensor([1.2]).requires_grad_(), tensor([0.3]).requires_grad_())
    g_w, g_l = torch.autograd.grad(bradley_terry(*rewards, margin=0.0, centre=0.0), rewards)
    assert (g_w.item(), g_l.item()) == pytest.approx((-0.289050, 0.289050), abs=1e-6)


def test_only_centring_sees_a_common_shift() -> None:
    reward_w, reward_l = tensor([1.2, -0.5]), tensor([0.3, 0.5])
    plain = bradley_terry(reward_w, reward_l, margin=0.0, centre=0.0)
    shifted = bradley_terry(reward_w + 3, reward_l + 3, margin=0.0, centre=0.0)
    assert shifted.tolist() == pytest.approx(plain.tolist())
    centred = bradley_terry(reward_w, reward_l, margin=0.0, centre=0.01)
    assert (centred - plain).tolist() == pytest.approx([0.0225, 0.0])  # 0.01 times 1.5² and 0²


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_extreme_rewards_stay_finite(dtype: torch.dtype) -> None:
    reward_w = tensor([1e4, -1e4], dtype).requires_grad_()
    values = bradley_terry(reward_w, tensor([-1e4, 1e4], dtype), margin=0.0, centre=0.01)
    (gradient,) = torch.autograd.grad(values.sum(), reward_w)
    assert values.tolist() == [0.0, 2e4]
    assert gradient.tolist() == [0.0, -1.0]
