"""Check whether a model can be trained on prefix trees: compare log-probs of tree and plain rows with those of
sequences run alone (fp32, a few prompts). Sliding windows, linear attention and some attention code get trees wrong
without an error. With `tree/attention.py` a window counts positions, so the longest sequence matters; a model's own
code may count places in the row, so then a long row is probed."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from trainer.data import PreferenceData
from trainer.errors import TrainerError
from trainer.scorer import RowScorer, to_batch
from trainer.tree.attention import NAME
from trainer.tree.encode import EncodedRow, Tree, encode_plain_row, encode_tree_row, tree_tokens
from trainer.tree.rows import Layout

MOST_GAP = 1e-4
"""Nat per token (fp32) beyond which a round uses plain rows, or no rows at all."""
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError)
"""Exceptions of a model that cannot read tree rows."""


class Gaps(NamedTuple):
    """Largest absolute differences of a token's log-prob, nat."""

    tree: float
    """Between one tree row and each sequence alone; infinite if the model refuses trees."""
    plain: float
    """Between a plain row and its sequences alone."""


def probe_rows(scorer: RowScorer, data: PreferenceData, *, device: torch.device, seed: int, row_tokens: int) -> Gaps:
    """Errors of tree rows and plain rows on this model. Raises TrainerError if it cannot score plain rows at all."""
    trees = sample_trees(data, seed, tokens=row_tokens if counts_places(scorer.model, row_tokens) else 0)
    rows = (encode_plain_row([(prompt, [ids])]) for prompt, responses in trees for ids in responses)
    try:
        alone = [_token_logprobs(scorer, row, device) for row in rows]
        padded = trees[1:2] or trees  # errors from padding and batching show in short sequences too
        plain = _token_logprobs(scorer, encode_plain_row(padded), device)
    except REFUSALS as error:
        raise TrainerError(
            f"A {type(scorer.model).__name__} cannot be trained: its forward pass does not take input_ids, "
            f"attention_mask and logits_to_keep as causal models do ({type(error).__name__}: {error}). Choose another "
            "model."
        ) from error
    try:
        tree = _gap(_token_logprobs(scorer, encode_tree_row(trees), device), torch.cat(alone))
    except REFUSALS:
        tree = torch.inf
    first = len(trees[0][1]) if len(trees) > 1 else 0
    return Gaps(tree, _gap(plain, torch.cat(alone[first:][: len(padded[0][1])])))


def choose_layout(gaps: Gaps, wanted: Literal["auto", "tree", "plain"], *, folder: Path) -> Layout:
    """Trees if allowed and shown to be correct, else plain rows. TrainerError if the requested layout is not usable."""
    if gaps.plain > MOST_GAP:
        raise TrainerError(
            f"The model in {folder} scores a response differently when others share its batch: up to {gaps.plain:.2g} "
            f"nat per token ({MOST_GAP:g} is allowed). Its code mishandles padding, so it cannot be trained here: "
            "choose another model, or another version of transformers."
        )
    if wanted == "tree" and gaps.tree > MOST_GAP:
        raise TrainerError(
            f"layout: tree cannot be used, for the model in {folder} scores tree rows wrongly: {how_wrong(gaps)} "
            f"({MOST_GAP:g} is allowed). Use layout: plain."
        )
    return "tree" if wanted != "plain" and gaps.tree <= MOST_GAP else "plain"


def how_wrong(gaps: Gaps) -> str:
    """Describe the error of tree rows on this model."""
    if math.isinf(gaps.tree):
        return "it rejects their attention mask, or returns NaN"
    return f"up to {gaps.tree:.2g} nat per token away from sequences run alone"


def sample_trees(data: PreferenceData, seed: int, *, tokens: int = 0) -> list[Tree]:
    """One relation of the prompt with the longest sequence, where attention windows show, and one of a prompt with
    shorter ones (of more than one token, since a single token shows nothing about batching or padding); then more
    until a tree row holds more than `tokens`."""
    index = {group.id: group for group in data.groups}
    trees: list[Tree] = []
    for relation in data.relations:
        group = index[relation.prompt_id]
        trees.append((group.token_ids, [r.token_ids for r in group.responses if r.id in relation.responses]))
    longest = max(trees, key=_longest)
    others = [tree for tree in trees if tree[0] is not longest[0]]
    random.Random(seed).shuffle(others)
    others.sort(key=lambda tree: (min(map(len, tree[1])) < 2, _size(tree) > _size(longest) // 2))  # else as drawn
    chosen = [longest, *others[:1]]
    for tree in others[1:]:
        if tree_tokens(chosen) > tokens:
            break
        chosen.append(tree)
    return chosen


def counts_places(model: Any, row_tokens: int) -> bool:
    """Whether the model may count places in a row of that length instead of positions."""
    window = narrowest_window(model)
    return model.config.get_text_config()._attn_implementation != NAME or (window is not None and window < row_tokens)


def narrowest_window(model: Any) -> int | None:
    """Tokens of the model's narrowest attention window; None if every token sees all before it."""
    config = model.config.get_text_config()
    return min((w for name in WINDOWS if isinstance(w := getattr(config, name, None), int)), default=None)


def _size(tree: Tree) -> int:
    prompt, responses = tree
    return len(prompt) + sum(map(len, responses))


def _longest(tree: Tree) -> int:
    prompt, responses = tree
    return len(prompt) + max(map(len, responses))


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max().nan_to_num(torch.inf))


def _token_logprobs(scorer: RowScorer, row: EncodedRow, device: torch.device) -> torch.Tensor:
    """Log-probs of the responses' tokens, response after response."""
    with torch.no_grad():
        scores = scorer(to_batch(row, device=device, mask_dtype=torch.float32))
    paths: Sequence[torch.Tensor] = [torch.from_numpy(path[path >= 0]) for path in row.path_RL]
    return scores.token_K[torch.cat(list(paths)).to(device)]
