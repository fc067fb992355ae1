"""Room `trainer/`, may this model be trained on prefix trees? In: the model in fp32 and two of the round's prompts;
out: the largest difference per token between tree rows and plain rows. Sliding windows, linear attention and some
attention code answer trees wrongly without any error, so this is measured before every round."""

import random
from collections.abc import Sequence

import torch

from trainer.data import PreferenceData
from trainer.encode import EncodedRow, Tree, encode_plain_row, encode_tree_row
from trainer.scorer import RowScorer, to_batch

MOST_GAP = 1e-4
"""Nat per token (fp32) beyond which a round uses plain rows."""


def probe_trees(scorer: RowScorer, data: PreferenceData, *, device: torch.device, seed: int) -> float:
    """Largest absolute difference of a token's log-prob between one tree row of several prompts and plain rows
    (nat)."""
    trees = sample_trees(data, seed)
    packed = _token_logprobs(scorer, encode_tree_row(trees), device)
    plain = _token_logprobs(scorer, encode_plain_row(trees), device)
    return float((packed - plain).abs().max().nan_to_num(torch.inf))


def sample_trees(data: PreferenceData, seed: int) -> list[Tree]:
    """The prompt with the longest sequence of all relations (windows show there) and another, one relation of each."""
    index = {group.id: group for group in data.groups}
    trees: list[Tree] = []
    for relation in data.relations:
        group = index[relation.prompt_id]
        trees.append((group.token_ids, [r.token_ids for r in group.responses if r.id in relation.responses]))
    longest = max(trees, key=_longest)
    others = [tree for tree in trees if tree[0] is not longest[0]]
    return [longest, *random.Random(seed).sample(others, min(1, len(others)))]


def _longest(tree: Tree) -> int:
    prompt, responses = tree
    return len(prompt) + max(map(len, responses))


def _token_logprobs(scorer: RowScorer, row: EncodedRow, device: torch.device) -> torch.Tensor:
    """Log-probs of the responses' tokens, response after response."""
    with torch.no_grad():
        scores = scorer(to_batch(row, device=device, mask_dtype=torch.float32))
    paths: Sequence[torch.Tensor] = [torch.from_numpy(path[path >= 0]) for path in row.path_RL]
    return scores.token_K[torch.cat(list(paths)).to(device)]
