"""Split a prefix tree into small attention problems: branches (runs of tokens without a fork) in groups of similar
length, each with the tokens that it sees, instead of T x T weights that are nearly all blocked. Shapes: `T` tokens of
the row, `S` branches of a group, `Q` tokens of its longest branch, `K` of its longest prefix + branch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SHORTEST = 16
GROWTH = 1.5  # a group's branches are at most this much longer than one another, so that padding stays small


@dataclass(frozen=True, slots=True)
class BranchGroup:
    """Branches of similar length, padded to one shape."""

    queries_SQ: np.ndarray
    """The branch's tokens, 0 where padded."""
    keys_SK: np.ndarray
    """The tokens before the branch, then its own, 0 where padded."""
    sees_SQK: np.ndarray
    """Which key each query sees; padded queries see the first one."""


@dataclass(frozen=True, slots=True)
class Branches:
    """All groups of a row; `place_T` finds each token in the groups' queries laid end to end."""

    groups: tuple[BranchGroup, ...]
    place_T: np.ndarray


def find_branches(parents: Sequence[int]) -> Branches:
    """Split a tree, given by the parent of each token (-1: none; parents come before children)."""
    sizes: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for before, own in _branches(parents):
        sizes.setdefault(_size_class(len(own)), []).append((before, own))
    groups, place_T, start = [], np.zeros(len(parents), dtype=np.int64), 0
    for _, members in sorted(sizes.items()):
        group = _group(members)
        for index, (_, own) in enumerate(members):
            place_T[own] = start + index * group.queries_SQ.shape[1] + np.arange(len(own))
        start += group.queries_SQ.size
        groups.append(group)
    return Branches(tuple(groups), place_T)


def _branches(parents: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each run of tokens whose parent is the token before, with all tokens that lead to it."""
    starts = [node for node, parent in enumerate(parents) if node == 0 or parent != node - 1]
    path_of: dict[int, np.ndarray] = {}
    start_of = np.zeros(len(parents), dtype=np.int64)
    for start, end in zip(starts, [*starts[1:], len(parents)], strict=True):
        parent = parents[start]
        path_of[start] = np.zeros(0, dtype=np.int64)
        if parent >= 0:
            above = int(start_of[parent])
            path_of[start] = np.concatenate([path_of[above], np.arange(above, parent + 1)])
        start_of[start:end] = start
        yield path_of[start], np.arange(start, end)


def _size_class(length: int) -> int:
    return max(0, math.ceil(math.log(length / SHORTEST, GROWTH)))


def _group(members: Sequence[tuple[np.ndarray, np.ndarray]]) -> BranchGroup:
    longest = max(len(own) for _, own in members)
    widest = max(len(before) + len(own) for before, own in members)
    queries_SQ = np.zeros((len(members), longest), dtype=np.int64)
    keys_SK = np.zeros((len(members), widest), dtype=np.int64)
    sees_SQK = np.zeros((len(members), longest, widest), dtype=bool)
    for s, (before, own) in enumerate(members):
        length, total = len(own), len(before) + len(own)
        queries_SQ[s, :length] = own
        keys_SK[s, :total] = np.concatenate([before, own])
        sees_SQK[s, :length, : len(before)] = True
        sees_SQK[s, :length, len(before) : total] = np.tri(length, dtype=bool)
        sees_SQK[s, length:, 0] = True
    return BranchGroup(queries_SQ, keys_SK, sees_SQK)
