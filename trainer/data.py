"""Room `trainer/`, what a round trains on. In: prompts, responses (token ids) and pairs; out: the same, checked, with
a count and a reason for every pair that was left out. Refuses what can only be a mistake."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.errors import TrainerError

IDENTICAL = "identical responses"
EMPTY_RESPONSE = "empty response"
EMPTY_PROMPT = "empty prompt"
TOO_LONG = "longer than the model's context"


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
    """`chosen_id` is preferred to `rejected_id`; `weight` multiplies the pair's loss."""

    prompt_id: str
    chosen_id: str
    rejected_id: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class PreferenceData:
    """Everything one round trains on."""

    groups: tuple[PromptGroup, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class CheckedData:
    """Data that can be trained on, and how many pairs were dropped for which reason."""

    data: PreferenceData
    dropped: dict[str, int]


def check_data(data: PreferenceData, *, vocabulary: int, context: int | None) -> CheckedData:
    """Drop pairs that cannot be trained (counted by reason); raise TrainerError for data that contradict themselves."""
    groups = _by_id(data.groups)
    responses = {group.id: _responses_by_id(group) for group in data.groups}
    kept, dropped = [], Counter[str]()
    for pair in data.pairs:
        group, chosen, rejected = _resolve(pair, groups, responses)
        reason = _why_dropped(group, chosen, rejected, context)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(pair)
    if not kept:
        raise TrainerError(_nothing_left(len(data.pairs), dropped))
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


def _resolve(
    pair: Pair, groups: dict[str, PromptGroup], responses: dict[str, dict[str, Response]]
) -> tuple[PromptGroup, Response, Response]:
    table = responses.get(pair.prompt_id, {})
    for id in (pair.chosen_id, pair.rejected_id):
        if id not in table:
            raise TrainerError(
                f"A pair of prompt {pair.prompt_id!r} names the response {id!r}, which is not among that prompt's "
                f"{len(table)} responses. Pairs and responses must come from the same sampling stage."
            )
    if not (math.isfinite(pair.weight) and pair.weight >= 0):
        raise TrainerError(
            f"A pair of prompt {pair.prompt_id!r} has the weight {pair.weight}. "
            "Weights must be finite and not negative."
        )
    return groups[pair.prompt_id], table[pair.chosen_id], table[pair.rejected_id]


def _why_dropped(group: PromptGroup, chosen: Response, rejected: Response, context: int | None) -> str | None:
    if len(group.token_ids) == 0:
        return EMPTY_PROMPT
    if len(chosen.token_ids) == 0 or len(rejected.token_ids) == 0:
        return EMPTY_RESPONSE
    if list(chosen.token_ids) == list(rejected.token_ids):
        return IDENTICAL
    longest = len(group.token_ids) + max(len(chosen.token_ids), len(rejected.token_ids))
    return TOO_LONG if context is not None and longest > context else None


def _check_vocabulary(
    pairs: list[Pair], groups: dict[str, PromptGroup], responses: dict[str, dict[str, Response]], vocabulary: int
) -> None:
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        for id in (pair.chosen_id, pair.rejected_id):
            if (pair.prompt_id, id) in seen:
                continue
            seen.add((pair.prompt_id, id))
            for what, ids in (
                ("prompt", groups[pair.prompt_id].token_ids),
                ("response", responses[pair.prompt_id][id].token_ids),
            ):
                _check_ids(ids, vocabulary, f"{what} of prompt {pair.prompt_id!r} (response {id!r})")


def _check_ids(ids: Sequence[int], vocabulary: int, where: str) -> None:
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocabulary:
        raise TrainerError(
            f"The {where} holds the token id {high if high >= vocabulary else low}, but the model's vocabulary has "
            f"{vocabulary} ids. The responses were tokenised for another model: sample again with this policy."
        )


def _nothing_left(total: int, dropped: Counter[str]) -> str:
    if total == 0:
        return "There is no pair to train on. The pairing stage made none: look at its counts before training."
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    return f"None of the {total} pairs can be trained on: {reasons}. Change sampling or pairing."
