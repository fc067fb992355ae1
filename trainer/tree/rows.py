"""Plan which relations make up which optimizer step, in which packed rows. No torch: the same inputs and seed give the
same plan everywhere. All responses of a relation lie in one row, so its loss can go backward by itself; later epochs
repeat the same steps in another order, because the reference pass walks exactly these rows."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from trainer.data import PreferenceData, PromptGroup, Relation
from trainer.settings import TrainSettings
from trainer.tree.encode import EncodedRow, PrefixTree, Tree, encode_plain_row, encode_tree_row

Layout = Literal["tree", "plain"]


@dataclass(frozen=True, slots=True)
class RowTree:
    """A prompt (index into the data's groups) and some of its responses (indices into that group)."""

    group: int
    responses: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowRelation:
    """A relation (index into the data's relations); `places` count the row's responses, tree after tree."""

    index: int
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One forward and backward pass."""

    trees: tuple[RowTree, ...]
    relations: tuple[RowRelation, ...]

    @property
    def responses(self) -> int:
        """How many responses the row scores."""
        return sum(len(tree.responses) for tree in self.trees)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step; its loss is divided by `relations` whatever the number of rows."""

    rows: tuple[Row, ...]

    @property
    def relations(self) -> int:
        """How many relations share the step's one denominator."""
        return sum(len(row.relations) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Plan:
    """`order` walks over `steps`, once per epoch; `digest` names plan and token ids."""

    layout: Layout
    steps: tuple[Step, ...]
    order: tuple[int, ...]
    digest: str


def plan_rows(data: PreferenceData, settings: TrainSettings, *, seed: int, layout: Layout) -> Plan:
    """Steps of about `batch_pairs` relations, each cut into rows of at most `row_tokens` tokens, in a seeded order."""
    rng = random.Random(seed)
    units = _units(data.relations, settings, rng)
    header = _common_prefix(data) if layout == "tree" else 0
    located = _locate(data)
    batches = _cut(units, settings.batch_pairs)
    orders = [list(range(len(batches)))] + [
        rng.sample(range(len(batches)), len(batches)) for _ in range(settings.epochs - 1)
    ]
    order = [step for epoch in orders for step in epoch][: settings.max_steps]
    used = batches[: max(order) + 1]
    steps = tuple(Step(tuple(_rows_of(batch, data, located, settings.row_tokens, layout, header))) for batch in used)
    return Plan(layout, steps, tuple(order), _digest(data, steps, order, layout))


def row_trees(data: PreferenceData, row: Row) -> list[Tree]:
    """The row's token ids: each tree's prompt and responses."""
    groups = ((data.groups[tree.group], tree.responses) for tree in row.trees)
    return [(group.token_ids, [group.responses[r].token_ids for r in wanted]) for group, wanted in groups]


def encode_row(data: PreferenceData, row: Row, layout: Layout) -> EncodedRow:
    """What the model reads for this row."""
    return (encode_tree_row if layout == "tree" else encode_plain_row)(row_trees(data, row))


def separate_tokens(data: PreferenceData, row: Row) -> int:
    """Tokens that this row's relations would cost as separate prompt + response sequences, two for each pair."""
    trees = row_trees(data, row)
    lengths = [len(prompt) + len(ids) for prompt, responses in trees for ids in responses]
    return sum(lengths[place] for relation in row.relations for place in relation.places)


_Located = tuple[int, tuple[int, ...]]
"""An index, and a relation's responses as indices into its prompt's group."""


def _locate(data: PreferenceData) -> list[_Located]:
    """Each relation's prompt, as an index into the groups, with its responses."""
    group_of = {group.id: at for at, group in enumerate(data.groups)}
    response_of = [{response.id: at for at, response in enumerate(group.responses)} for group in data.groups]
    located = ((relation, group_of[relation.prompt_id]) for relation in data.relations)
    return [(group, tuple(response_of[group][id] for id in relation.responses)) for relation, group in located]


def _units(relations: Sequence[Relation], settings: TrainSettings, rng: random.Random) -> list[list[int]]:
    """What a step takes whole: a prompt's relations (at most a step's worth), or single ones, shuffled."""
    if settings.grouping == "shuffled":
        units = [[index] for index in range(len(relations))]
    else:
        by_prompt: dict[str, list[int]] = {}
        for index, relation in enumerate(relations):
            by_prompt.setdefault(relation.prompt_id, []).append(index)
        size = settings.batch_pairs
        units = [ids[at : at + size] for ids in by_prompt.values() for at in range(0, len(ids), size)]
    rng.shuffle(units)
    return units


def _cut(units: Sequence[list[int]], batch_pairs: int) -> list[list[int]]:
    """Steps of nearly equal size, `batch_pairs` or a little less, of whole units: each goes where its middle falls."""
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
    """Relations of one prompt that go into one row, with the responses they need and what those cost."""

    group: int
    responses: dict[int, None] = field(default_factory=dict)
    relations: list[_Located] = field(default_factory=list)
    tokens: int = 0
    longest: int = 0
    tree: PrefixTree = field(default_factory=PrefixTree)


def _rows_of(
    batch: Sequence[int], data: PreferenceData, located: Sequence[_Located], budget: int, layout: Layout, header: int
) -> Iterator[Row]:
    """The rows of a step: each prompt's relations in as few pieces as the budget allows, packed."""
    by_group: dict[int, list[_Located]] = {}
    for relation in batch:
        group, responses = located[relation]
        by_group.setdefault(group, []).append((relation, responses))
    pieces = [
        piece
        for group, relations in by_group.items()
        for piece in _split(group, relations, data.groups[group], budget, layout)
    ]
    return map(_as_row, _pack(pieces, budget, layout, header))


def _split(
    group: int, relations: Sequence[_Located], prompt: PromptGroup, budget: int, layout: Layout
) -> Iterator[_Piece]:
    piece = _Piece(group)
    for index, responses in relations:
        size = _grow(piece, responses, prompt, layout)
        if size > budget and piece.relations:
            yield piece
            piece = _Piece(group)
            size = _grow(piece, responses, prompt, layout)
        piece.tokens = size
        piece.relations.append((index, responses))
        piece.responses.update(dict.fromkeys(responses))
        piece.longest = max(
            piece.longest, *(len(prompt.responses[r].token_ids) + len(prompt.token_ids) for r in responses)
        )
    yield piece


def _grow(piece: _Piece, responses: tuple[int, ...], prompt: PromptGroup, layout: Layout) -> int:
    """Tokens of the piece if the relation joined it (its tree has then grown by it)."""
    if layout == "plain":
        wanted = set(piece.responses) | set(responses)
        return len(wanted) * max(len(prompt.token_ids) + len(prompt.responses[r].token_ids) - 1 for r in wanted)
    end = piece.tree.add_prompt(prompt.token_ids)
    for response in responses:
        piece.tree.add_response(end, prompt.responses[response].token_ids)
    return len(piece.tree)


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
    relations: list[RowRelation] = []
    before = 0
    for piece in pieces:
        place = {response: before + at for at, response in enumerate(piece.responses)}
        trees.append(RowTree(piece.group, tuple(piece.responses)))
        relations.extend(RowRelation(index, tuple(place[r] for r in responses)) for index, responses in piece.relations)
        before += len(place)
    return Row(tuple(trees), tuple(relations))


def _common_prefix(data: PreferenceData) -> int:
    """Length of the prefix that all prompts of the relations share (a system message, few-shot examples)."""
    wanted = {relation.prompt_id for relation in data.relations}
    prompts = [list(group.token_ids) for group in data.groups if group.id in wanted]
    low, high = min(prompts), max(prompts)
    return next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def _digest(data: PreferenceData, steps: Sequence[Step], order: Sequence[int], layout: Layout) -> str:
    sha = hashlib.sha256(f"{layout} {list(order)}".encode())
    for step in steps:
        sha.update(b"step")
        for row in step.rows:
            sha.update(repr((row, [data.relations[relation.index] for relation in row.relations])).encode())
            for prompt, responses in row_trees(data, row):
                for ids in (prompt, *responses):
                    sha.update(len(ids).to_bytes(8, "little") + np.asarray(ids, dtype=np.int64).tobytes())
    return sha.hexdigest()
