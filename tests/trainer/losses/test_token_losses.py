"""TDPO, WPO and LD-DPO on the token-level toy of `loss_cases.py`: a vocabulary of three, two and three tokens."""

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers.loss_cases import TOY_W, loss, tensor, toy
from trainer.losses.batch import Pairs, Responses

DPO = 0.675472  # of the toy, at β = 0.1


def test_the_toy_is_the_one_of_the_numbers() -> None:
    pairs = toy()
    assert (pairs.w.logp.item(), pairs.l.logp.item()) == pytest.approx((-1.203973, -3.170086), abs=1e-6)
    assert (pairs.w.kl.item(), pairs.l.kl.item()) == pytest.approx((0.046226, 0.146616), abs=1e-6)
    assert loss("dpo", pairs, beta=0.1).item() == pytest.approx(DPO, abs=1e-6)


@pytest.mark.parametrize(
    ("beta", "alpha", "expected"),
    [(0.1, 0.5, 0.677941), (0.1, 0.0, DPO), (1.0, 0.5, 0.551603), (0.1, 1.0, 0.680415), (1.0, 1.0, 0.573193)],
)
def test_tdpo2(beta: float, alpha: float, expected: float) -> None:
    assert loss("tdpo2", toy(), beta=beta, alpha=alpha).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("beta", "expected"), [(0.1, 0.680415), (1.0, 0.573193)])
def test_tdpo1(beta: float, expected: float) -> None:
    assert loss("tdpo1", toy(), beta=beta).item() == pytest.approx(expected, abs=1e-6)


def test_only_tdpo1_has_a_gradient_through_the_chosen_kl() -> None:
    pairs = toy()
    first, second = loss("tdpo1", pairs, beta=1.0), loss("tdpo2", pairs, beta=1.0, alpha=1.0)
    assert first.item() == second.item()
    kls = (pairs.w.kl, pairs.l.kl)
    first_w, first_l = torch.autograd.grad(first, kls)
    second_w, second_l = torch.autograd.grad(second, kls, allow_unused=True)
    assert first_w.item() == pytest.approx(math.exp(-0.573193) - 1, abs=1e-6)  # -sigmoid(-z), and ell(z) = 0.573193
    assert first_l.item() == second_l.item() == pytest.approx(-first_w.item())
    assert second_w is None


@pytest.mark.parametrize(("clamp", "expected"), [(True, DPO), (False, 0.763978)])
def test_wpo_may_hold_the_weight_at_1(clamp: bool, expected: float) -> None:
    # w_w = 1.339499, w_l = 0.844367
    assert loss("wpo", toy(), beta=0.1, clamp=clamp).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("clamp", [True, False])
def test_wpo_discounts_a_response_that_the_policy_would_hardly_sample(clamp: bool) -> None:
    pairs = toy(chosen=([2, 0], *TOY_W[1:]))  # w_w = 0.489116
    weighted, plain = loss("wpo", pairs, beta=0.1, clamp=clamp), loss("dpo", pairs, beta=0.1)
    assert weighted.item() == pytest.approx(0.412993 * plain.item(), abs=1e-6)


def test_no_gradient_flows_through_the_weight_of_wpo() -> None:
    pairs = toy(chosen=([2, 0], *TOY_W[1:]))
    pairs.w.collision.requires_grad_()
    leaves = (pairs.w.tokens, pairs.l.tokens, pairs.w.collision)
    weighted = torch.autograd.grad(loss("wpo", pairs, beta=0.1, clamp=False), leaves, materialize_grads=True)
    plain = torch.autograd.grad(loss("dpo", pairs, beta=0.1), leaves[:2])
    for of_weighted, of_plain in zip(weighted[:2], plain, strict=True):
        assert of_weighted.numpy() == pytest.approx(0.412993 * of_plain.numpy(), abs=1e-6)
    assert not weighted[2].any()


def test_wpo_with_weight_1_is_dpo() -> None:
    pairs = toy()
    certain = [replace(y, collision=y.tokens.detach()) for y in (pairs.w, pairs.l)]
    assert loss("wpo", Pairs(*certain), beta=0.1, clamp=False).item() == pytest.approx(DPO, abs=1e-6)


@pytest.mark.parametrize(
    ("alpha", "apply_to", "expected"),
    [
        (0.5, "both", 0.667246),
        (0.5, "policy", 0.684270),
        (0.0, "both", 0.659090),
        (1.0, "both", DPO),
        (1.0, "policy", DPO),
    ],
)
def test_ld_dpo(alpha: float, apply_to: str, expected: float) -> None:
    assert loss("ld_dpo", toy(), beta=0.1, alpha=alpha, apply_to=apply_to).item() == pytest.approx(expected, abs=1e-6)


def test_ld_dpo_gives_the_surplus_tokens_the_weight_alpha() -> None:
    pairs = toy()
    values = loss("ld_dpo", pairs, beta=0.1, alpha=0.25, apply_to="both")
    (gradient,) = torch.autograd.grad(values, pairs.l.tokens)
    assert gradient[0, 2] == pytest.approx(0.25 * gradient[0, 1].item())
    assert gradient[0, 0] == gradient[0, 1]


@pytest.mark.parametrize("apply_to", ["both", "policy"])
def test_ld_dpo_starts_at_0_only_where_it_is_applied_to_both(apply_to: str) -> None:
    def at_start(tokens: list[float]) -> Responses:
        y = tensor([tokens])
        length = (y != 0).sum(-1)
        return Responses(y.sum(-1), length, y.sum(-1), y, y)

    pairs = Pairs(at_start([-1.0, -2.0, -3.0]), at_start([-1.0, -1.0, 0.0]))
    value = loss("ld_dpo", pairs, beta=1.0, alpha=0.5, apply_to=apply_to).item()
    tail = 0.0 if apply_to == "both" else 1.5  # (1 - α) times 3 nats
    assert value == pytest.approx(math.log1p(math.exp(-tail)))
