"""Rules that make pairs: couples (chosen, rejected) from a prompt's pool, most wanted first. Filters are applied
afterwards (filters.py)."""

import math
from collections.abc import Callable, Sequence
from itertools import product

from loop.config.pairs_section import PairsConfig
from loop.config.rule_table import RULES
from loop.pairing.records import Choice, Couple, Judged, Pool
from loop.pairing.win_rates import preference, win_rates


def accept(scores: Sequence[float], *, keep: int, beta: float, uniform: Callable[[], float]) -> list[int]:
    """Indexes of accepted responses, in the order of acceptance: Algorithm 1 of arXiv:2309.06657.

    A pass accepts with probability `exp((score - best of the pass) / beta)`; passes repeat over the rest until
    `keep` are accepted or nothing is left. `uniform` draws from [0, 1).
    """
    accepted: list[int] = []
    left = list(range(len(scores)))
    while left:
        best = max(scores[index] for index in left)
        passed = []
        for index in left:
            if uniform() < math.exp((scores[index] - best) / beta):
                passed.append(index)
                if len(accepted) + len(passed) == keep:
                    return accepted + passed
        accepted += passed
        left = [index for index in left if index not in passed]
    return accepted


def first_round(players: Sequence[Judged]) -> list[Couple]:
    """Neighbours play; an odd player is left out, and a tie makes no pair."""
    return [couple for one, other in zip(players[::2], players[1::2], strict=False) if (couple := ordered(one, other))]


def tournament(players: Sequence[Judged]) -> list[Couple]:
    """Winners meet until one is left: one game fewer than there are players. In a tie the first wins."""
    couples = []
    while len(players) > 1:
        games = list(zip(players[::2], players[1::2], strict=False))
        results = [ordered(one, other) for one, other in games]
        couples += [couple for couple in results if couple]
        winners = [couple[0] if couple else one for couple, (one, _) in zip(results, games, strict=True)]
        players = [*winners, *players[2 * len(games) :]]
    return couples


def ordered(one: Judged, other: Judged) -> Couple | None:
    """The better one first; None for a tie, or if the judge did not decide."""
    probability = preference(one, other)
    if probability is None or probability == 0.5:
        return None
    return (one, other) if probability > 0.5 else (other, one)


PairRule = Callable[[Pool, PairsConfig], Choice]


def correct_vs_wrong(pool: Pool, settings: PairsConfig) -> Choice:
    """K pairs by walking both lists in parallel, each wrapping around on its own (section 2 of arXiv:2404.19733). As
    published, a pair comes again where K exceeds the least common multiple of both lengths."""
    correct = {response.response_id for response in pool.scored if response.value >= settings.correct_at}
    winners = [r for r in pool.fit("chosen", settings.drop_truncated) if r.response_id in correct]
    losers = [r for r in pool.fit("rejected", settings.drop_truncated) if r.response_id not in correct]
    lost = pool.cut(winners + losers)
    if len(correct) in (0, len(pool.scored)):
        return Choice("all_correct" if correct else "all_wrong", lost=lost)
    if not winners or not losers:
        return Choice("truncated", lost=lost)
    if settings.lengths == "nearest":
        couples = sorted(product(winners, losers), key=_length_gap)[: settings.per_prompt]
    else:
        couples = [(winners[k % len(winners)], losers[k % len(losers)]) for k in range(settings.per_prompt)]
    return Choice("paired", couples, lost=lost)


def best_vs_worst(pool: Pool, settings: PairsConfig) -> Choice:
    """The highest and the lowest score; of equal ones the earliest, or those nearest in length."""
    winners, losers = (pool.fit(side, settings.drop_truncated) for side in ("chosen", "rejected"))
    lost = _cut_outbidding(pool, winners, losers)
    if (outcome := _too_close(pool, winners, losers, settings.min_margin)) != "paired":
        return Choice(outcome, lost=lost)
    top, bottom = max(map(_value, winners)), min(map(_value, losers))
    if settings.lengths == "any":
        couple = next(r for r in winners if r.value == top), next(r for r in losers if r.value == bottom)
    else:
        ends = [r for r in winners if r.value == top], [r for r in losers if r.value == bottom]
        couple = min(product(*ends), key=_length_gap)
    return Choice("paired", [couple], lost=lost)


def best_vs_random(pool: Pool, settings: PairsConfig) -> Choice:
    """The highest score and one drawn from those that are lower by more than the margin."""
    winners, losers = (pool.fit(side, settings.drop_truncated) for side in ("chosen", "rejected"))
    lost = _cut_outbidding(pool, winners, losers)
    if (outcome := _too_close(pool, winners, losers, settings.min_margin)) != "paired":
        return Choice(outcome, lost=lost)
    best = max(winners, key=_value)
    worse = [response for response in losers if best.value - response.value > settings.min_margin]
    return Choice("paired", [(best, pool.draw().choice(worse))], lost=lost)


def all_pairs(pool: Pool, settings: PairsConfig) -> Choice:
    """Every better against every worse response, the widest margins first."""
    couples = [(one, other) for one, other in product(pool.scored, pool.scored) if one.value > other.value]
    return _some(sorted(couples, key=lambda couple: couple[1].value - couple[0].value))


def top_k_vs_bottom_k(pool: Pool, settings: PairsConfig) -> Choice:
    """Each of the k best against each of the k worst, the best and the worst first."""
    winners, losers = (pool.fit(side, settings.drop_truncated) for side in ("chosen", "rejected"))
    k = min(settings.top_k, len(pool.scored) // 2)
    best = sorted(winners, key=_value, reverse=True)[:k]
    worst = sorted(losers, key=_value)[:k]
    return _some([(one, other) for one, other in product(best, worst) if one.value > other.value])


def rso(pool: Pool, settings: PairsConfig) -> Choice:
    """Responses as the optimal policy would sample them, ranked against each other (arXiv:2309.06657)."""
    draw, candidates = pool.draw(), pool.fit("rejected", settings.drop_truncated)
    scores = [response.value for response in candidates]
    accepted = accept(scores, keep=settings.rso_keep, beta=settings.rso_beta, uniform=draw.random)
    players = [candidates[index] for index in accepted]
    draw.shuffle(players)
    rank = first_round if settings.rso_ranking == "first_round" else tournament
    lost = {r.response_id: "not_accepted" for at, r in enumerate(candidates) if at not in accepted}
    choice = _some(rank(players))
    return Choice(choice.outcome, choice.couples, lost=lost | pool.cut(candidates))


def sppo(pool: Pool, settings: PairsConfig) -> Choice:
    """The highest and the lowest win rate: the two responses per prompt that arXiv:2405.00675 trains on."""
    winners, losers = (pool.fit(side, settings.drop_truncated) for side in ("chosen", "rejected"))
    if not winners or not losers:
        return Choice("truncated", lost=pool.cut(losers))
    rates = win_rates(pool.scored)
    best = max(winners, key=lambda response: rates[response.response_id])
    worst = min(losers, key=lambda response: rates[response.response_id])
    return _some(_falling([(best, worst)], rates))


def sppo_all(pool: Pool, settings: PairsConfig) -> Choice:
    """All responses in pairs: the highest win rate and the lowest, the second highest and the second lowest, ..."""
    rates = win_rates(pool.scored)
    fit = pool.fit("rejected", settings.drop_truncated)
    ranked = sorted(fit, key=lambda response: -rates[response.response_id])
    half = len(ranked) // 2
    return _some(_falling(list(zip(ranked[:half], ranked[: -half - 1 : -1], strict=True)) if half else [], rates))


def oaif(pool: Pool, settings: PairsConfig) -> Choice:
    """The first two responses in the judge's order (arXiv:2402.04792)."""
    first_two = pool.fit("rejected", settings.drop_truncated)[:2]
    couple = ordered(*first_two) if len(first_two) == 2 else None
    return _some([couple] if couple else [])


def xpo(pool: Pool, settings: PairsConfig) -> Choice:
    """The policy's first response and the reference's first, the second and the second, ..., each pair in the judge's
    order (arXiv:2405.21046 has one of each)."""
    fit = pool.fit("rejected", settings.drop_truncated)
    own = [response for response in fit if not response.from_reference]
    others = [response for response in fit if response.from_reference]
    couples = [ordered(one, other) for one, other in zip(own, others, strict=False)]
    choice = _some([couple for couple in couples if couple])
    return Choice(choice.outcome, choice.couples, lost=pool.cut(fit))


def dno_prct(pool: Pool, settings: PairsConfig) -> Choice:
    """Gold answer and good own responses against own ones that score much lower: DNO-Prct, arXiv:2404.03715."""
    if pool.answers.gold is None:
        return Choice("no_gold")
    gold, own = pool.answers.gold, pool.fit("chosen", settings.drop_truncated)
    good = [response for response in own if response.value >= settings.correct_at]
    wide = [(gold, r) for r in pool.scored if gold.value - r.value >= settings.gold_margin]
    narrow = [(one, r) for one in good for r in pool.scored if one.value - r.value >= settings.own_margin]
    couples = wide + narrow
    return Choice("paired", couples) if couples else Choice("within_margin")


def spin(pool: Pool, settings: PairsConfig) -> Choice:
    """The gold answer against own responses, whatever their scores (arXiv:2401.01335)."""
    if pool.answers.gold is None:
        return Choice("no_gold")
    return Choice("paired", [(pool.answers.gold, response) for response in pool.scored])


PAIR_RULES: dict[str, PairRule] = {name: globals()[name] for name, rule in RULES.items() if rule.kind == "pairs"}


def _some(couples: list[Couple]) -> Choice:
    """Couples, or the outcome if no response is better than another."""
    return Choice("paired", couples) if couples else Choice("all_tied")


def _falling(couples: list[Couple], rates: dict[str, float]) -> list[Couple]:
    return [(one, other) for one, other in couples if rates[one.response_id] > rates[other.response_id]]


def _too_close(pool: Pool, winners: Sequence[Judged], losers: Sequence[Judged], margin: float) -> str:
    """`paired` if best and worst make a pair, else the outcome."""
    gap = _gap(pool.scored, pool.scored)
    if gap <= margin:
        return "within_margin" if gap > 0 else "all_tied"
    return "paired" if winners and losers and _gap(winners, losers) > margin else "truncated"


def _gap(winners: Sequence[Judged], losers: Sequence[Judged]) -> float:
    return max(map(_value, winners)) - min(map(_value, losers))


def _cut_outbidding(pool: Pool, winners: Sequence[Judged], losers: Sequence[Judged]) -> dict[str, str]:
    """Responses that truncation excludes from a rule by score: also those above the best winner."""
    ceiling = max(map(_value, winners), default=-math.inf)
    return pool.cut(losers) | {r.response_id: "truncated" for r in pool.scored if r.value > ceiling}


def _value(response: Judged) -> float:
    return response.value


def _length_gap(couple: Couple) -> int:
    return abs(couple[0].length - couple[1].length)
