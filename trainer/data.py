"""The data of a round: prompts, responses (token ids) and relations over them (pairs, single responses, ranked groups).
Dropped relations are counted by reason; what can only be a mistake raises TrainerError."""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import ClassVar

from trainer.errors import TrainerError
from trainer.losses.method import Kind

IDENTICAL = "identical responses"
EMPTY_RESPONSE = "empty response"
EMPTY_PROMPT = "empty prompt"
NO_RESPONSE = "no response"
TOO_LONG = "longer than the model's context"
NAMES: dict[Kind, str] = {"pairs": "pair", "singles": "single response", "groups": "ranked group"}


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled answer: the ids as sampled, with the end-of-turn id if and only if it was sampled."""

    id: str
    token_ids: Sequence[int]
    sampled_logp: float | None = None
    """The sampler's own log-prob of the whole response (nats), to be compared with the trainer's; None: not known."""


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One prompt with its responses."""

    id: str
    token_ids: Sequence[int]
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """`chosen_id` is preferred to `rejected_id`; `trainer.losses.batch.Pairs` documents the other fields."""

    kind: ClassVar[Kind] = "pairs"

    prompt_id: str
    chosen_id: str
    rejected_id: str
    weight: float = 1.0
    score_w: float | None = None
    score_l: float | None = None
    win_w: float | None = None
    win_l: float | None = None
    probability: float | None = None
    margin: float | None = None
    chosen_is_reference: bool | None = None

    @property
    def responses(self) -> tuple[str, ...]:
        """Ids of the responses in the relation."""
        return (self.chosen_id, self.rejected_id)


@dataclass(frozen=True, slots=True)
class Single:
    """One response with a label or a score."""

    kind: ClassVar[Kind] = "singles"

    prompt_id: str
    response_id: str
    good: bool | None = None
    score: float | None = None
    weight: float = 1.0
    mismatched_id: str | None = None
    """Another prompt's response, added to this prompt's group, for losses that compare with it."""

    @property
    def responses(self) -> tuple[str, ...]:
        """The response, and the mismatched one if there is one."""
        return (self.response_id,) if self.mismatched_id is None else (self.response_id, self.mismatched_id)


@dataclass(frozen=True, slots=True)
class Ranked:
    """Responses to one prompt, best first, with their scores if they are known."""

    kind: ClassVar[Kind] = "groups"

    prompt_id: str
    response_ids: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    weight: float = 1.0

    @property
    def responses(self) -> tuple[str, ...]:
        """Ids, best first."""
        return self.response_ids


Relation = Pair | Single | Ranked


@dataclass(frozen=True)
class PreferenceData:
    """Everything one round trains on; its relations are all of one kind."""

    groups: tuple[PromptGroup, ...]
    relations: tuple[Relation, ...]

    def length(self, prompt_id: str, response_id: str) -> int:
        """Tokens of a response."""
        return self._lengths[prompt_id, response_id]

    @cached_property
    def _lengths(self) -> dict[tuple[str, str], int]:
        return {(g.id, r.id): len(r.token_ids) for g in self.groups for r in g.responses}

    @property
    def kind(self) -> Kind:
        """The kind of the relations; pairs if there are none."""
        return self.relations[0].kind if self.relations else "pairs"

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with one of its responses."""
        return max(len(g.token_ids) + max((len(r.token_ids) for r in g.responses), default=0) for g in self.groups)

    def split(self, relations: float, *, seed: str) -> "tuple[PreferenceData, PreferenceData]":
        """The data in two parts by whole prompts drawn at random; the second has at least this many relations."""
        counts = Counter(relation.prompt_id for relation in self.relations)
        prompts = sorted(counts)
        random.Random(seed).shuffle(prompts)
        before = accumulate((counts[prompt] for prompt in prompts), initial=0)
        drawn = {prompt for prompt, count in zip(prompts, before, strict=False) if count < relations}
        kept, split_off = ([r for r in self.relations if (r.prompt_id in drawn) is wanted] for wanted in (False, True))
        return replace(self, relations=tuple(kept)), replace(self, relations=tuple(split_off))


@dataclass(frozen=True, slots=True)
class CheckedData:
    """Data that can be trained on, and the number of dropped relations by reason."""

    data: PreferenceData
    dropped: dict[str, int]


def as_kind(data: PreferenceData, kind: Kind) -> PreferenceData:
    """Convert pairs to labelled singles (each response once) or groups of two; other data must already be of `kind`."""
    if not data.relations or data.kind == kind:
        return data
    if data.kind == "pairs" and kind == "singles":
        return replace(data, relations=tuple(_singles_of(data.relations)))
    if data.kind == "pairs" and kind == "groups":
        return replace(data, relations=tuple(_group_of(pair) for pair in data.relations if isinstance(pair, Pair)))
    raise TrainerError(
        f"The loss is defined on {kind}, but the data are {data.kind}: a {NAMES[data.kind]} cannot be converted to a "
        f"{NAMES[kind]}. Choose another loss, or another pair rule."
    )


def _singles_of(relations: tuple[Relation, ...]) -> Iterator[Single]:
    """Chosen responses as good, rejected ones as bad; a response in several pairs appears once for each label."""
    seen = set()
    for pair in relations:
        assert isinstance(pair, Pair)
        sides = ((pair.chosen_id, True, pair.score_w, pair.win_w), (pair.rejected_id, False, pair.score_l, pair.win_l))
        for response_id, good, score, win in sides:
            if (pair.prompt_id, response_id, good) not in seen:
                seen.add((pair.prompt_id, response_id, good))
                yield Single(pair.prompt_id, response_id, good, score if score is not None else win, pair.weight)


def _group_of(pair: Pair) -> Ranked:
    scores = None if pair.score_w is None or pair.score_l is None else (pair.score_w, pair.score_l)
    return Ranked(pair.prompt_id, pair.responses, scores, pair.weight)


def check_data(
    data: PreferenceData, *, vocabulary: int, context: int | None, may_be_empty: bool = False, source: str = ""
) -> CheckedData:
    """Drop and count relations that cannot be trained on. TrainerError if data contradict, or none is left; it names
    the file or run that they were read from, their `source`."""
    groups = _by_id(data.groups)
    responses = {group.id: _responses_by_id(group) for group in data.groups}
    kept, dropped = [], Counter[str]()
    for relation in data.relations:
        members = _resolve(relation, responses)
        reason = _why_dropped(groups[relation.prompt_id], members, relation.kind, context)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(relation)
    if not kept and not may_be_empty:
        raise TrainerError(_nothing_left(len(data.relations), data.kind, dropped, source))
    _check_vocabulary(kept, groups, responses, vocabulary)
    return CheckedData(PreferenceData(data.groups, tuple(kept)), dict(sorted(dropped.items())))


def _by_id(groups: tuple[PromptGroup, ...]) -> dict[str, PromptGroup]:
    table = {group.id: group for group in groups}
    if len(table) != len(groups):
        twice = next(id for id, count in Counter(group.id for group in groups).items() if count > 1)
        raise TrainerError(
            f"Training data hold the prompt {twice!r} twice. Give every prompt one group with all its responses."
        )
    return table


def _responses_by_id(group: PromptGroup) -> dict[str, Response]:
    table = {response.id: response for response in group.responses}
    if len(table) != len(group.responses):
        raise TrainerError(
            f"Prompt {group.id!r} holds two responses with the same id. Response ids must be unique within a prompt."
        )
    return table


def _resolve(relation: Relation, responses: dict[str, dict[str, Response]]) -> list[Response]:
    """The responses of a relation. TrainerError if one is missing, or if a weight or the number of scores is wrong."""
    table, what = responses.get(relation.prompt_id, {}), f"A {NAMES[relation.kind]} of prompt {relation.prompt_id!r}"
    for id in relation.responses:
        if id not in table:
            raise TrainerError(
                f"{what} names the response {id!r}, which is not among that prompt's {len(table)} responses. Relations "
                "and responses must come from the same sampling stage."
            )
    if not (math.isfinite(relation.weight) and relation.weight >= 0):
        raise TrainerError(f"{what} has the weight {relation.weight}. Weights must be finite and not negative.")
    if isinstance(relation, Ranked) and relation.scores is not None and len(relation.scores) != len(relation.responses):
        raise TrainerError(
            f"{what} has {len(relation.responses)} responses and {len(relation.scores)} scores. Give every response "
            "one score, or the group none."
        )
    return [table[id] for id in relation.responses]


def _why_dropped(group: PromptGroup, members: Sequence[Response], kind: Kind, context: int | None) -> str | None:
    if len(group.token_ids) == 0:
        return EMPTY_PROMPT
    if not members:
        return NO_RESPONSE
    if any(len(response.token_ids) == 0 for response in members):
        return EMPTY_RESPONSE
    distinct = {tuple(response.token_ids) for response in members}
    if kind != "singles" and len(distinct) < len(members):
        return IDENTICAL
    longest = len(group.token_ids) + max(len(response.token_ids) for response in members)
    return TOO_LONG if context is not None and longest > context else None


def _check_vocabulary(
    kept: list[Relation], groups: dict[str, PromptGroup], responses: dict[str, dict[str, Response]], vocabulary: int
) -> None:
    wanted = dict.fromkeys((relation.prompt_id, id) for relation in kept for id in relation.responses)
    for prompt_id, id in wanted:
        for what, ids in (("prompt", groups[prompt_id].token_ids), ("response", responses[prompt_id][id].token_ids)):
            _check_ids(ids, vocabulary, f"{what} of prompt {prompt_id!r} (response {id!r})")


def _check_ids(ids: Sequence[int], vocabulary: int, where: str) -> None:
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocabulary:
        raise TrainerError(
            f"The {where} holds the token id {high if high >= vocabulary else low}, but the model's vocabulary has "
            f"{vocabulary} ids. The responses were tokenised for another model: sample again with this policy."
        )


def _nothing_left(total: int, kind: Kind, dropped: Counter[str], source: str) -> str:
    if total == 0 and source:
        return f"{source} holds nothing to train on: it has no rows."
    if total == 0:
        return "There is no pair to train on: the pairing stage made none. Its counts say why."
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    if source:
        what = "examples" if kind == "singles" else kind
        return f"None of the {total} {what} in {source} can be trained on: {reasons}. Correct them or name other data."
    return f"None of the {total} {kind} can be trained on: {reasons}. Change sampling or pairing."
