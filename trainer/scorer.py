"""Run the model on an encoded row; no other module runs it, and distribution wrappers wrap exactly this one. Shapes:
`B` sequences (1 in a tree row), `T` tokens, `U` kept outputs per sequence, `K` scored tokens, `R` responses, `L` tokens
of the longest response, `V` vocabulary, `N = B * U` logit rows."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.tree.attention import attach, to_tensors
from trainer.tree.encode import EncodedRow

LOGIT_ROWS = 64  # rows of fp32 logits alive at once: 64 x 150,000 ids are 38 MB


class RowBatch(NamedTuple):
    """An encoded row as tensors on the model's device."""

    tokens_BT: Tensor
    attention: Tensor
    """Tree rows: additive float mask [1, 1, T, T]; plain rows: 1/0 mask [B, T], from which the model makes its own."""
    positions_BT: Tensor | None
    keep_U: Tensor
    from_K: Tensor
    target_K: Tensor
    path_RL: Tensor
    length_R: Tensor


class Scores(NamedTuple):
    """Log-probs in fp32: of each scored token, and summed over each response; the rest if it was asked for."""

    token_K: Tensor
    sum_R: Tensor
    kl_R: Tensor | None = None
    """Sum over the response's positions of KL(reference || policy)."""
    collision_K: Tensor | None = None
    """Log of the sum of squared probabilities where the token is predicted; no gradient."""
    entropy: Tensor | None = None
    """[] mean over the scored positions of the entropy of the next token; no gradient."""


def to_batch(row: EncodedRow, *, device: torch.device, mask_dtype: torch.dtype) -> RowBatch:
    """Tensors of a row. The tree mask is a float one: a bool mask is silently misread by some attention code."""
    if row.sees_TT is not None:
        blocked_TT = torch.from_numpy(~row.sees_TT)
        attention = torch.zeros(blocked_TT.shape, dtype=mask_dtype).masked_fill_(
            blocked_TT, torch.finfo(mask_dtype).min
        )
        attention = attention[None, None].to(device)
        if row.branches is not None:
            attention = attach(attention, to_tensors(row.branches, device))
    else:
        attention = _tensor(row.mask_BT).to(device)
    positions = None if row.depth_T is None else _tensor(row.depth_T)[None].to(device)
    rest = (row.keep_U, row.from_K, row.target_K, row.path_RL, row.length_R)
    return RowBatch(
        _tensor(row.tokens_BT).to(device), attention, positions, *(_tensor(part).to(device) for part in rest)
    )


class RowScorer(nn.Module):
    """Scores rows through the model's own forward, so that logit scaling, capping and adapters are the model's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        row: RowBatch,
        *,
        collision: bool = False,
        entropy: bool = False,
        reference_logits_NV: Tensor | None = None,
    ) -> Scores:
        """Token log-probs and their sums, for kept outputs only; with the reference's logits also the divergence."""
        logits_NV = self.logits(row)
        last_reader = reference_logits_NV is None
        token_K: Tensor = TokenLogprobs.apply(logits_NV, row.from_K, row.target_K, last_reader)
        scores = Scores(token_K, sum_paths(token_K, row.path_RL))
        if reference_logits_NV is not None:
            kl_N = SequenceKL.apply(logits_NV, reference_logits_NV)
            scores = scores._replace(kl_R=sum_paths(kl_N[row.from_K], row.path_RL))
        if collision:
            scores = scores._replace(collision_K=_collisions(logits_NV.detach())[row.from_K])
        return scores._replace(entropy=_entropy(logits_NV.detach(), row.from_K)) if entropy else scores

    def logits(self, row: RowBatch) -> Tensor:
        """[N, V] logits of the kept outputs, as the model gives them."""
        inputs: dict[str, Any] = {"input_ids": row.tokens_BT, "attention_mask": row.attention, "use_cache": False}
        if row.positions_BT is not None:
            inputs["position_ids"] = row.positions_BT
        logits_BUV: Tensor = self.model(**inputs, logits_to_keep=row.keep_U).logits
        if logits_BUV.shape[1] != len(row.keep_U):  # a model without `logits_to_keep` returns all of them
            logits_BUV = logits_BUV[:, row.keep_U]
        return logits_BUV.flatten(0, 1)


def sum_paths(values_K: Tensor, path_RL: Tensor) -> Tensor:
    """[R] sums over the tokens of each response."""
    return along_paths(values_K, path_RL).sum(dim=1)


def along_paths(values_K: Tensor, path_RL: Tensor) -> Tensor:
    """[R, L] values of each response's tokens in order, 0 after its end."""
    return torch.cat([values_K, values_K.new_zeros(1)])[path_RL]


class TokenLogprobs(torch.autograd.Function):
    """`log softmax(logits)[from, target]` in fp32, a few rows at a time: `log_softmax` would hold three such tensors.
    With `overwrite` the gradient replaces the logits; torch raises if the backward pass reads them elsewhere."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, from_K: Tensor, target_K: Tensor, overwrite: bool) -> Tensor:
        ctx.overwrite = overwrite
        norm_N = torch.cat([logits_NV[rows].float().logsumexp(dim=1) for rows in _chunks(len(logits_NV))])
        ctx.save_for_backward(logits_NV, from_K, target_K, norm_N)
        return logits_NV[from_K, target_K].float() - norm_N[from_K]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits_NV, from_K, target_K, norm_N = ctx.saved_tensors
        (grad_K,) = grads
        total_N = torch.zeros_like(norm_N).index_add_(0, from_K, grad_K)
        grad_NV = logits_NV if ctx.overwrite else torch.empty_like(logits_NV)
        for rows in _chunks(len(logits_NV)):
            softmax = (logits_NV[rows].float() - norm_N[rows, None]).exp_()
            grad_NV[rows] = softmax.mul_(-total_N[rows, None]).to(grad_NV.dtype)
        grad_NV.index_put_((from_K, target_K), grad_K.to(grad_NV.dtype), accumulate=True)
        return grad_NV, None, None, None


class SequenceKL(torch.autograd.Function):
    """`KL(reference || policy)` at each position in fp32; its gradient is the difference of both distributions."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, reference_NV: Tensor) -> Tensor:
        """[N, V] logits of both to [N]."""
        ctx.save_for_backward(logits_NV, reference_NV)
        parts = []
        for rows in _chunks(len(logits_NV)):
            log_p, log_q = (logits[rows].float().log_softmax(dim=1) for logits in (reference_NV, logits_NV))
            parts.append((log_p.exp() * (log_p - log_q)).sum(dim=1))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """[N] to [N, V]."""
        logits_NV, reference_NV = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        for rows in _chunks(len(logits_NV)):
            p, q = (logits[rows].float().softmax(dim=1) for logits in (reference_NV, logits_NV))
            grad_NV[rows] = ((q - p) * grads[0][rows, None]).to(grad_NV.dtype)
        return grad_NV, None


def _collisions(logits_NV: Tensor) -> Tensor:
    """[N] log of the sum of squared probabilities."""
    parts = []
    for rows in _chunks(len(logits_NV)):
        logits = logits_NV[rows].float()
        parts.append(torch.logsumexp(2 * logits, dim=1) - 2 * torch.logsumexp(logits, dim=1))
    return torch.cat(parts)


def _entropy(logits_NV: Tensor, from_K: Tensor) -> Tensor:
    """[] mean entropy over (at most `LOGIT_ROWS` evenly spaced of) the scored positions, nat."""
    rows = from_K.unique()
    logits = logits_NV[rows[:: -(-len(rows) // LOGIT_ROWS)]].float()
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(at, at + LOGIT_ROWS) for at in range(0, rows, LOGIT_ROWS))


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array)
