"""Room judges, who plays whom: the size of a group comes in, games (pairs of places in the group) come out. Pure.

`all` is a round robin. `sampled` places the responses in a circle, where each plays its nearest neighbours: everyone
has equally many games and no part of the group is cut off from the rest. `tournament` is played in rounds by the Swiss
system: a round pairs responses that stand alike so far, so that few games tell the best apart.
"""

import hashlib
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

Schedule = Literal["all", "sampled", "tournament"]
Couple = tuple[int, int]
"""Two places in a group, the smaller first."""


def round_robin(n: int) -> list[Couple]:
    """Every two of n responses meet once: n (n − 1) / 2 games."""
    return list(combinations(range(n), 2))


def circle(order: Sequence[int], opponents: int) -> list[Couple]:
    """Each plays the ⌈opponents / 2⌉ next in the circle, hence as many before it; no two meet twice."""
    n, reach = len(order), -(-opponents // 2)
    met = {_couple(order[p], order[(p + d) % n]) for p in range(n) for d in range(1, min(reach, n - 1) + 1)}
    return sorted(couple for couple in met if couple[0] != couple[1])


def swiss_round(order: Sequence[int], points: Sequence[float], met: set[Couple]) -> list[Couple]:
    """Walks down the standings (ties in the given order) and pairs each with the nearest it has not met yet."""
    standings = sorted(order, key=lambda place: -points[place])
    couples: list[Couple] = []
    while standings:
        place = standings.pop(0)
        rival = next((r for r in standings if _couple(place, r) not in met), None)
        if rival is not None:
            standings.remove(rival)
            couples.append(_couple(place, rival))
    return couples


def games_at_most(schedule: Schedule, n: int, opponents: int) -> int:
    """How many games a group of n plays at most, each counted once whatever the order of its players."""
    if schedule == "all":
        return len(round_robin(n))
    return len(circle(range(n), opponents)) if schedule == "sampled" else min(opponents * (n // 2), n * (n - 1) // 2)


def drawn_order(texts: Sequence[str]) -> list[int]:
    """The places in an order that only the texts decide, so that the same group always plays the same games."""
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    return sorted(range(len(texts)), key=lambda place: (digests[place], place))


def _couple(a: int, b: int) -> Couple:
    return (a, b) if a < b else (b, a)
