"""The loss of reward models: one value per pair, [P]. Not in the table of losses, which is for policies."""

from torch import Tensor

from trainer.losses.primitives import ell


def bradley_terry(reward_w: Tensor, reward_l: Tensor, *, margin: Tensor | float, centre: float) -> Tensor:
    """`ell(r_w - r_l - m) + c (r_w + r_l)²`, [P]; the margin is 0 where the data have none.

    Only differences of rewards are identified (Bradley and Terry 1952; eq. 2 of arXiv:2305.18290); the second term
    draws their mean to 0 (arXiv:2312.09244, which uses `c = 0.01`). `centre = 0` leaves the mean where it falls.
    """
    return ell(reward_w - reward_l - margin) + centre * (reward_w + reward_l) ** 2
