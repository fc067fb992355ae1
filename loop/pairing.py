"""Room loop, the pair stage. In: judged responses, prompt by prompt; out: chosen/rejected pairs, one named reason for
every response and one outcome for every prompt, so that the counts add up to what came in.

Pure: it sees ids, scores and finish reasons, never text, files or weights.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from loop.config import PairsConfig

PROMPT_OUTCOMES = {
    "paired": "gave pairs",
    "all_correct": "all-correct",
    "all_wrong": "all-wrong",
    "all_tied": "all-tied",
    "within_margin": "within pairs.min_margin",
    "truncated": "one-sided once truncated responses were dropped",
    "no_score": "without any score",
    "over_cap": "over pairs.max_pairs",
}
"""What became of a prompt, and how it is said to a person."""

RESPONSE_REASONS = {
    "used": "in at least one pair",
    "unused": "fit for a pair, but other responses were taken",
    "over_cap": "its pairs were over pairs.max_pairs",
    "abstain": "the judge could not tell",
    "error": "the judge failed",
    "duplicate": "same tokens as an earlier response of the prompt",
    "truncated": "cut off at max_tokens (pairs.drop_truncated)",
    "prompt_all_correct": "no wrong response to the prompt",
    "prompt_all_wrong": "no correct response to the prompt",
    "prompt_all_tied": "all responses to the prompt have the same score",
    "prompt_within_margin": "best and worst of the prompt are within pairs.min_margin",
    "prompt_truncated": "its possible partners were truncated",
}
"""What became of a response, and how it is said to a person."""

REMEDIES = {
    "all_correct": "use harder prompts, or raise sampling.temperature or sampling.n",
    "all_wrong": (
        "raise sampling.temperature or sampling.n, use easier prompts, show prompts.few_shot examples, "
        "or lower pairs.correct_at if the judge gives partial credit"
    ),
    "all_tied": "raise sampling.temperature or sampling.n, or use a judge with finer scores",
    "within_margin": "lower pairs.min_margin",
    "truncated": "raise sampling.max_tokens, or set pairs.drop_truncated to none",
    "no_score": "look at the verdicts (prefloop show): the judge abstained or failed on every response",
}
"""What a person can do when prompts end so."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One response with its verdict; `token_ids_key` is equal for two responses exactly if their sampled tokens are."""

    response_id: str
    token_ids_key: bytes | str
    kind: str
    score: float | None
    finish_reason: str


@dataclass(frozen=True, slots=True)
class MadePair:
    """`chosen_id` is preferred to `rejected_id`, by `rule`."""

    prompt_id: str
    chosen_id: str
    rejected_id: str
    rule: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Pairing:
    """All pairs of an iteration; how many responses ended for which reason, how many prompts with which outcome."""

    iteration: int
    pairs: list[MadePair]
    responses: dict[str, int]
    prompts: dict[str, int]


class PromptPairs(NamedTuple):
    """One prompt's pairs, the reason of each of its responses, and its outcome."""

    pairs: list[MadePair]
    reasons: dict[str, str]
    outcome: str


class _Choice(NamedTuple):
    """What a rule made of one prompt's scored, distinct responses; `cut` holds the ids it dropped as truncated."""

    outcome: str
    couples: list[tuple[Judged, Judged]]
    cut: set[str]


def pair_all(groups: Iterable[tuple[str, Sequence[Judged]]], settings: PairsConfig, iteration: int) -> Pairing:
    """Pair prompt after prompt as they come in, then hold `settings.max_pairs`; only pairs and counts are kept."""
    made: dict[str, list[MadePair]] = {}
    seen: set[str] = set()
    responses: Counter[str] = Counter()
    prompts: Counter[str] = Counter()
    for prompt_id, judged in groups:
        if prompt_id in seen:
            raise ValueError(f"prompt {prompt_id} came to pairing twice in iteration {iteration}")
        seen.add(prompt_id)
        one = build_pairs(prompt_id, judged, settings)
        responses.update(one.reasons.values())
        prompts[one.outcome] += 1
        if one.pairs:
            made[prompt_id] = one.pairs
    pairs = _hold_cap(made, settings.max_pairs, iteration, responses, prompts)
    return Pairing(iteration, pairs, _ordered(responses, RESPONSE_REASONS), _ordered(prompts, PROMPT_OUTCOMES))


def build_pairs(prompt_id: str, judged: Sequence[Judged], settings: PairsConfig) -> PromptPairs:
    """One prompt's pairs; `judged` is in sampling order, which decides ties and the order of the pairs."""
    reasons = _unfit(prompt_id, judged)
    scored = [response for response in judged if response.response_id not in reasons]
    choose = _correct_vs_wrong if settings.rule == "correct_vs_wrong" else _best_vs_worst
    choice = choose(scored, settings) if scored else _Choice("no_score", [], set())
    used = {response.response_id for couple in choice.couples for response in couple}
    for response in scored:
        reasons[response.response_id] = _reason(response.response_id, choice, used)
    pairs = [
        MadePair(prompt_id, chosen.response_id, rejected.response_id, settings.rule)
        for chosen, rejected in choice.couples
    ]
    return PromptPairs(pairs, reasons, choice.outcome)


def why_no_pairs(pairing: Pairing) -> str:
    """One paragraph for the person whose iteration made no pair: what happened to the prompts, and what to change."""
    assert not pairing.pairs
    total = sum(pairing.prompts.values())
    if not total:
        return f"no pairs in iteration {pairing.iteration}: no prompt came in"
    outcomes = sorted(pairing.prompts, key=lambda outcome: -pairing.prompts[outcome])
    counts = [f"{PROMPT_OUTCOMES[outcome]} ({pairing.prompts[outcome]} of {total})" for outcome in outcomes]
    if len(outcomes) == 1:
        happened = f"every prompt was {counts[0]}"
    else:
        happened = f"the prompts were {', '.join(counts[:-1])} and {counts[-1]}"
    remedies = "; ".join(REMEDIES[outcome] for outcome in outcomes if outcome in REMEDIES)
    return f"no pairs in iteration {pairing.iteration}: {happened}{_lost_responses(pairing)}; {remedies}"


def _lost_responses(pairing: Pairing) -> str:
    """The responses that were lost before any rule saw them, as a clause; empty if there are none."""
    total = sum(pairing.responses.values())
    words = {"error": "judge errors", "abstain": "abstentions of the judge", "duplicate": "duplicates"}
    lost = [
        f"{pairing.responses[reason]} of {total} responses to {said}"
        for reason, said in words.items()
        if reason in pairing.responses
    ]
    return f"; lost before pairing: {', '.join(lost)}" if lost else ""


def _unfit(prompt_id: str, judged: Sequence[Judged]) -> dict[str, str]:
    """Reasons of the responses that no rule may see. Of equal token sequences the first that has a score stays."""
    if len({response.response_id for response in judged}) < len(judged):
        raise ValueError(f"prompt {prompt_id}: two responses have the same id")
    reasons: dict[str, str] = {}
    known: set[bytes | str] = set()
    for response in judged:
        if response.kind in ("abstain", "error"):
            reasons[response.response_id] = response.kind
        elif response.kind != "score" or response.score is None or not math.isfinite(response.score):
            raise ValueError(f"response {response.response_id}: {response.kind} with score {response.score}")
        elif response.token_ids_key in known:
            reasons[response.response_id] = "duplicate"
        else:
            known.add(response.token_ids_key)
    return reasons


def _reason(response_id: str, choice: _Choice, used: set[str]) -> str:
    if response_id in choice.cut:
        return "truncated"
    if choice.outcome != "paired":
        return f"prompt_{choice.outcome}"
    return "used" if response_id in used else "unused"


def _correct_vs_wrong(scored: list[Judged], settings: PairsConfig) -> _Choice:
    """K pairs by walking both lists in parallel, each wrapping around on its own (section 2 of arXiv:2404.19733).

    As published, a pair comes again where K exceeds the least common multiple of both lengths.
    """
    correct = [response for response in scored if _score(response) >= settings.correct_at]
    wrong = [response for response in scored if _score(response) < settings.correct_at]
    winners = _fit(correct, settings.drop_truncated != "none")
    losers = _fit(wrong, settings.drop_truncated == "both")
    cut = _ids(scored) - _ids(winners) - _ids(losers)
    if not wrong or not correct:
        return _Choice("all_correct" if correct else "all_wrong", [], cut)
    if not winners or not losers:
        return _Choice("truncated", [], cut)
    walk = range(settings.per_prompt)
    return _Choice("paired", [(winners[k % len(winners)], losers[k % len(losers)]) for k in walk], cut)


def _best_vs_worst(scored: list[Judged], settings: PairsConfig) -> _Choice:
    """The highest and the lowest score, the earlier response where several have it."""
    winners = _fit(scored, settings.drop_truncated != "none")
    losers = _fit(scored, settings.drop_truncated == "both")
    ceiling = max((_score(response) for response in winners), default=-math.inf)
    outbidding = [response for response in scored if _score(response) > ceiling]  # would be chosen, but are truncated
    cut = (_ids(scored) - _ids(losers)) | _ids(outbidding)
    if _gap(scored, scored) <= settings.min_margin:
        return _Choice("within_margin" if _gap(scored, scored) > 0 else "all_tied", [], cut)
    if not winners or not losers or _gap(winners, losers) <= settings.min_margin:
        return _Choice("truncated", [], cut)
    return _Choice("paired", [(max(winners, key=_score), min(losers, key=_score))], cut)


def _gap(winners: list[Judged], losers: list[Judged]) -> float:
    return max(map(_score, winners)) - min(map(_score, losers))


def _fit(responses: list[Judged], drop_truncated: bool) -> list[Judged]:
    return [response for response in responses if not (drop_truncated and response.finish_reason == "length")]


def _ids(responses: list[Judged]) -> set[str]:
    return {response.response_id for response in responses}


def _score(response: Judged) -> float:
    assert response.score is not None  # `_unfit` let only scored responses through
    return response.score


def _hold_cap(
    made: dict[str, list[MadePair]], cap: int | None, iteration: int, responses: Counter[str], prompts: Counter[str]
) -> list[MadePair]:
    """The pairs that stay; in the counts, prompts and responses that lose all their pairs move to `over_cap`."""
    quotas = _quotas({prompt_id: len(pairs) for prompt_id, pairs in made.items()}, cap, iteration)
    kept: list[MadePair] = []
    for prompt_id, pairs in made.items():
        stay = pairs[: quotas[prompt_id]]
        lost = len(_members(pairs) - _members(stay))
        responses.update(used=-lost, over_cap=lost)
        if not stay:
            prompts.update(paired=-1, over_cap=1)
        kept += stay
    return kept


def _quotas(counts: dict[str, int], cap: int | None, iteration: int) -> dict[str, int]:
    """How many pairs each prompt keeps: an equal level for all, and one more for some until `cap` is reached.

    Which prompts get one more is drawn from the iteration and their ids, so it is not always the first ones.
    """
    if cap is None or sum(counts.values()) <= cap:
        return counts
    level = 0
    while sum(min(count, level + 1) for count in counts.values()) <= cap:
        level += 1
    spare = cap - sum(min(count, level) for count in counts.values())
    drawn = sorted(
        (prompt_id for prompt_id, count in counts.items() if count > level),
        key=lambda prompt_id: sha256(f"{iteration}:{prompt_id}".encode()).digest(),
    )
    more = set(drawn[:spare])
    return {prompt_id: min(count, level) + (prompt_id in more) for prompt_id, count in counts.items()}


def _members(pairs: list[MadePair]) -> set[str]:
    return {response_id for pair in pairs for response_id in (pair.chosen_id, pair.rejected_id)}


def _ordered(counts: Counter[str], order: Iterable[str]) -> dict[str, int]:
    return {name: counts[name] for name in order if counts[name]}
