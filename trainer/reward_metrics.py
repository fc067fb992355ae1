"""Room `trainer/`, what rewards say of pairs. In: rewards of chosen and rejected responses; out: numbers for the log
and the model card.

Shapes: `P` pairs.
"""

import torch
from torch import Tensor

from trainer.losses.reward import bradley_terry

BINS = 10


def describe_rewards(reward_w: Tensor, reward_l: Tensor) -> dict[str, float]:
    """[P] and [P] to means over the pairs, and mean and spread over all rewards.

    `accuracy` counts a tie as a half; `loss` is the Bradley-Terry loss without margin and centring (ln 2 knows
    nothing)."""
    gap_P = (reward_w - reward_l).double()
    rewards = torch.cat([reward_w, reward_l]).double()
    return {
        "pairs": float(len(gap_P)),
        "accuracy": float(((gap_P > 0) + 0.5 * (gap_P == 0)).mean()),
        "margin": float(gap_P.mean()),
        "loss": float(bradley_terry(reward_w.double(), reward_l.double(), margin=0.0, centre=0.0).mean()),
        "calibration_error": calibration_error(gap_P),
        "reward_mean": float(rewards.mean()),
        "reward_spread": float(rewards.std(correction=0)),
    }


def calibration_error(gap_P: Tensor) -> float:
    """Expected calibration error of `σ(|gap|)`, the model's belief in the response that it prefers, against how often
    that is the chosen one: `sum_b |B_b|/P |accuracy(B_b) - confidence(B_b)|` over ten equal bins of [1/2, 1], eq. 3 of
    arXiv:1706.04599. 0 is perfect; ties are right half of the time."""
    confidence_P = torch.sigmoid(gap_P.abs())
    right_P = (gap_P > 0) + 0.5 * (gap_P == 0)
    bin_P = ((confidence_P - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    off_B = torch.zeros(BINS, dtype=torch.double).index_add_(0, bin_P, right_P.double() - confidence_P.double())
    return float(off_B.abs().sum() / len(gap_P))
