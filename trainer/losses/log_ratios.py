"""Losses that use the log-ratios `a` and `b` separately, to push the chosen one up or hold it: per pair, [P]."""

import torch
from torch import Tensor

from trainer.losses.batch import Pairs, given
from trainer.losses.contrastive import dpo
from trainer.losses.primitives import ell
from trainer.losses.reference_free import nll


def dpop(pairs: Pairs, *, beta: float, penalty: float) -> Tensor:
    """`ell(β(Δ - λ max(0, -a)))`: a chosen response below the reference costs λ-fold. Eq. 3 of arXiv:2402.13228."""
    return ell(beta * (pairs.delta - penalty * torch.relu(-pairs.w.gap)))


def sppo(pairs: Pairs, *, eta: float, combine: str) -> Tensor:
    """Squared distance of `a` to `η(P_w - 1/2)` and of `b` to `η(P_l - 1/2)`, `P` the win rate over the prompt's
    responses. Eq. 4.12 of arXiv:2405.00675."""
    win_w, win_l = given(pairs.win_w, "win_rates"), given(pairs.win_l, "win_rates")
    return _squares(pairs, eta * (win_w - 0.5), eta * (win_l - 0.5), combine)


def sppo_hard(pairs: Pairs, *, eta: float, combine: str) -> Tensor:
    """The same with `P_w = 1` and `P_l = 0`: the targets are `η/2` and `-η/2`."""
    target = torch.full_like(pairs.w.gap, eta / 2)
    return _squares(pairs, target, -target, combine)


def sppo_single(pairs: Pairs, *, eta: float, combine: str) -> Tensor:
    """The same with the probability `p` that the chosen response is preferred: `P_w = p`, `P_l = 1 - p`."""
    target = eta * (given(pairs.probability, "probability") - 0.5)
    return _squares(pairs, target, -target, combine)


def _squares(pairs: Pairs, target_w: Tensor, target_l: Tensor, combine: str) -> Tensor:
    total = (pairs.w.gap - target_w) ** 2 + (pairs.l.gap - target_l) ** 2
    return total if combine == "sum" else total / 2


def apo_zero(pairs: Pairs, *, beta: float) -> Tensor:
    """`1 - sigmoid(βa) + sigmoid(βb)`: the chosen response up, the rejected one down. Eq. 7 of arXiv:2408.06266."""
    return torch.sigmoid(-beta * pairs.w.gap) + torch.sigmoid(beta * pairs.l.gap)


def apo_down(pairs: Pairs, *, beta: float) -> Tensor:
    """`sigmoid(βa) + 1 - sigmoid(βΔ)`: both down, the rejected response further. Eq. 8 of arXiv:2408.06266."""
    return torch.sigmoid(beta * pairs.w.gap) + torch.sigmoid(-beta * pairs.delta)


def nca(pairs: Pairs, *, beta: float) -> Tensor:
    """`ell(βa) + ell(-βa)/2 + ell(-βb)/2`: lowest in `a` where `βa = log 2`. arXiv:2402.05369."""
    r_w, r_l = beta * pairs.w.gap, beta * pairs.l.gap
    return ell(r_w) + ell(-r_w) / 2 + ell(-r_l) / 2


def bco_pair(pairs: Pairs, *, beta: float) -> Tensor:
    """`ell(βa) + ell(-βb)`: BCO with its shift held at 0. arXiv:2404.04656."""
    return ell(beta * pairs.w.gap) + ell(-beta * pairs.l.gap)


def mpo(
    pairs: Pairs, *, beta: float, preference_weight: float, quality_weight: float, nll_weight: float, normalise: str
) -> Tensor:
    """Weighted sum of `dpo`, `bco_pair` and `nll`. arXiv:2411.10442."""
    preference, quality = dpo(pairs, beta=beta), bco_pair(pairs, beta=beta)
    return preference_weight * preference + quality_weight * quality + nll_weight * nll(pairs, normalise=normalise)
