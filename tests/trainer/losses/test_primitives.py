"""The losses' arithmetic where a formula written down plainly would overflow or cancel."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.loss_cases import tensor
from trainer.losses.primitives import ell, log1mexp


@given(z=st.floats(-30, 30))
def test_ell_is_minus_log_sigmoid(z: float) -> None:
    assert ell(tensor(z)).item() == pytest.approx(math.log1p(math.exp(-z)), rel=1e-9)


def test_ell_is_linear_far_below_0() -> None:
    assert ell(tensor([-1e5, 1e5])).tolist() == [1e5, 0.0]


@given(u=st.floats(-30, -1e-6))
def test_log1mexp_complements_to_1(u: float) -> None:
    assert math.exp(log1mexp(tensor(u)).item()) + math.exp(u) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("u", "expected"),
    [(-1e-5, math.log(1e-5) - 5e-6), (-math.log(2), -math.log(2)), (-50.0, -math.exp(-50.0)), (0.0, math.log(1e-7))],
)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-7), (torch.float32, 1e-6)], ids=["64", "32"])
def test_log1mexp_in_both_branches_and_at_its_limit(u: float, expected: float, dtype: torch.dtype, rel: float) -> None:
    value = tensor(u, dtype).requires_grad_()
    result = log1mexp(value)
    result.backward()
    assert result.item() == pytest.approx(expected, rel=rel)
    assert value.grad is not None
    assert value.grad.isfinite()
