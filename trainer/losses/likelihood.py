"""Room `trainer/`, losses that raise or lower a response's own likelihood, without a reference."""

from torch import Tensor

from trainer.losses.batch import Pairs


def nll(pairs: Pairs, *, normalise: str) -> Tensor:
    """`-logp_w / n_w` (`response`, eq. 1 of arXiv:2404.19733) or `-logp_w` (`sum`) per pair."""
    return -pairs.w.mean if normalise == "response" else -pairs.w.logp
