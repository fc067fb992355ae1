"""Preference probabilities and win rates among the scored responses to a prompt. Without a pairwise judge that has
played the games, the higher score wins with certainty, and equal scores are a tie."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from loop.pairing.records import Judged


def preference(one: Judged, other: Judged) -> float | None:
    """Probability that `one` is better; None if their game was not played or not decided."""
    if one.beats is not None:
        return one.beats.get(other.response_id)
    if one.score is None or other.score is None:
        return None
    return 1.0 if one.score > other.score else 0.5 if one.score == other.score else 0.0


def win_rates(scored: Sequence[Judged]) -> dict[str, float]:
    """Each response's win rate over all of them, 1/2 against itself: the estimate of SPPO (arXiv:2405.00675)."""
    return {id: (won + 0.5) / (games + 1) for id, (won, games) in _games(scored).items()}


def over_others(scored: Sequence[Judged]) -> dict[str, float]:
    """Each response's win rate over the others: the reward of SPO (arXiv:2401.04056). Without a game there is none."""
    return {id: won / games for id, (won, games) in _games(scored).items() if games}


def _games(scored: Sequence[Judged]) -> dict[str, tuple[float, int]]:
    """Points won and games played, by response."""
    ids = {response.response_id for response in scored}
    ordered = sorted(response.value for response in scored if response.beats is None)
    table = {}
    for response in scored:
        if response.beats is None:
            low, high = bisect_left(ordered, response.value), bisect_right(ordered, response.value)
            table[response.response_id] = (low + (high - low - 1) / 2, len(ordered) - 1)
        else:
            played = [p for id, p in response.beats.items() if id in ids]
            table[response.response_id] = (sum(played), len(played))
    return table
