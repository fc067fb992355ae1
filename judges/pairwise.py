"""Pairwise judges compare two responses per game, in both orders by default, because judges favour one position
(arXiv:2306.05685, section 3.3); win rates over the decided games become verdicts."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Literal

from pydantic import Field, PositiveInt

from judges.contract import Judge
from judges.remember import key_of, once
from judges.types import Group, JudgeError, Prompt, Response, Verdict, describe, finite

Schedule = Literal["all", "sampled", "tournament"]
Couple = tuple[int, int]
"""Two indices in a group, the smaller first."""


def round_robin(n: int) -> list[Couple]:
    """All pairs of n responses: n (n − 1) / 2 games."""
    return list(combinations(range(n), 2))


def circle(order: Sequence[int], opponents: int) -> list[Couple]:
    """Each response plays the next ⌈opponents / 2⌉ in the circle, so also as many before it; no pair plays twice."""
    n, reach = len(order), -(-opponents // 2)
    met = {_couple(order[p], order[(p + d) % n]) for p in range(n) for d in range(1, min(reach, n - 1) + 1)}
    return sorted(couple for couple in met if couple[0] != couple[1])


def swiss_round(order: Sequence[int], points: Sequence[float], met: set[Couple]) -> list[Couple]:
    """Go down the standings (ties in the given order) and pair each with the nearest opponent it has not played."""
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
    """Maximum number of games in a group of n, not counting the second order."""
    if schedule == "all":
        return len(round_robin(n))
    return len(circle(range(n), opponents)) if schedule == "sampled" else min(opponents * (n // 2), n * (n - 1) // 2)


def drawn_order(texts: Sequence[str]) -> list[int]:
    """Indices in an order that depends only on the texts, so that the same group always plays the same games."""
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    return sorted(range(len(texts)), key=lambda place: (digests[place], place))


def _couple(a: int, b: int) -> Couple:
    return (a, b) if a < b else (b, a)


@dataclass(frozen=True, slots=True)
class Preference:
    """A preference by `of`, `abstain` or `error`: `probability` that the first response is better (0.5: a tie)."""

    kind: Literal["score", "abstain", "error"]
    probability: float | None
    why: str = ""

    def __post_init__(self) -> None:
        if self.kind == "score":
            probability = finite(self.probability, "a preference")
            if not 0.0 <= probability <= 1.0:
                raise ValueError(f"a preference must lie between 0 and 1, got {self.probability!r}")
            object.__setattr__(self, "probability", probability)
        elif self.kind not in ("abstain", "error"):
            raise ValueError(f"a preference's kind must be score, abstain or error, not {self.kind!r}")
        elif self.probability is not None:
            raise ValueError(f"a preference of kind {self.kind} must have no probability, got {self.probability!r}")

    @classmethod
    def of(cls, probability: float, why: str = "") -> "Preference":
        """The first is better with this probability; True counts as 1.0. ValueError unless it lies in [0, 1]."""
        return cls("score", probability, why)

    @classmethod
    def abstain(cls, why: str) -> "Preference":
        """The judge cannot tell: the game stays undecided (a tie is a decision: `Preference.of(0.5)`)."""
        return cls("abstain", None, why)

    @classmethod
    def error(cls, why: str) -> "Preference":
        """The judging failed: the game does not count."""
        return cls("error", None, why)

    @property
    def swapped(self) -> "Preference":
        """The same preference, seen from the second response."""
        return self if self.probability is None else Preference(self.kind, 1.0 - self.probability, self.why)


@dataclass(frozen=True, slots=True)
class Game:
    """Two responses to one prompt, in the order in which the judge reads them."""

    prompt: Prompt
    first: Response
    second: Response

    @property
    def of_answers(self) -> "Game":
        """The same two without their thoughts."""
        return Game(self.prompt, self.first.alone, self.second.alone)

    @property
    def swapped(self) -> "Game":
        """The same two in the other order."""
        return Game(self.prompt, self.second, self.first)


class PairwiseJudge(Judge):
    """A judge that compares two responses: implement `compare`, or `compare_all` to see many games at once.

    A response's score is its win rate over its decided games; it has no game against itself. `parts` holds `games` (how
    many were decided), `order_consistent` (share of those judged in both orders whose orders agreed) and, for every
    decided opponent, `beats <its index in the group>`: the probability of being better than it.
    """

    games: Schedule = "all"
    """`all`: every response plays every other; `sampled`: each plays some others; `tournament`: Swiss rounds, in which
    responses with similar results meet."""

    opponents: PositiveInt = 4
    """With `sampled`, the minimum number of opponents of each response; with `tournament`, the number of rounds."""

    both_orders: bool = True
    """Play every game in both orders; orders that contradict each other are a tie. False halves the work but keeps the
    judge's position bias."""

    least_decided: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of a response's games that must be decided; below it the verdict is an abstain (an error if all undecided
    games failed)."""

    @property
    def compares(self) -> bool:
        return True

    def compare(self, prompt: Prompt, first: Response, second: Response) -> Preference | float | bool:
        """Is the first response better? A plain number is the probability that it is; True is 1.0, a tie is 0.5."""
        raise NotImplementedError("a pairwise judge must implement compare or compare_all")

    def compare_all(self, games: Sequence[Game]) -> list[Preference]:
        """One preference per game, in order. By default it calls `compare`; an exception fails only that game."""
        compared = self._remembered if self.costly else self._compared
        return [compared(game) for game in games]

    def _remembered(self, game: Game) -> Preference:
        key = key_of(self, game.prompt, [game.first, game.second])
        return Preference(**once(self, key, lambda: asdict(self._compared(game))))

    def _compared(self, game: Game) -> Preference:
        self.context.on_item(f"responses {game.first.id} and {game.second.id}")
        try:
            found = self.compare(game.prompt, game.first, game.second)
            return found if type(found) is Preference else Preference.of(finite(found, "what compare() returns"))
        except JudgeError:
            raise  # the data or the arguments are at fault, not this game
        except (Exception, SystemExit) as error:  # noqa: BLE001  the boundary to foreign code: a failure is no preference
            return Preference.error(describe(error, near=type(self).compare.__code__.co_filename))
        finally:
            self.context.on_item("")

    def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        tables = [_Table(group, drawn_order([r.text for r in group.responses])) for group in groups]
        for number in range(self.opponents if self.games == "tournament" else 1):
            self._play([(table, couple) for table in tables for couple in self._couples(table, number)])
        return [[table.verdict(i, self.least_decided) for i in range(len(table.group.responses))] for table in tables]

    def calls_at_most(self, responses: int) -> int:
        """Maximum number of comparisons for a group of `responses`."""
        return games_at_most(self.games, responses, self.opponents) * (2 if self.both_orders else 1)

    def _couples(self, table: "_Table", number: int) -> list[Couple]:
        if self.games == "all":
            return round_robin(len(table.order))
        if self.games == "sampled":
            return circle(table.order, self.opponents)
        return swiss_round(table.order, table.points(), set(table.results))

    def _play(self, couples: "list[tuple[_Table, Couple]]") -> None:
        """Judge a round in one call and enter its results, apart from games that are clear without a judge."""
        asked = [(table, couple) for table, couple in couples if not table.enter_if_clear(couple)]
        games = [table.game(couple) for table, couple in asked]
        orders = [order for game in games for order in ((game, game.swapped) if self.both_orders else (game,))]
        found = self._checked(orders, self.compare_all(orders)) if orders else []
        each = 2 if self.both_orders else 1
        for number, (table, couple) in enumerate(asked):
            table.enter(couple, found[each * number : each * (number + 1)])

    def _checked(self, games: Sequence[Game], found: object) -> list[Preference]:
        """JudgeError unless there is one Preference per game."""
        shown = repr(found)[:80]
        if isinstance(found, (list, tuple)):
            if len(found) == len(games) and all(type(item) is Preference for item in found):
                return list(found)
            shown = f"{len(found)} items"
        raise JudgeError(
            f"Judge {type(self).__name__}: compare_all returned {shown} for {len(games)} games. It must return a list "
            f"with one Preference per game, in the same order. For a plain probability, use Preference.of(p)."
        )


@dataclass(slots=True)
class _Table:
    """The games of one group: results as seen from the earlier response, and whether both orders agreed."""

    group: Group
    order: list[int]
    results: dict[Couple, Preference] = field(default_factory=dict)
    agreed: dict[Couple, bool] = field(default_factory=dict)

    def game(self, couple: Couple) -> Game:
        first, second = (self.group.responses[place] for place in couple)
        return Game(self.group.prompt, first, second)

    def enter_if_clear(self, couple: Couple) -> bool:
        """Equal texts tie, and a thought that is not closed loses against an answer."""
        first, second = self.game(couple).first, self.game(couple).second
        answers = [response.answer is not None for response in (first, second)]
        if (first.text, first.finish_reason) == (second.text, second.finish_reason):
            self.results[couple] = Preference.of(0.5, "equal texts")
        elif not all(answers):
            self.results[couple] = Preference.of((1 + answers[0] - answers[1]) / 2, "a thought is not closed")
        return couple in self.results

    def enter(self, couple: Couple, found: Sequence[Preference]) -> None:
        """Enter the preference as played, and that of the other order if it was played too."""
        if len(found) == 1:
            self.results[couple] = found[0]
            return
        self.results[couple], agreed = both(found[0], found[1].swapped)
        if agreed is not None:
            self.agreed[couple] = agreed

    def points(self) -> list[float]:
        """Points of each response so far; an undecided game counts half."""
        points = [0.0] * len(self.order)
        for (a, b), result in self.results.items():
            won = 0.5 if result.probability is None else result.probability
            points[a] += won
            points[b] += 1.0 - won
        return points

    def verdict(self, place: int, least_decided: float) -> Verdict:
        played = {couple: game for couple, game in self.results.items() if place in couple}
        seen = {a + b - place: (game if a == place else game.swapped) for (a, b), game in played.items()}
        beats = {rival: game.probability for rival, game in seen.items() if game.probability is not None}
        open_games = [game for game in seen.values() if game.probability is None]
        if not seen:
            return Verdict.abstain("no other response to compare with")
        if len(beats) < max(1, least_decided * len(seen)):
            why = f"{len(beats)} of {len(seen)} games were decided: {open_games[0].why}"
            failed = all(game.kind == "error" for game in open_games)
            return Verdict.error(why) if failed else Verdict.abstain(why)
        won = sum(beats.values())
        undecided = f", {len(open_games)} more undecided" if open_games else ""
        parts = {"games": float(len(beats))}
        if agreed := [agreed for couple, agreed in self.agreed.items() if place in couple]:
            parts["order_consistent"] = sum(agreed) / len(agreed)
        parts |= {f"beats {rival}": probability for rival, probability in sorted(beats.items())}
        why = f"won {won:g} of {len(beats)} games{undecided}"
        well_formed = None if self.group.responses[place].answer is not None else False
        return Verdict.of(won / len(beats), f"{won:g}/{len(beats)}", why, well_formed, parts)


def both(one: Preference, other: Preference) -> tuple[Preference, bool | None]:
    """Both orders of a game, seen from the same response: their mean, a tie if they contradict, and whether they agree.
    If one order is undecided, so is the game (the other alone has a position bias), and agreement is None."""
    for preference in sorted((one, other), key=lambda preference: preference.kind != "error"):
        if preference.kind != "score":
            return preference, None
    assert one.probability is not None
    assert other.probability is not None
    sides = [(p > 0.5) - (p < 0.5) for p in (one.probability, other.probability)]
    if sides[0] * sides[1] < 0:
        return Preference.of(0.5, "the two orders contradict each other"), False
    return Preference.of((one.probability + other.probability) / 2, one.why or other.why), sides[0] == sides[1]
