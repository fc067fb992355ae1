"""Losses over `S` single responses with a label or score. `L` tokens; `h = logp - ref`, `u = logp / length`."""

import torch
from torch import Tensor

from trainer.losses.batch import Singles, given
from trainer.losses.primitives import ell


def apo_zero_unpaired(singles: Singles, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """`λ_D (1 - σ(βh))` for a good response, `λ_U (1 - σ(-βh))` for a bad one: both halves of eq. 7 of
    arXiv:2408.06266, and KTO with its reference point at 0."""
    z_S = beta * singles.y.gap
    good_S = given(singles.good, "labels")
    return torch.where(good_S, desirable_weight * (-z_S).sigmoid(), undesirable_weight * z_S.sigmoid())


def sft(singles: Singles, *, normalise: str) -> Tensor:
    """`-logp / n` (`response`) or `-logp` (`sum`) of a response to imitate: supervised fine-tuning."""
    return -singles.y.mean if normalise == "response" else -singles.y.logp


def retain_kl(singles: Singles) -> Tensor:
    """`KL(ref || policy)` per token, mean over the response: the retain term "KL" of arXiv:2404.05868."""
    return given(singles.y.kl, "sequence_kl") / singles.y.length


def npo(singles: Singles, *, beta: float) -> Tensor:
    """`(2/β) ell(-βh)` of a response to forget; arXiv:2404.05868."""
    return 2.0 / beta * ell(-beta * singles.y.gap)


def simnpo(singles: Singles, *, beta: float, gamma: float, gamma_times_beta: bool) -> Tensor:
    """`(2/β) ell(-βu - γ)` of a response to forget, without a reference; arXiv:2410.07163. The authors' code has `βγ`
    in place of `γ`."""
    shift = beta * gamma if gamma_times_beta else gamma
    return 2.0 / beta * ell(-beta * singles.y.mean - shift)


def dro_v(singles: Singles, *, tau: float) -> Tensor:
    """`½(r - V - τh)²`; arXiv:2405.19107. As the paper trains, the gradient for the value is `V - r + τh`, and the
    policy's is divided by τ: `-(r - V) + τh`."""
    h_S = singles.y.gap
    slow_h_S = h_S.detach() + (h_S - h_S.detach()) / tau  # equal to h, gradient 1/τ
    return 0.5 * (_scores(singles) - given(singles.y.value, "value") - tau * slow_h_S).square()


def spo(singles: Singles, *, eta: float) -> Tensor:
    """`(h - η(r - ½))²`: the reward of arXiv:2401.04056, `r` = win rate over the prompt's other responses in [0, 1],
    trained by the square regression of SPPO (arXiv:2405.00675)."""
    return (singles.y.gap - eta * (_scores(singles) - 0.5)).square()


def nash_md(singles: Singles, *, tau: float) -> Tensor:
    """`-sg[P - ½ - τh] logp`, `P` = probability that this response beats the opponent's; its gradient is the policy
    gradient of arXiv:2312.00886 (Nash-MD-PG), turned round for descent."""
    gain_S = _scores(singles) - 0.5 - tau * singles.y.gap
    return -gain_S.detach() * singles.y.logp


def nash_md_token(singles: Singles, *, tau: float) -> Tensor:
    """`τ sum_t sg[h_t] logp_t - (P - ½) sum_t logp_t`: each token answers for its own log-ratio `h_t` only (TRL)."""
    tokens_SL, ref_SL = given(singles.y.tokens, "tokens"), given(singles.y.ref_tokens, "reference")
    drift_S = ((tokens_SL - ref_SL).detach() * tokens_SL).sum(-1)
    return tau * drift_S - (_scores(singles) - 0.5) * singles.y.logp


def _scores(singles: Singles) -> Tensor:
    return given(singles.score, "scores").to(singles.y.logp.dtype)
