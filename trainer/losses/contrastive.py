"""Room `trainer/`, losses over `Δ`, the difference of both responses' log-ratios to the reference. One value per
pair."""

from torch import Tensor

from trainer.losses.batch import Pairs
from trainer.losses.primitives import ell


def dpo(pairs: Pairs, *, beta: float) -> Tensor:
    """`ell(βΔ)` per pair, over sums of token log-probs. Eq. 7 of arXiv:2305.18290."""
    return ell(beta * pairs.delta)
