"""Losses with a statistic of the whole optimizer step (need `step`), which must see all its relations at once: one
value per relation, `P` pairs or `S` singles. `..._update(relation, state, ...)` makes the next running state."""

import torch
from torch import Tensor

from trainer.losses.batch import Pairs, Singles, given
from trainer.losses.primitives import ell, smoothed

SMALLEST_BETA = 1e-3
"""β-DPO never goes below; junkangwu/beta-DPO `trainers.py`."""


def kto(singles: Singles, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """`λ_D (1 - σ(β(h - z0)))` for a good response, `λ_U (1 - σ(β(z0 - h)))` for a bad one; arXiv:2402.01306. `z0 =
    max(0, mean h of the mismatched responses)` over the step, without gradient."""
    assert singles.mismatched is not None, "the loss must declare the need `mismatched`"
    z0 = singles.mismatched.gap.detach().mean().clamp(min=0.0)
    good_S = given(singles.good, "labels")
    z_S = beta * (singles.y.gap - z0)
    return torch.where(good_S, desirable_weight * (-z_S).sigmoid(), undesirable_weight * z_S.sigmoid())


def bco(singles: Singles, *, state: dict[str, float], beta: float, momentum: float) -> Tensor:
    """`ell(βh - δ)` for a good response, `ell(-(βh - δ))` for a bad one; arXiv:2404.04656. `δ` is the mean of the two
    running means in `state`, 0 before its first update."""
    z_S = beta * singles.y.gap - sum(state.values()) / max(len(state), 1)
    return ell(torch.where(given(singles.good, "labels"), z_S, -z_S))


def bco_update(singles: Singles, state: dict[str, float], *, beta: float, momentum: float) -> dict[str, float]:
    """Running means of the implicit reward `βh`, for `good` and `bad` apart: the first step with such a response sets
    the mean, later ones move it by `1 - momentum`, a step without one leaves it."""
    new, good_S = dict(state), given(singles.good, "labels")
    for name, which_S in (("good", good_S), ("bad", ~good_S)):
        if which_S.any():
            mean = beta * float(singles.y.gap[which_S].detach().mean())
            new[name] = momentum * state.get(name, mean) + (1 - momentum) * mean
    return new


def beta_dpo(
    pairs: Pairs,
    *,
    state: dict[str, float],
    generator: torch.Generator,
    beta: float,
    alpha: float,
    keep: float,
    momentum: float,
    bias_correction: bool,
) -> Tensor:
    """DPO over the pairs that the filter keeps, with one β for the step, `β(1 + α(mean Δ of the kept pairs - M0))`;
    arXiv:2407.08639. `floor(keep · P)` pairs (at least one) are drawn without replacement, weights
    `exp(-½((Δ - M0)/S)²)`; a kept pair counts `P / kept`, another one 0. Neither β nor the draw has a gradient. M0 and
    S, the running mean and spread over all pairs in `state`, include this step."""
    gap_P = pairs.delta.detach()
    mean, spread = _running(state, momentum, bias_correction)
    kept_P = _draw(gap_P, mean, spread, max(1, int(keep * len(gap_P) + 1e-9)), generator)
    kept_mean = (gap_P * kept_P).sum() / kept_P.sum()
    beta_step = (beta * (1 + alpha * (kept_mean - mean))).clamp(min=SMALLEST_BETA)
    return ell(beta_step * pairs.delta) * kept_P * (len(gap_P) / kept_P.sum())


def beta_dpo_update(pairs: Pairs, state: dict[str, float], *, momentum: float, **_: float) -> dict[str, float]:
    """`x <- momentum x + (1 - momentum) x of this step` for the mean and the unbiased standard deviation of `Δ`, both
    from 0; a step of a single pair leaves the spread. `steps` counts the updates."""
    gap_P = pairs.delta.detach().double()
    mean, spread = state.get("mean", 0.0), state.get("spread", 0.0)
    return {
        "mean": momentum * mean + (1 - momentum) * float(gap_P.mean()),
        "spread": momentum * spread + (1 - momentum) * float(gap_P.std()) if len(gap_P) > 1 else spread,
        "steps": state.get("steps", 0.0) + 1,
    }


def aot(pairs: Pairs, *, beta: float, label_smoothing: float) -> Tensor:
    """DPO with each pair's policy margin `logp_w - logp_l` against the reference margin of the same rank in the step;
    paired form of arXiv:2406.05882. A pair's value is the one of its policy margin."""
    ref_margin_P = given(pairs.w.ref, "reference") - given(pairs.l.ref, "reference")
    return smoothed(beta * _rank_differences(pairs.w.logp - pairs.l.logp, ref_margin_P), label_smoothing)


def aot_unpaired(pairs: Pairs, *, beta: float, label_smoothing: float) -> Tensor:
    """DPO with each chosen response's log-ratio against the rejected log-ratio of the same rank in the step: two pools,
    whose pairs do not matter; unpaired form of arXiv:2406.05882. A pair's value is the one of its chosen response."""
    return smoothed(beta * _rank_differences(pairs.w.gap, pairs.l.gap), label_smoothing)


def _rank_differences(x_P: Tensor, y_P: Tensor) -> Tensor:
    """`x - y of the same rank`, in the order of x: the optimal transport of one dimension. The matching is a constant
    for the gradient; equal values keep their order."""
    rank_P = x_P.detach().argsort(stable=True).argsort()
    return x_P - y_P.sort(stable=True).values[rank_P]


def _running(state: dict[str, float], momentum: float, bias_correction: bool) -> tuple[float, float]:
    """Mean and spread of the state; with `bias_correction` divided by `1 - momentum^steps`, as they started at 0."""
    if not state:
        return 0.0, 0.0
    scale = 1 - momentum ** state["steps"] if bias_correction else 1.0
    return state["mean"] / scale, state["spread"] / scale


def _draw(gap_P: Tensor, mean: float, spread: float, count: int, generator: torch.Generator) -> Tensor:
    """[P] 1 for `count` pairs drawn one after the other without replacement, 0 for the rest: those with the largest
    `log w + Gumbel noise` (arXiv:1903.06059), which holds even where every weight underflows."""
    log_w_P = -0.5 * ((gap_P.double() - mean) / spread).square() if spread > 0 else torch.zeros_like(gap_P).double()
    noise_P = torch.rand(len(gap_P), generator=generator, device=generator.device, dtype=torch.float64)
    gumbel_P = -(-noise_P.clamp(min=1e-300).log()).log()
    chosen = (log_w_P + gumbel_P.to(log_w_P.device)).topk(count).indices
    return torch.zeros_like(gap_P).index_fill(0, chosen, 1.0)
