"""Losses over `Δ`, the difference of both log-ratios to the reference: one value per pair, [P]. They push both
log-probs equally hard, whichever moves. Below, `z = βΔ` and `ell(z) = -log sigmoid(z)`."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.losses.batch import Pairs, given
from trainer.losses.primitives import ell, smoothed


def dpo(pairs: Pairs, *, beta: float) -> Tensor:
    """`ell(βΔ)` per pair, over sums of token log-probs. Eq. 7 of arXiv:2305.18290."""
    return ell(beta * pairs.delta)


def tr_dpo(pairs: Pairs, *, beta: float, alpha: float, tau: float) -> Tensor:
    """DPO against a reference that moved, TR-DPO of arXiv:2404.09656; `alpha` and `tau` only say how it moves."""
    return dpo(pairs, beta=beta)


def cdpo(pairs: Pairs, *, beta: float, label_smoothing: float) -> Tensor:
    """`(1-ε) ell(z) + ε ell(-z)`: lowest where `z = log((1-ε)/ε)`, and rising again beyond. E. Mitchell, "A note on DPO
    with noisy preferences and relationship to IPO", 2023."""
    return smoothed(beta * pairs.delta, label_smoothing)


def robust(pairs: Pairs, *, beta: float, label_smoothing: float) -> Tensor:
    """`((1-ε) ell(z) - ε ell(-z)) / (1-2ε)`: DPO's loss on clean labels in expectation, if a share `ε` of the labels is
    flipped; not bounded below. arXiv:2403.00409."""
    z = beta * pairs.delta
    return ((1 - label_smoothing) * ell(z) - label_smoothing * ell(-z)) / (1 - 2 * label_smoothing)


def dno(pairs: Pairs, *, eta: float) -> Tensor:
    """`q ell(ηΔ) + (1-q) ell(-ηΔ)` with `q = sigmoid(win_w - win_l)`. Eq. 8 of arXiv:2404.03715."""
    q = torch.sigmoid(given(pairs.win_w, "win_rates") - given(pairs.win_l, "win_rates"))
    z = eta * pairs.delta
    return q * ell(z) + (1 - q) * ell(-z)


_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": ell,
    "hinge": lambda z: torch.relu(1 - z),
    "squared": lambda z: (z - 1) ** 2,
    "exponential": lambda z: torch.exp(-z.clamp(min=-30)),  # no gradient beyond: one pair would outweigh all others
    "truncated_quadratic": lambda z: torch.relu(1 - z) ** 2,
    "savage": lambda z: torch.sigmoid(-z) ** 2,
}


def gpo(pairs: Pairs, *, beta: float, shape: str) -> Tensor:
    """`f(z)` for the classification loss `f` that `shape` names. arXiv:2402.05749."""
    return _SHAPES[shape](beta * pairs.delta)


def hinge(pairs: Pairs, *, beta: float) -> Tensor:
    """`max(0, 1 - z)`: hinge-norm of arXiv:2309.06657."""
    return torch.relu(1 - beta * pairs.delta)


def ipo(pairs: Pairs, *, tau: float, normalise: str) -> Tensor:
    """`(Δ - 1/(2τ))²` over sums (`sum`, eq. 17 of arXiv:2310.12036), or with `Δ = a/n_w - b/n_l` (`mean`)."""
    delta = pairs.delta if normalise == "sum" else pairs.mean_delta
    return (delta - 1 / (2 * tau)) ** 2


def online_ipo(pairs: Pairs, *, tau: float) -> Tensor:
    """`p (Δ - 1/(2τ))² + (1-p) (Δ + 1/(2τ))²`, `p` the probability that the chosen response is preferred.
    arXiv:2403.08635."""
    p, target = given(pairs.probability, "probability"), 1 / (2 * tau)
    return p * (pairs.delta - target) ** 2 + (1 - p) * (pairs.delta + target) ** 2


def r_dpo(pairs: Pairs, *, beta: float, alpha: float) -> Tensor:
    """`ell(z + α(n_w - n_l))`: a length difference explains a part of the preference. Eq. 9 of arXiv:2403.19159."""
    return ell(beta * pairs.delta + alpha * (pairs.w.length - pairs.l.length).to(pairs.delta))


def dpo_norm(pairs: Pairs, *, beta: float) -> Tensor:
    """`ell(β(a/n_w - b/n_l))`: DPO over mean token log-probs. Used by arXiv:2411.15124."""
    return ell(beta * pairs.mean_delta)


def f_dpo(pairs: Pairs, *, beta: float, divergence: str, alpha: float) -> Tensor:
    """`ell(β(f'(e^a) - f'(e^b)))` for the regulariser `D_f(policy || reference)`. arXiv:2309.16240."""
    return ell(beta * (_slope(pairs.w.gap, divergence, alpha) - _slope(pairs.l.gap, divergence, alpha)))


def _slope(h: Tensor, divergence: str, alpha: float) -> Tensor:
    """`f'(e^h)` without its constants, which cancel. Exponents are held at most at 80, where float32 nearly ends; a
    response beyond that has no gradient."""
    if divergence == "forward_kl":
        return -torch.exp((-h).clamp(max=80))
    if divergence == "js_divergence":
        return -ell(h)
    if divergence == "alpha_divergence":
        return -torch.expm1((-alpha * h).clamp(max=80)) / alpha
    return h


def exo(pairs: Pairs, *, beta: float, label_smoothing: float, labels: str) -> Tensor:
    """`q (log q - log p) + (1-q) (log(1-q) - log(1-p))` with `q = sigmoid(z)`: the reverse KL to the label
    distribution `p = 1-ε` (`normalised`), or to the log-labels 0 and -10 of the authors' code (`official`). Eq. 16 of
    arXiv:2402.00856."""
    z = beta * pairs.delta
    log_w, log_l = (math.log1p(-label_smoothing), math.log(label_smoothing)) if labels == "normalised" else (0.0, -10.0)
    return torch.sigmoid(z) * (-ell(z) - log_w) + torch.sigmoid(-z) * (-ell(-z) - log_l)


def discopop(pairs: Pairs, *, beta: float, tau: float) -> Tensor:
    """`(1-m) ell(z) + m exp(-z)`, `m = sigmoid(z/τ)`; eq. 5 of arXiv:2406.08414. One exponential of a sum cannot
    overflow."""
    z = beta * pairs.delta
    return torch.sigmoid(-z / tau) * ell(z) + torch.exp(-z - ell(z / tau))


def rebel(pairs: Pairs, *, eta: float, form: str) -> Tensor:
    """`(Δ/η - (r_w - r_l))²` (`paper`), or `(Δ - η(r_w - r_l))²`, η² times as much (`code`). arXiv:2404.16767."""
    difference = given(pairs.score_w, "scores") - given(pairs.score_l, "scores")
    if form == "paper":
        return (pairs.delta / eta - difference) ** 2
    return (pairs.delta - eta * difference) ** 2


def xpo(pairs: Pairs, *, beta: float, alpha: float) -> Tensor:
    """`ell(z) + α logp(y)`, `y` being the response that was sampled from the reference: a bonus for leaving it. Not
    bounded below. arXiv:2405.21046."""
    from_reference = torch.where(given(pairs.chosen_is_reference, "origin"), pairs.w.logp, pairs.l.logp)
    return ell(beta * pairs.delta) + alpha * from_reference
