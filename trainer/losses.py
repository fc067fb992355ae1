"""Room `trainer/`, the losses. In: summed log-probs of both responses of each pair; out: one value per pair and its
named parts. Pure functions over tensors, per pair; the one division, by the pairs of the whole step, happens in
`step.py`.

Shapes: `P` pairs. Signs: `ell(z) = -log sigmoid(z) = softplus(-z)`, `a = logp_w - ref_w`, `b = logp_l - ref_l`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import softplus


class PairLogprobs(NamedTuple):
    """Log-probs summed over response tokens, of the chosen (w) and rejected (l) response of each pair."""

    logp_w_P: Tensor
    logp_l_P: Tensor
    ref_w_P: Tensor
    ref_l_P: Tensor
    n_w_P: Tensor
    """Number of response tokens that were summed."""
    n_l_P: Tensor

    @property
    def gap_w_P(self) -> Tensor:
        """`a`: how far the chosen response has moved from the reference, in nat."""
        return self.logp_w_P - self.ref_w_P

    @property
    def gap_l_P(self) -> Tensor:
        """`b`: how far the rejected response has moved from the reference, in nat."""
        return self.logp_l_P - self.ref_l_P

    @property
    def delta_P(self) -> Tensor:
        """`Δ = a - b`."""
        return self.gap_w_P - self.gap_l_P


class PairLoss(NamedTuple):
    """Per-pair values to be weighted, summed and divided once per step; `parts` are the unscaled terms for the log."""

    total_P: Tensor
    parts: dict[str, Tensor]


def dpo(pairs: PairLogprobs, *, beta: float) -> Tensor:
    """`ell(βΔ)` per pair, over sums of token log-probs. Eq. 7 of arXiv:2305.18290."""
    return softplus(-beta * pairs.delta_P)


def nll(pairs: PairLogprobs) -> Tensor:
    """`-logp_w / n_w` per pair: each chosen response is divided by its own length. Eq. 1 of arXiv:2404.19733."""
    return -pairs.logp_w_P / pairs.n_w_P


@dataclass(frozen=True, slots=True)
class Loss:
    """A row of the table: the function and what the trainer must compute for it."""

    function: Callable[..., Tensor]
    needs: frozenset[str]


LOSSES = {
    "dpo": Loss(dpo, frozenset({"reference"})),
}


def pair_loss(pairs: PairLogprobs, *, name: str, beta: float, nll_weight: float) -> PairLoss:
    """The named preference loss plus `nll_weight` times the chosen response's mean token loss, per pair.

    DPO + NLL is `ell(βΔ) + α (-logp_w / n_w)`, the loss of Iterative RPO (arXiv:2404.19733).
    """
    preference_P, likelihood_P = LOSSES[name].function(pairs, beta=beta), nll(pairs)
    total_P = preference_P + nll_weight * likelihood_P if nll_weight else preference_P
    return PairLoss(total_P, {name: preference_P, "nll": likelihood_P})
