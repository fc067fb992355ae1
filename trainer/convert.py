"""Convert preference data to the kind of relation that the loss is defined on, or raise TrainerError."""

from collections.abc import Iterator
from dataclasses import replace

from trainer.data import NAMES, Pair, PreferenceData, PromptGroup, Ranked, Relation, Response, Single
from trainer.errors import TrainerError
from trainer.losses.method import Kind


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


def with_mismatched(data: PreferenceData) -> PreferenceData:
    """Give every single response the next prompt's response as its mismatched partner (KTO's reference point)."""
    singles = [relation for relation in data.relations if isinstance(relation, Single)]
    texts = {group.id: {response.id: response for response in group.responses} for group in data.groups}
    added: dict[str, dict[str, Response]] = {}
    paired = []
    for at, single in enumerate(singles):
        other = next((s for s in singles[at + 1 :] + singles[:at] if s.prompt_id != single.prompt_id), None)
        if other is None:
            raise TrainerError(
                "The loss compares responses with those of other prompts, but all responses belong to one prompt. "
                "Train on more prompts."
            )
        id = f"{other.prompt_id}/{other.response_id}"
        ids = texts[other.prompt_id][other.response_id].token_ids
        added.setdefault(single.prompt_id, {})[id] = Response(id, ids)
        paired.append(replace(single, mismatched_id=id))
    groups = tuple(
        PromptGroup(group.id, group.token_ids, (*group.responses, *added.get(group.id, {}).values()))
        for group in data.groups
    )
    return PreferenceData(groups, tuple(paired))
