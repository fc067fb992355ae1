"""Prepare checked pairs for a reward model: a placeholder token after each response, and a held-out split by prompt."""

import random
from dataclasses import replace

from trainer.data import PreferenceData, PromptGroup
from trainer.errors import TrainerError

AFTER_END = 0
"""Placeholder token id after a response; the model never reads it."""


def with_end(data: PreferenceData) -> PreferenceData:
    """Every response with a placeholder appended. Rows read all tokens of a response except its last (a policy only
    predicts it), so now its own last token is read, and the placeholder marks where the reward is."""
    return replace(data, groups=tuple(_with_end(group) for group in data.groups))


def _with_end(group: PromptGroup) -> PromptGroup:
    responses = (replace(response, token_ids=[*response.token_ids, AFTER_END]) for response in group.responses)
    return replace(group, responses=tuple(responses))


def hold_out(data: PreferenceData, share: float, *, seed: int) -> tuple[PreferenceData, PreferenceData | None]:
    """Training data, and whole prompts with at least this share of pairs (None for 0). TrainerError if none would
    train."""
    if share == 0:
        return data, None
    counts: dict[str, int] = {}
    for pair in data.relations:
        counts[pair.prompt_id] = counts.get(pair.prompt_id, 0) + 1
    prompts = sorted(counts)
    random.Random(f"held out {seed}").shuffle(prompts)
    held, taken = set(), 0
    for prompt in prompts:
        if taken >= share * len(data.relations):
            break
        held.add(prompt)
        taken += counts[prompt]
    if taken == len(data.relations):
        raise TrainerError(
            f"Holding out a share of {share:g} of the {len(data.relations)} pairs as whole prompts leaves nothing to "
            f"train on: they belong to {len(prompts)} prompt{'s' * (len(prompts) > 1)}. Give pairs of more prompts, or "
            "set held_out to 0."
        )
    parts = (tuple(pair for pair in data.relations if (pair.prompt_id in held) is wanted) for wanted in (False, True))
    trained, measured = (replace(data, relations=part) for part in parts)
    return trained, measured
