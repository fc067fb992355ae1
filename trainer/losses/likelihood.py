"""Losses that raise or lower a response's own likelihood, without a reference: one value per pair, [P]."""

from torch import Tensor

from trainer.losses.batch import Pairs


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
