"""Pair one prompt: apply the rule to its judged responses and give each response a reason."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from loop.config.pairs_section import PairsConfig
from loop.config.rule_table import RULES
from loop.pairing.filters import FilterResult, sift
from loop.pairing.pair_rules import PAIR_RULES
from loop.pairing.records import Answers, Choice, Couple, Judged, Made, Pool
from loop.pairing.single_rules import SINGLE_RULES
from loop.pairing.win_rates import preference, win_rates
from trainer.data import Pair

NO_ANSWERS = Answers()


class PromptResult(NamedTuple):
    """Relations of one prompt, the reason of each response, the outcome, and the share of correct responses."""

    relations: Sequence[Made]
    reasons: dict[str, str]
    outcome: str
    solve_rate: float = 0.0


def build_prompt(
    prompt_id: str, judged: Sequence[Judged], settings: PairsConfig, *, answers: Answers = NO_ANSWERS, seed: str = ""
) -> PromptResult:
    """One prompt's relations; `judged` is in sampling order, which decides ties and the order of the relations."""
    reasons = _unfit(prompt_id, judged)
    answers = _in_play(judged, reasons, settings, answers)
    _note_equal(judged, reasons, answers)
    scored = [response for response in judged if response.response_id not in reasons]
    if not scored:
        return PromptResult([], reasons, "equals_gold" if "equals_gold" in reasons.values() else "no_score")
    solved = sum(response.value >= settings.correct_at for response in scored) / len(scored)
    pool = Pool(prompt_id, _weighed(scored, answers, settings), answers, seed)
    if settings.rule in PAIR_RULES:
        choice, sifted = _pairs(pool, settings)
    else:
        choice, sifted = SINGLE_RULES[settings.rule](pool, settings), FilterResult([], [])
    reasons |= _reasons(scored, choice, sifted)
    return PromptResult(choice.made, reasons, choice.outcome, solved)


def _unfit(prompt_id: str, judged: Sequence[Judged]) -> dict[str, str]:
    """Reasons of the responses that no rule may see. Of equal token sequences the first with a score stays."""
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


def _in_play(judged: Sequence[Judged], reasons: dict[str, str], settings: PairsConfig, answers: Answers) -> Answers:
    """The answers that take part: a gold one where the rule needs it or no response is correct, else a bad one."""
    solved = any(r.value >= settings.correct_at for r in judged if r.response_id not in reasons)
    if RULES[settings.rule].gold or (settings.gold_fallback and not solved):
        return Answers(gold=answers.gold)
    return Answers(negative=answers.negative) if RULES[settings.rule].negative else NO_ANSWERS


def _note_equal(judged: Sequence[Judged], reasons: dict[str, str], answers: Answers) -> None:
    """Exclude responses that equal an answer that takes part: they cannot be its partner."""
    keys = {answer.token_ids_key for answer in (answers.gold, answers.negative) if answer}
    for response in judged:
        if response.token_ids_key in keys:
            reasons.setdefault(response.response_id, "equals_gold")


def _weighed(scored: list[Judged], answers: Answers, settings: PairsConfig) -> list[Judged]:
    """The responses as the rule sees them: scores less the length penalty, plus a gold answer that stands in; it pays
    no penalty, so it stays the best."""
    if settings.length_penalty:
        scored = [replace(r, score=r.value - settings.length_penalty * r.length) for r in scored]
    gold = answers.gold if RULES[settings.rule].falls_back else None
    return [*scored, gold] if gold else scored


def _pairs(pool: Pool, settings: PairsConfig) -> tuple[Choice, FilterResult]:
    """The rule's pairs that pass all filters; if none does, the first one's filter is the outcome."""
    choice = PAIR_RULES[settings.rule](pool, settings)
    sifted = sift(choice.couples, settings)
    kept = sifted.kept[: settings.per_prompt]
    outcome = choice.outcome
    if choice.couples and not kept:
        outcome = {"tied": "all_tied"}.get(sifted.dropped[0][1], sifted.dropped[0][1])
    rates = win_rates([r for r in pool.scored if r.response_id not in pool.answers.ids]) if kept else {}
    made = [_pair(pool.prompt_id, couple, rates, pool.answers.ids) for couple in kept]
    return replace(choice, outcome=outcome, made=made), sifted


def _pair(prompt_id: str, couple: Couple, rates: dict[str, float], answers: frozenset[str]) -> Pair:
    """The pair with everything a loss may need; an answer that no judge saw has no games."""
    chosen, rejected = couple
    margin = None if chosen.score is None or rejected.score is None else chosen.score - rejected.score
    return Pair(
        prompt_id,
        chosen.response_id,
        rejected.response_id,
        score_w=chosen.score,
        score_l=rejected.score,
        win_w=rates.get(chosen.response_id),
        win_l=rates.get(rejected.response_id),
        probability=None if chosen.response_id in answers else preference(chosen, rejected),
        margin=margin,
        chosen_is_reference=chosen.from_reference,
    )


def _reasons(scored: Sequence[Judged], choice: Choice, sifted: FilterResult) -> dict[str, str]:
    """Why each response that the rule saw was used or not."""
    used = {id for one in choice.made for id in one.responses}
    struck = {r.response_id: reason for couple, reason in reversed(sifted.dropped) for r in couple}
    otherwise = "unused" if choice.outcome == "paired" else f"prompt_{choice.outcome}"
    return {
        r.response_id: "used"
        if r.response_id in used
        else choice.lost.get(r.response_id) or struck.get(r.response_id) or otherwise
        for r in scored
    }
