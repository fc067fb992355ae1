"""Losses over groups of ranked or scored responses, one value per group. `G` groups of at most `K`; padding is
masked."""

import torch
from torch import Tensor

from trainer.losses.batch import Groups, given
from trainer.losses.primitives import ell


def plackett_luce(groups: Groups, *, beta: float, choices: str, normalise: str) -> Tensor:
    """`-sum_k [s_k - logsumexp_{j>=k} s_j]` over the choices of a ranking, `s = βh`; eq. 18-20 of arXiv:2305.18290.
    `choices="best"`: only the best response against all others; `normalise="mean"`: divided by the number of
    choices."""
    terms_GK = _choices(beta * groups.y.gap, groups.present)
    if choices == "best":
        return terms_GK[:, 0]
    total_G = terms_GK.sum(-1)
    return total_G / (groups.present.sum(-1) - 1).clamp(min=1) if normalise == "mean" else total_G


def d2o(groups: Groups, *, beta: float, alpha: float) -> Tensor:
    """`ell((β/K) sum_i h_i - α h_l)`; eq. 3 of arXiv:2403.03419v2, both reference models the same. The last response of
    a group is the labelled bad one (l), the K before it must be samples of the reference model; there may be none."""
    count_G = groups.present.sum(-1, keepdim=True)
    position_K = torch.arange(groups.present.shape[-1], device=groups.present.device)
    h_GK = groups.y.gap.masked_fill(~groups.present, 0.0)
    bad_G = h_GK.masked_fill(position_K != count_G - 1, 0.0).sum(-1)
    own_G = (h_GK.sum(-1) - bad_G) / (count_G.squeeze(-1) - 1).clamp(min=1)
    return ell(beta * own_G - alpha * bad_G)


def exo_rw(groups: Groups, *, beta: float, beta_r: float) -> Tensor:
    """`KL(p_f || p_r)`, `p_f = softmax(βh)`, `p_r = softmax(score / β_r)`; arXiv:2402.00856, loss `exo-rw` of
    haozheji/exact-optimization."""
    log_f_GK = _log_softmax(beta * groups.y.gap, groups.present)
    log_r_GK = _log_softmax(_scores(groups) / beta_r, groups.present)
    return (log_f_GK.exp() * (log_f_GK - log_r_GK)).sum(-1)  # padding: 1 * (0 - 0)


def infonca(groups: Groups, *, beta: float, alpha: float) -> Tensor:
    """`-sum_k p_k log softmax(βh)_k`, `p = softmax(score / α)`; arXiv:2402.05369."""
    p_GK = _shares(groups, alpha)
    return -(p_GK * _log_softmax(beta * groups.y.gap, groups.present)).sum(-1)


def nca_rw(groups: Groups, *, beta: float, alpha: float) -> Tensor:
    """`sum_k p_k ell(βh_k) + (1/K) sum_k ell(-βh_k)`, `p = softmax(score / α)`; arXiv:2402.05369."""
    p_GK, m_GK = _shares(groups, alpha), beta * groups.y.gap
    noise_GK = ell(-m_GK).masked_fill(~groups.present, 0.0)
    return (p_GK * ell(m_GK)).sum(-1) + noise_GK.sum(-1) / groups.present.sum(-1)


def _choices(s_GK: Tensor, present_GK: Tensor) -> Tensor:
    """[G, K] `logsumexp_{j>=k} s_j - s_k`: the surprisal of choosing k from those left; 0 for padding."""
    rest_KK = torch.ones(s_GK.shape[-1], s_GK.shape[-1], dtype=torch.bool, device=s_GK.device).triu()
    itself_KK = torch.eye(s_GK.shape[-1], dtype=torch.bool, device=s_GK.device)
    left_GKK = rest_KK & (present_GK[:, None, :] | itself_KK)  # a padded place chooses itself out of itself
    return s_GK[:, None, :].masked_fill(~left_GKK, -torch.inf).logsumexp(-1) - s_GK


def _log_softmax(z_GK: Tensor, present_GK: Tensor) -> Tensor:
    """Log-softmax over the actual responses; 0 for padding."""
    return z_GK.masked_fill(~present_GK, -torch.inf).log_softmax(-1).masked_fill(~present_GK, 0.0)


def _shares(groups: Groups, alpha: float) -> Tensor:
    """`softmax(score / α)`, 0 for padding: how much of the group's weight each response deserves."""
    return _log_softmax(_scores(groups) / alpha, groups.present).exp().masked_fill(~groups.present, 0.0)


def _scores(groups: Groups) -> Tensor:
    return given(groups.score, "scores").to(groups.y.logp.dtype)
