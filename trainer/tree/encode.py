"""Encode the trees of a row (prompts with responses, token ids) as what the model reads and which outputs are scored.
In a tree row every distinct prefix is one token, which sees exactly its own prefix at the position of its depth, so
common text is read once. A plain row is a batch of right-padded sequences. Shapes: `B` sequences of a plain row (1 in a
tree row), `T` tokens of the row, `U` outputs kept per sequence, `K` scored (prefix, next token) pairs, `R` responses,
`L` tokens of the longest response."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.tree.branches import Branches, find_branches

Ids = Sequence[int]
Tree = tuple[Ids, Sequence[Ids]]
"""Prompt ids and the ids of each response."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One forward pass. Row `b`'s kept output `u` has the flat index `b * U + u`."""

    tokens_BT: np.ndarray
    mask_BT: np.ndarray | None
    """Plain rows: 1 for tokens, 0 for padding."""
    sees_TT: np.ndarray | None
    """Tree rows: may token i look at token j?"""
    depth_T: np.ndarray | None
    """Tree rows: positions."""
    branches: Branches | None
    """Tree rows: the same visibility, as small dense pieces."""
    keep_U: np.ndarray
    """Token indices whose outputs are needed."""
    from_K: np.ndarray
    """Flat index of the kept output that predicts..."""
    target_K: np.ndarray
    """...this token."""
    path_RL: np.ndarray
    """Indices into K of each response's tokens in order, -1 after its end."""
    length_R: np.ndarray
    encoded: int
    """Tokens that the model reads, padding left out."""


@dataclass(slots=True)
class PrefixTree:
    """Grows by whole sequences; the last token of a sequence is predicted but never read."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    edges: dict[tuple[int, int], int] = field(default_factory=dict)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, node: int, token: int) -> int:
        """The node for `token` after `node` (-1: the start), made if it is new."""
        child = self._children.get((node, token))
        if child is None:
            child = self._children[node, token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(node)
            self.depths.append(self.depths[node] + 1 if node >= 0 else 0)
        return child

    def add_prompt(self, ids: Ids) -> int:
        """Read a prompt from the start; returns the node of its last token."""
        node = -1
        for token in ids:
            node = self.read(node, int(token))
        return node

    def add_response(self, node: int, ids: Ids) -> list[int]:
        """Score a response that follows `node`; returns its path: the index of each (prefix, next token) pair."""
        path = []
        for place, token in enumerate(map(int, ids), start=1):
            path.append(self.edges.setdefault((node, token), len(self.edges)))
            if place < len(ids):
                node = self.read(node, token)
        return path


def tree_tokens(trees: Sequence[Tree]) -> int:
    """How many tokens a tree row of these trees reads."""
    return len(_grow(trees)[0])


def encode_tree_row(trees: Sequence[Tree]) -> EncodedRow:
    """One packed row in which every distinct prefix is encoded once."""
    tree, paths = _grow(trees)
    nodes_K, target_K = np.array(list(tree.edges), dtype=np.int64).T
    keep_U, from_K = np.unique(nodes_K, return_inverse=True)
    return EncodedRow(
        tokens_BT=np.array([tree.tokens], dtype=np.int64),
        mask_BT=None,
        sees_TT=_ancestors(tree.parents),
        branches=find_branches(tree.parents),
        depth_T=np.array(tree.depths, dtype=np.int64),
        keep_U=keep_U,
        from_K=from_K,
        target_K=target_K,
        path_RL=_pad(paths, -1),
        length_R=np.array([len(path) for path in paths], dtype=np.int64),
        encoded=len(tree),
    )


def encode_plain_row(trees: Sequence[Tree]) -> EncodedRow:
    """Every prompt + response as a sequence of its own, padded on the right (which causal models never see)."""
    pairs = [(prompt, ids) for prompt, responses in trees for ids in responses]
    tokens_BT = _pad([[*prompt, *response][:-1] for prompt, response in pairs], 0)
    lengths = [len(prompt) + len(response) - 1 for prompt, response in pairs]
    first = min(len(prompt) for prompt, _ in pairs) - 1
    kept = tokens_BT.shape[1] - first
    from_K: list[int] = []
    target_K: list[int] = []
    paths: list[list[int]] = []
    for b, (prompt, response) in enumerate(pairs):
        start = b * kept + len(prompt) - 1 - first
        paths.append(list(range(len(target_K), len(target_K) + len(response))))
        from_K.extend(range(start, start + len(response)))
        target_K.extend(response)
    return EncodedRow(
        tokens_BT=tokens_BT,
        mask_BT=(np.arange(tokens_BT.shape[1]) < np.array(lengths)[:, None]).astype(np.int64),
        sees_TT=None,
        depth_T=None,
        branches=None,
        keep_U=np.arange(first, tokens_BT.shape[1]),
        from_K=np.array(from_K, dtype=np.int64),
        target_K=np.array(target_K, dtype=np.int64),
        path_RL=_pad(paths, -1),
        length_R=np.array([len(response) for _, response in pairs], dtype=np.int64),
        encoded=sum(lengths),
    )


def _grow(trees: Sequence[Tree]) -> tuple[PrefixTree, list[list[int]]]:
    tree = PrefixTree()
    paths: list[list[int]] = []
    for prompt, responses in trees:
        end = tree.add_prompt(prompt)
        paths.extend(tree.add_response(end, ids) for ids in responses)
    return tree, paths


def _ancestors(parents: Sequence[int]) -> np.ndarray:
    sees_TT = np.zeros((len(parents), len(parents)), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees_TT[node] = sees_TT[parent]
        sees_TT[node, node] = True
    return sees_TT


def _pad(rows: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
