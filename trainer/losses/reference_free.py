"""Losses over the responses' log-probs without a reference: one value per pair, [P]. Below, `u = logp / n`."""

import torch
from torch import Tensor

from trainer.losses.batch import Pairs
from trainer.losses.primitives import ell, log1mexp


def nll(pairs: Pairs, *, normalise: str) -> Tensor:
    """`-logp_w` divided by `n_w` (`response`, eq. 1 of arXiv:2404.19733), by the mean `n_w` of the step (`step`: the
    step's mean is then one over all its chosen tokens) or by nothing (`sum`)."""
    if normalise == "response":
        return -pairs.w.mean
    if normalise == "step":
        assert pairs.mean_length_w is not None, "the mean length of the step's chosen responses is missing"
        return -pairs.w.logp / pairs.mean_length_w
    return -pairs.w.logp


def unlikelihood(pairs: Pairs, *, alpha: float) -> Tensor:
    """`-(logp_w - α logp_l)`, over sums; not bounded below. A baseline in the experiments of
    arXiv:2305.18290."""
    return alpha * pairs.l.logp - pairs.w.logp


def slic(pairs: Pairs, *, delta: float, nll_weight: float) -> Tensor:
    """`max(0, δ - logp_w + logp_l) - λ logp_w`: the chosen response is the regularisation target. arXiv:2305.10425."""
    return torch.relu(delta - pairs.w.logp + pairs.l.logp) - nll_weight * pairs.w.logp


def hinge_raw(pairs: Pairs, *, gamma: float) -> Tensor:
    """`max(0, 1 - γ(logp_w - logp_l))`: "hinge" of arXiv:2309.06657."""
    return torch.relu(1 - gamma * (pairs.w.logp - pairs.l.logp))


def cpo(pairs: Pairs, *, beta: float, nll_weight: float, normalise: str) -> Tensor:
    """`ell(β(logp_w - logp_l))` plus the weighted `nll` of the chosen response. arXiv:2401.08417."""
    return ell(beta * (pairs.w.logp - pairs.l.logp)) + nll_weight * nll(pairs, normalise=normalise)


def simpo(pairs: Pairs, *, beta: float, gamma_beta_ratio: float) -> Tensor:
    """`ell(β(u_w - u_l - γ/β))`, with the target margin given as the ratio `γ/β`. arXiv:2405.14734."""
    return ell(beta * (pairs.w.mean - pairs.l.mean - gamma_beta_ratio))


def orpo(pairs: Pairs, *, odds_weight: float) -> Tensor:
    """`-u_w + λ ell(log(odds_w / odds_l))`, `odds = e^u / (1 - e^u)`, held where `u > -1e-7`. arXiv:2403.07691."""
    u_w, u_l = pairs.w.mean, pairs.l.mean
    log_odds_ratio = u_w - u_l - (log1mexp(u_w) - log1mexp(u_l))
    return -u_w + odds_weight * ell(log_odds_ratio)
