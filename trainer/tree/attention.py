"""Attention over prefix trees, equal to dense attention with the tree mask at a fraction of the work. Branches are an
attribute of the dense mask; without them, or with soft caps, sinks, biases or windows, torch's sdpa gets the mask.
Shapes: `T` tokens, `H` heads, `G` key-value heads, `D` head size, `S`/`Q`/`K` branches, queries, keys of a group."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from trainer.tree.branches import Branches

NAME = "prefloop_tree"
BRANCHES = "prefloop_branches"
UNUSUAL = ("softcap", "s_aux", "sinks", "position_bias", "sliding_window", "cache")


class BranchTensors(NamedTuple):
    """One group of branches on the model's device."""

    queries_SQ: Tensor
    keys_SK: Tensor
    mask_SQK: Tensor
    """Additive, in fp32."""


class TreeTensors(NamedTuple):
    """All groups of a row, and where each token's output is."""

    groups: tuple[BranchTensors, ...]
    place_T: Tensor


def to_tensors(branches: Branches, device: torch.device) -> TreeTensors:
    """The branches as tensors."""
    groups = []
    for group in branches.groups:
        blocked = torch.from_numpy(~group.sees_SQK)
        mask = torch.zeros(blocked.shape).masked_fill_(blocked, torch.finfo(torch.float32).min)
        parts = (torch.from_numpy(group.queries_SQ), torch.from_numpy(group.keys_SK), mask)
        groups.append(BranchTensors(*(part.to(device) for part in parts)))
    return TreeTensors(tuple(groups), torch.from_numpy(branches.place_T).to(device))


def attach(mask: Tensor, tree: TreeTensors) -> Tensor:
    """The dense mask with its branches attached."""
    setattr(mask, BRANCHES, tree)
    return mask


def use_tree_attention(model: Any) -> None:
    """Let a transformers model call `attention` here instead of sdpa; models that cannot keep their own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers call in each layer: query [B, H, T, D], key and value [B, G, T, D] to [B, T, H, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    tree = getattr(attention_mask, BRANCHES, None)
    if tree is None or query.shape[2] != key.shape[2] or any(options.get(name) is not None for name in UNUSUAL):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scaling = options.get("scaling")
    return tree_attention(query, key, value, tree, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def tree_attention(query: Tensor, key: Tensor, value: Tensor, tree: TreeTensors, scaling: float) -> Tensor:
    """Attention of one row, [1, H, T, D] to [1, T, H, D], branch by branch."""
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    query_T, key_T, value_T = (part[0].transpose(0, 1).to(dtype).contiguous() for part in (query, key, value))
    outputs = []
    for queries_SQ, keys_SK, mask_SQK in tree.groups:
        branch = (_take(query_T, queries_SQ), _take(key_T, keys_SK), _take(value_T, keys_SK))
        if device == "cpu":
            output = BranchAttention.apply(*branch, mask_SQK, scaling)
        else:
            mask = mask_SQK[:, None].to(dtype)
            output = scaled_dot_product_attention(*branch, attn_mask=mask, scale=scaling, enable_gqa=True)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, tree.place_T)[None]


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """[T, H, D] and [S, Q] to [S, H, Q, D]."""
    taken = rows.flatten(1).index_select(0, index.flatten())
    return taken.view(*index.shape, *rows.shape[1:]).transpose(1, 2)


class BranchAttention(torch.autograd.Function):
    """Attention over padded branches, on CPU four times as fast as the flash kernel. Softmax is in fp32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask_SQK: Tensor, scaling: float) -> Tensor:
        """Query [S, H, Q, D], key and value [S, G, K, D] to [S, H, Q, D]; heads that share keys are laid end to end."""
        heads = query.shape[1]
        query = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)
        with torch.autocast("cpu", enabled=False):
            scores = torch.matmul(query, key.transpose(-1, -2)).float().mul_(scaling)
            scores.unflatten(2, (-1, mask_SQK.shape[1])).add_(mask_SQK[:, None, None])
            weights = torch.softmax(scores, dim=-1).to(value.dtype)
            output = torch.matmul(weights, value)
        ctx.save_for_backward(query, key, value, weights, output)
        ctx.scaling, ctx.heads = scaling, heads
        return output.unflatten(2, (-1, mask_SQK.shape[1])).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients by the softmax rule: d scores = weights * (d weights - sum(d output * output))."""
        query, key, value, weights, output = ctx.saved_tensors
        grad = grads[0].unflatten(1, (key.shape[1], -1)).flatten(2, 3)
        with torch.autocast("cpu", enabled=False):
            grad_value = torch.matmul(weights.transpose(-1, -2), grad)
            grad_scores = torch.matmul(grad, value.transpose(-1, -2)).float()
            grad_scores.sub_((grad.float() * output).sum(dim=-1, keepdim=True)).mul_(weights).mul_(ctx.scaling)
            grad_scores = grad_scores.to(value.dtype)
            grad_query = torch.matmul(grad_scores, key)
            grad_key = torch.matmul(grad_scores.transpose(-1, -2), query)
        return grad_query.unflatten(2, (ctx.heads // key.shape[1], -1)).flatten(1, 2), grad_key, grad_value, None, None
