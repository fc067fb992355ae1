"""DPO-family losses over tokens or next-token distributions: one value per pair, [P]; `L` is the longest response."""

import torch
from torch import Tensor

from trainer.losses.batch import Pairs, Responses, given
from trainer.losses.primitives import ell


def tdpo1(pairs: Pairs, *, beta: float) -> Tensor:
    """`ell(β(Δ - (K_l - K_w)))`, `K` the sum of KL(reference || policy) over the response. arXiv:2404.11999."""
    return ell(beta * (pairs.delta - (given(pairs.l.kl, "sequence_kl") - given(pairs.w.kl, "sequence_kl"))))


def tdpo2(pairs: Pairs, *, beta: float, alpha: float) -> Tensor:
    """`ell(β(Δ - α(K_l - sg[K_w])))`: no gradient through the chosen response's KL. arXiv:2404.11999."""
    kl_w, kl_l = given(pairs.w.kl, "sequence_kl").detach(), given(pairs.l.kl, "sequence_kl")
    return ell(beta * (pairs.delta - alpha * (kl_l - kl_w)))


def wpo(pairs: Pairs, *, beta: float, clamp: bool) -> Tensor:
    """`sg[w_w w_l] ell(βΔ)`, where `w` says how likely the policy is to sample a response, relative to a typical sample
    of its own: `log w = (logp - sum of log Σ_v π_v²) / n`. The product is at most 1 with `clamp`. Eq. 2 of
    arXiv:2406.11827."""
    log_weight = (_log_alignment(pairs.w) + _log_alignment(pairs.l)).detach()
    if clamp:
        log_weight = log_weight.clamp(max=0)
    return torch.exp(log_weight) * ell(beta * pairs.delta)


def _log_alignment(y: Responses) -> Tensor:
    """`log w`, [P]."""
    return (y.logp - given(y.collision, "collision").sum(-1)) / y.length


def ld_dpo(pairs: Pairs, *, beta: float, alpha: float, apply_to: str) -> Tensor:
    """DPO whose longer response counts only with weight `α` beyond the shorter one's length, under the policy and the
    reference (`both`) or under the policy only (`policy`). arXiv:2409.06411."""
    common = torch.minimum(pairs.w.length, pairs.l.length)
    return ell(beta * (_gap(pairs.w, common, alpha, apply_to) - _gap(pairs.l, common, alpha, apply_to)))


def _gap(y: Responses, common: Tensor, alpha: float, apply_to: str) -> Tensor:
    """Log-ratio with a reduced tail, [P]; the tail begins after `common` [P] tokens."""
    tokens, ref_tokens = given(y.tokens, "tokens"), given(y.ref_tokens, "reference")
    head = torch.arange(tokens.shape[-1], device=tokens.device) < common.unsqueeze(-1)
    weight = torch.where(head, 1.0, alpha).to(tokens)
    if apply_to == "policy":
        return (weight * tokens - ref_tokens).sum(-1)
    return (weight * (tokens - ref_tokens)).sum(-1)
