"""Rules that make groups, or single responses with a label or a score, for losses that do not train on pairs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from loop.config.pairs_section import PairsConfig
from loop.config.rule_table import RULES
from loop.pairing.records import Choice, Made, Pool
from loop.pairing.win_rates import over_others
from trainer.data import Ranked, Single

SingleRule = Callable[[Pool, PairsConfig], Choice]


def labels(pool: Pool, settings: PairsConfig) -> Choice:
    """Each response as good or bad by `correct_at`; truncation may exclude it from a side."""
    sides = {True: pool.fit("chosen", settings.drop_truncated), False: pool.fit("rejected", settings.drop_truncated)}
    fit = {good: {response.response_id for response in side} for good, side in sides.items()}
    kept = [r for r in pool.scored if r.response_id in fit[r.value >= settings.correct_at]]
    made = [Single(pool.prompt_id, r.response_id, good=r.value >= settings.correct_at) for r in kept]
    return _made(made, "truncated", pool.cut(kept))


def scored(pool: Pool, settings: PairsConfig) -> Choice:
    """Each response with its score, standardised over the prompt if so set; over the iteration it is done later."""
    fit = pool.fit("rejected", settings.drop_truncated)
    scores = [response.value for response in fit]
    if settings.standardise == "prompt":
        scores = standardised(scores)
        if not any(scores):
            return Choice("all_tied" if fit else "truncated", lost=pool.cut(fit))
    made = [Single(pool.prompt_id, r.response_id, score=score) for r, score in zip(fit, scores, strict=True)]
    return _made(made, "truncated", pool.cut(fit))


def spo(pool: Pool, settings: PairsConfig) -> Choice:
    """Each response with its win rate over the prompt's others, the reward of arXiv:2401.04056."""
    fit = pool.fit("rejected", settings.drop_truncated)
    rates = over_others(fit)
    made = [Single(pool.prompt_id, id, score=rate) for id, rate in rates.items()]
    no_games = {response.response_id: "no_games" for response in fit if response.response_id not in rates}
    return _made(made, "no_games" if fit else "truncated", pool.cut(fit) | no_games)


def ranked(pool: Pool, settings: PairsConfig) -> Choice:
    """All responses, best first; of equal scores the first alone, unless ties are kept."""
    fit = pool.fit("rejected", settings.drop_truncated)
    order = sorted(fit, key=lambda response: -response.value)
    kept = order if settings.keep_ties else [r for at, r in enumerate(order) if not at or r.value < order[at - 1].value]
    tied = {response.response_id: "tied" for response in order if response not in kept}
    if len({response.value for response in kept}) < 2:
        return Choice("all_tied" if fit else "truncated", lost=pool.cut(fit))
    ids, scores = (tuple(r.response_id for r in kept), tuple(r.value for r in kept))
    return Choice("paired", made=[Ranked(pool.prompt_id, ids, scores)], lost=pool.cut(fit) | tied)


def d2o(pool: Pool, settings: PairsConfig) -> Choice:
    """Own responses, whatever their scores, and last an answer that is known to be bad (arXiv:2403.03419)."""
    if pool.answers.negative is None:
        return Choice("no_negative")
    fit = pool.fit("rejected", settings.drop_truncated)
    ids = (*(response.response_id for response in fit), pool.answers.negative.response_id)
    return _made([Ranked(pool.prompt_id, ids)] if fit else [], "truncated", pool.cut(fit))


def negatives(pool: Pool, settings: PairsConfig) -> Choice:
    """Responses to unlearn: wrong ones, and the answer known to be bad (arXiv:2404.05868)."""
    wrong = [response for response in pool.scored if response.value < settings.correct_at]
    fit = [response for response in pool.fit("rejected", settings.drop_truncated) if response in wrong]
    lost = {response.response_id: "truncated" for response in wrong if response not in fit}
    bad = [*fit, *([pool.answers.negative] if pool.answers.negative else [])]
    made = [Single(pool.prompt_id, r.response_id, good=False) for r in bad]
    return _made(made, "truncated" if wrong else "all_correct", lost)


SINGLE_RULES: dict[str, SingleRule] = {name: globals()[name] for name, rule in RULES.items() if rule.kind != "pairs"}


def standardised(scores: Sequence[float]) -> list[float]:
    """The scores moved to mean 0 and variance 1, whatever their order; all 0 if they are equal."""
    if not scores or min(scores) == max(scores):
        return [0.0] * len(scores)
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    return [(score - mean) / deviation for score in scores]


def over_iteration(made: Mapping[str, Sequence[Made]]) -> dict[str, Sequence[Made]]:
    """Singles of all prompts, their scores standardised together."""
    singles = [one for of_prompt in made.values() for one in of_prompt if isinstance(one, Single)]
    scores = iter(standardised([one.score for one in singles if one.score is not None]))
    return {
        prompt_id: [replace(one, score=next(scores)) for one in of_prompt if isinstance(one, Single)]
        for prompt_id, of_prompt in made.items()
    }


def _made(made: Sequence[Made], otherwise: str, lost: dict[str, str]) -> Choice:
    return Choice("paired" if made else otherwise, made=made, lost=lost)
