"""Every loss over pairs, with every choice among its words: its gradient is that of its value, extreme pairs stay
finite, float32 agrees with float64."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.loss_cases import VARIANT_IDS, VARIANTS, every_column, every_leaf, loss
from trainer.losses.batch import Pairs, Responses

DTYPES = (torch.float64, torch.float32)
all_variants = pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=VARIANT_IDS)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, arguments) for name, arguments in VARIANTS if name != "wpo"],  # its weight has a value but no gradient
    ids=[name for name in VARIANT_IDS if not name.startswith("wpo")],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_central_differences(name: str, arguments: dict[str, Any], seed: int) -> None:
    tokens_w, tokens_l, kl_w, kl_l = every_leaf(seed)
    if name == "tdpo2":
        kl_w = kl_w.detach()  # as the paper says; test_token_losses.py has the test

    def of(*leaves: Tensor) -> Tensor:
        return loss(name, every_column(*leaves), **arguments)

    assert torch.autograd.gradcheck(
        of, (tokens_w, tokens_l, kl_w, kl_l), atol=1e-3 if name.startswith("sppo") else 1e-6
    )


def far(log_ratio: float, logp: float) -> tuple[float, float]:
    """Log-probs under policy and reference, the higher of them `logp`."""
    return min(logp, logp + log_ratio), min(logp, logp - log_ratio)


def extreme_pairs(dtype: torch.dtype) -> Iterator[tuple[Pairs, list[Tensor]]]:
    """Single-token responses whose log-ratios are huge or whose probability is 1, and their leaves."""
    for a, b, logp in product((-1000.0, -79.9, 0.0, 1000.0), (-1000.0, 0.0, 1000.0), (0.0, -1e-12, -1.0)):
        sides = [torch.tensor([far(ratio, logp)], dtype=dtype) for ratio in (a, b)]
        leaves = [side[:, :1].clone().requires_grad_() for side in sides]
        kls = [torch.full((1,), 1000.0, dtype=dtype, requires_grad=True) for _ in sides]
        yield extreme_pair(leaves, [side[:, 1:] for side in sides], kls, dtype), leaves


def extreme_pair(leaves: list[Tensor], references: list[Tensor], kls: list[Tensor], dtype: torch.dtype) -> Pairs:
    one, zero = torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype)
    w, l = (  # noqa: E741
        Responses(tokens.sum(-1), one, ref.sum(-1), tokens, ref, kl, torch.zeros_like(ref))
        for tokens, ref, kl in zip(leaves, references, kls, strict=True)
    )
    return Pairs(
        w,
        l,
        score_w=1000 * one,
        score_l=-1000 * one,
        win_w=one,
        win_l=zero,
        probability=one,
        mean_length_w=torch.tensor(1.0, dtype=dtype),
        chosen_is_reference=torch.tensor([True]),
    )


@all_variants
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_pairs_stay_finite(name: str, arguments: dict[str, Any], dtype: torch.dtype) -> None:
    for pairs, leaves in extreme_pairs(dtype):
        values = loss(name, pairs, **arguments)
        gradients = torch.autograd.grad(values.sum(), leaves, materialize_grads=True)
        numbers = torch.cat([values, *(gradient.flatten() for gradient in gradients)])
        assert numbers.isfinite().all(), f"{numbers.tolist()} at {pairs.w.logp}, {pairs.w.ref}, {pairs.l.logp}"


@all_variants
def test_float32_agrees_with_float64_and_stays_float32(name: str, arguments: dict[str, Any]) -> None:
    leaves = every_leaf(seed=2)
    exact = loss(name, every_column(*leaves), **arguments)
    single = loss(name, every_column(*(leaf.float() for leaf in leaves)), **arguments)
    assert single.dtype == torch.float32
    assert single.tolist() == pytest.approx(exact.tolist(), rel=1e-4, abs=1e-5)
