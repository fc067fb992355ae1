"""Room `trainer/`, the plan of a round. In: checked data, settings, a seed; out: which pairs make which optimizer
step, and in which packed rows the model reads them. No torch: the same data, settings and seed give the same plan
everywhere.

Both responses of a pair lie in one row, so each row's loss can go backward by itself. The reference pass walks exactly
these rows; that is why later epochs repeat the same steps (in another order) instead of cutting new ones.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.data import Pair, PreferenceData, PromptGroup
from trainer.encode import EncodedRow, PrefixTree, Tree, encode_plain_row, encode_tree_row
from trainer.settings import TrainSettings

Layout = Literal["tree", "plain"]


@dataclass(frozen=True, slots=True)
class RowTree:
    """A prompt (index into the data's groups) and some of its responses (indices into that group)."""

    group: int
    responses: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowPair:
    """A pair (index into the data's pairs); `chosen` and `rejected` count the row's responses, tree after tree."""

    pair: int
    chosen: int
    rejected: int


@dataclass(frozen=True, slots=True)
class Row:
    """One forward and backward pass."""

    trees: tuple[RowTree, ...]
    pairs: tuple[RowPair, ...]

    @property
    def responses(self) -> int:
        """How many responses the row scores."""
        return sum(len(tree.responses) for tree in self.trees)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step; its loss is divided by `pairs` whatever the number of rows."""

    rows: tuple[Row, ...]

    @property
    def pairs(self) -> int:
        """How many pairs share the step's one denominator."""
        return sum(len(row.pairs) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Plan:
    """`order` walks over `steps`, once per epoch; `digest` names plan and token ids."""

    layout: Layout
    steps: tuple[Step, ...]
    order: tuple[int, ...]
    digest: str


def plan_rows(data: PreferenceData, settings: TrainSettings, *, seed: int, layout: Layout) -> Plan:
    """Steps of about `batch_pairs` pairs, each cut into rows of at most `row_tokens` tokens, in a seeded order."""
    rng = random.Random(seed)
    units = _units(data.pairs, settings, rng)
    header = _common_prefix(data) if layout == "tree" else 0
    index = _Index(data)
    batches = _cut(units, settings.batch_pairs)
    orders = [list(range(len(batches)))] + [
        rng.sample(range(len(batches)), len(batches)) for _ in range(settings.epochs - 1)
    ]
    order = [step for epoch in orders for step in epoch][: settings.max_steps]
    used = batches[: max(order) + 1]
    steps = tuple(Step(tuple(_rows_of(batch, index, settings.row_tokens, layout, header))) for batch in used)
    return Plan(layout, steps, tuple(order), _digest(data, steps, order, layout))


def row_trees(data: PreferenceData, row: Row) -> list[Tree]:
    """The row's token ids: each tree's prompt and responses."""
    groups = ((data.groups[tree.group], tree.responses) for tree in row.trees)
    return [(group.token_ids, [group.responses[r].token_ids for r in wanted]) for group, wanted in groups]


def encode_row(data: PreferenceData, row: Row, layout: Layout) -> EncodedRow:
    """What the model reads for this row."""
    return (encode_tree_row if layout == "tree" else encode_plain_row)(row_trees(data, row))


def separate_tokens(data: PreferenceData, row: Row) -> int:
    """Tokens that this row's pairs would cost as separate prompt + response sequences, two for each pair."""
    trees = row_trees(data, row)
    lengths = [len(prompt) + len(ids) for prompt, responses in trees for ids in responses]
    return sum(lengths[pair.chosen] + lengths[pair.rejected] for pair in row.pairs)


class _Index:
    """Where prompts and responses lie in the data."""

    def __init__(self, data: PreferenceData) -> None:
        self.data = data
        self.group_of = {group.id: index for index, group in enumerate(data.groups)}
        self._responses: dict[int, dict[str, int]] = {}

    def locate(self, pair: Pair) -> tuple[int, int, int]:
        """Group, chosen and rejected response of a pair, as indices."""
        group = self.group_of[pair.prompt_id]
        table = self._responses.get(group)
        if table is None:
            table = self._responses[group] = {r.id: i for i, r in enumerate(self.data.groups[group].responses)}
        return group, table[pair.chosen_id], table[pair.rejected_id]


def _units(pairs: Sequence[Pair], settings: TrainSettings, rng: random.Random) -> list[list[int]]:
    """What a step takes whole: a prompt's pairs (at most a step's worth), or single pairs, shuffled."""
    if settings.grouping == "shuffled":
        units = [[index] for index in range(len(pairs))]
    else:
        by_prompt: dict[str, list[int]] = {}
        for index, pair in enumerate(pairs):
            by_prompt.setdefault(pair.prompt_id, []).append(index)
        size = settings.batch_pairs
        units = [ids[at : at + size] for ids in by_prompt.values() for at in range(0, len(ids), size)]
    rng.shuffle(units)
    return units


def _cut(units: Sequence[list[int]], batch_pairs: int) -> list[list[int]]:
    """Steps of as equal size as whole units allow, `batch_pairs` or a little less: each unit goes where its middle
    falls."""
    total = sum(map(len, units))
    steps = -(-total // batch_pairs)
    batches: list[list[int]] = [[] for _ in range(steps)]
    before = 0
    for unit in units:
        middle = before + len(unit) / 2
        batches[min(int(middle * steps / total), steps - 1)].extend(unit)
        before += len(unit)
    return [batch for batch in batches if batch]


@dataclass(slots=True)
class _Piece:
    """Pairs of one prompt that go into one row, with the responses they need and what those cost."""

    group: int
    responses: dict[int, None]
    pairs: list[tuple[int, int, int]]
    tokens: int
    longest: int


def _rows_of(batch: Sequence[int], index: _Index, budget: int, layout: Layout, header: int) -> Iterator[Row]:
    pieces = list(_pieces(batch, index, budget, layout))
    return map(_as_row, _pack(pieces, budget, layout, header))


def _pieces(batch: Sequence[int], index: _Index, budget: int, layout: Layout) -> Iterator[_Piece]:
    """Each prompt's pairs of a step in as few pieces as the budget allows."""
    by_group: dict[int, list[tuple[int, int, int]]] = {}
    for pair in batch:
        group, chosen, rejected = index.locate(index.data.pairs[pair])
        by_group.setdefault(group, []).append((pair, chosen, rejected))
    for group, pairs in by_group.items():
        yield from _split(group, pairs, index.data.groups[group], budget, layout)


def _split(
    group: int, pairs: Sequence[tuple[int, int, int]], prompt: PromptGroup, budget: int, layout: Layout
) -> Iterator[_Piece]:
    piece = _Piece(group, {}, [], 0, 0)
    tree = PrefixTree()
    for pair in pairs:
        size = _grow(piece, tree, pair, prompt, layout)
        if size > budget and piece.pairs:
            yield piece
            piece, tree = _Piece(group, {}, [], 0, 0), PrefixTree()
            size = _grow(piece, tree, pair, prompt, layout)
        piece.tokens = size
        piece.pairs.append(pair)
        piece.responses.update(dict.fromkeys(pair[1:]))
        piece.longest = max(
            piece.longest, *(len(prompt.responses[r].token_ids) + len(prompt.token_ids) for r in pair[1:])
        )
    yield piece


def _grow(piece: _Piece, tree: PrefixTree, pair: tuple[int, int, int], prompt: PromptGroup, layout: Layout) -> int:
    """Tokens of the piece if the pair joined it (the tree has then grown by it)."""
    if layout == "plain":
        wanted = set(piece.responses) | set(pair[1:])
        return len(wanted) * max(len(prompt.token_ids) + len(prompt.responses[r].token_ids) - 1 for r in wanted)
    end = tree.add_prompt(prompt.token_ids)
    for response in pair[1:]:
        tree.add_response(end, prompt.responses[response].token_ids)
    return len(tree)


def _pack(pieces: Sequence[_Piece], budget: int, layout: Layout, header: int) -> list[list[_Piece]]:
    """Largest piece first into the emptiest row that can take it, so that rows come out alike."""
    rows: list[list[_Piece]] = [[] for _ in range(max(1, -(-_cost(pieces, layout, header) // budget)))]
    for piece in sorted(pieces, key=lambda piece: -piece.longest if layout == "plain" else -piece.tokens):
        sizes = [(_cost([*row, piece], layout, header), at) for at, row in enumerate(rows)]
        fitting = [(size, at) for size, at in sizes if size <= budget or not rows[at]]
        if fitting:
            rows[min(fitting)[1]].append(piece)
        else:
            rows.append([piece])
    return [row for row in rows if row]


def _cost(pieces: Sequence[_Piece], layout: Layout, header: int) -> int:
    """Tokens of a row: trees share the prefix common to all prompts; plain sequences are padded to the longest."""
    if layout == "plain":
        return sum(len(piece.responses) for piece in pieces) * max(piece.longest - 1 for piece in pieces)
    return header + sum(piece.tokens - header for piece in pieces)


def _as_row(pieces: Iterable[_Piece]) -> Row:
    trees: list[RowTree] = []
    pairs: list[RowPair] = []
    before = 0
    for piece in pieces:
        place = {response: before + at for at, response in enumerate(piece.responses)}
        trees.append(RowTree(piece.group, tuple(piece.responses)))
        pairs.extend(RowPair(pair, place[chosen], place[rejected]) for pair, chosen, rejected in piece.pairs)
        before += len(place)
    return Row(tuple(trees), tuple(pairs))


def _common_prefix(data: PreferenceData) -> int:
    """Length of the prefix that all prompts of the pairs share (a system message, few-shot examples)."""
    wanted = {pair.prompt_id for pair in data.pairs}
    prompts = [list(group.token_ids) for group in data.groups if group.id in wanted]
    low, high = min(prompts), max(prompts)
    return next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def _digest(data: PreferenceData, steps: Sequence[Step], order: Sequence[int], layout: Layout) -> str:
    sha = hashlib.sha256(f"{layout} {list(order)}".encode())
    for step in steps:
        sha.update(b"step")
        for row in step.rows:
            weights = [data.pairs[pair.pair].weight for pair in row.pairs]
            sha.update(repr((row, weights)).encode())
            for prompt, responses in row_trees(data, row):
                for ids in (prompt, *responses):
                    sha.update(len(ids).to_bytes(8, "little") + np.asarray(ids, dtype=np.int64).tobytes())
    return sha.hexdigest()
