"""Pairwise judges: win rates by hand, both orders, every schedule, and no way for a failed game to become a win."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges import (
    Example,
    Game,
    Group,
    JudgeError,
    PairwiseJudge,
    Preference,
    Prompt,
    Response,
    Verdict,
    build_judge,
    judge_groups,
    self_test,
)
from judges.pairwise import both, circle, drawn_order, games_at_most, round_robin, swiss_round


def group(*texts: str, prompt_id: str = "p") -> Group:
    responses = tuple(Response(f"{prompt_id}/{index}", text, "stop") for index, text in enumerate(texts))
    return Group(Prompt(prompt_id, ({"role": "user", "content": "?"},), None, {}), responses)


def comparing(act: Callable[[str, str], Any], **args: Any) -> PairwiseJudge:
    class Comparing(PairwiseJudge):
        def compare(self, prompt: Prompt, first: Response, second: Response) -> Preference | float | bool:
            return act(first.text, second.text)  # type: ignore[no-any-return]

    return Comparing(**args)


def longer(first: str, second: str) -> float:
    return 0.5 if len(first) == len(second) else float(len(first) > len(second))


def verdicts(judge: PairwiseJudge, *texts: str) -> list[Verdict]:
    return judge_groups(judge, [group(*texts)])[0]


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, "1", None])
def test_a_preference_is_a_probability(value: Any) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1|finite number"):
        Preference.of(value)
    with pytest.raises(ValueError, match="must have no probability"):
        Preference("abstain", 0.5)


def test_win_rates_and_the_matrix_of_a_group_by_hand() -> None:
    a, b, c = verdicts(comparing(longer), "xxx", "x", "yyy")
    assert (a.score, b.score, c.score) == (0.75, 0.0, 0.75)  # (1 + ½)/2, 0/2, (½ + 1)/2
    assert a.parts == {"games": 2.0, "order_consistent": 1.0, "beats 1": 1.0, "beats 2": 0.5}
    assert b.parts == {"games": 2.0, "order_consistent": 1.0, "beats 0": 0.0, "beats 2": 0.0}
    assert c.parts["beats 0"] == 0.5
    assert (a.extracted, a.why) == ("1.5/2", "won 1.5 of 2 games")


def test_a_judge_that_favours_a_position_gives_ties_with_both_orders_and_wins_without() -> None:
    fair = verdicts(comparing(lambda first, second: True), "a", "b")
    assert [(v.score, v.parts["order_consistent"]) for v in fair] == [(0.5, 0.0)] * 2
    biased = verdicts(comparing(lambda first, second: True, both_orders=False), "a", "b")
    assert [v.score for v in biased] == [1.0, 0.0]
    assert "order_consistent" not in biased[0].parts


@pytest.mark.parametrize(
    ("one", "other", "probability", "agreed"),
    [(0.9, 0.7, 0.8, True), (0.9, 0.2, 0.5, False), (1.0, 0.5, 0.75, False), (0.5, 0.5, 0.5, True)],
)
def test_both_orders_are_averaged_and_a_contradiction_is_a_tie(
    one: float, other: float, probability: float, agreed: bool
) -> None:
    word, said = both(Preference.of(one), Preference.of(other))
    assert word.probability == pytest.approx(probability)
    assert said is agreed


def test_an_order_that_is_left_open_leaves_the_game_open() -> None:
    decided, unsure, failed = Preference.of(1.0), Preference.abstain("?"), Preference.error("!")
    assert both(decided, unsure) == both(unsure, decided) == (unsure, None)
    assert both(unsure, failed) == both(failed, decided) == (failed, None)


def test_failed_games_are_no_games() -> None:
    def act(first: str, second: str) -> float:
        if {first, second} == {"xxx", "x"}:
            raise ZeroDivisionError("no")
        return longer(first, second)

    a, b, c = verdicts(comparing(act), "xxx", "x", "xx")
    assert [v.score for v in (a, b, c)] == [1.0, 0.0, 0.5]
    assert a.parts == {"games": 1.0, "order_consistent": 1.0, "beats 2": 1.0}
    assert a.why == "won 1 of 1 games, 1 more undecided"


def test_only_failed_games_is_an_error_and_no_decided_one_an_abstain() -> None:
    failing = verdicts(comparing(lambda first, second: "no"), "a", "b")
    assert [v.kind for v in failing] == ["error", "error"]
    assert "what compare() returns must be a finite number" in failing[0].why
    unsure = verdicts(comparing(lambda first, second: Preference.abstain("alike")), "a", "b")
    assert [(v.kind, v.why) for v in unsure] == [("abstain", "0 of 1 games were decided: alike")] * 2
    mixed = comparing(lambda first, second: Preference.abstain("?") if "a" in first + second else 1 / 0)
    assert [v.kind for v in verdicts(mixed, "a", "b", "c")] == ["abstain"] * 3


def test_too_few_decided_games_give_no_score() -> None:
    def act(first: str, second: str) -> Preference:
        return Preference.of(longer(first, second)) if {first, second} == {"a", "bb"} else Preference.abstain("?")

    assert [v.kind for v in verdicts(comparing(act), "a", "bb", "ccc", "dddd")] == ["abstain"] * 4
    assert [v.score for v in verdicts(comparing(act, least_decided=0.0), "a", "bb", "ccc", "dddd")][:2] == [0.0, 1.0]


def test_a_lone_response_abstains_and_equal_texts_tie_without_a_question() -> None:
    asked: list[tuple[str, str]] = []
    judge = comparing(lambda first, second: asked.append((first, second)) or 1.0)
    assert [v.kind for v in verdicts(judge, "a")] == ["abstain"]
    assert [v.score for v in verdicts(judge, "a", "a")] == [0.5, 0.5]
    assert judge_groups(judge, [group()]) == [[]]
    assert asked == []


class Batched(PairwiseJudge):
    """Sees all games of a round at once."""

    def compare_all(self, games: Sequence[Game]) -> list[Preference]:
        CALLS.append(len(games))
        return [Preference.of(longer(game.first.text, game.second.text)) for game in games]


CALLS: list[int] = []


def test_all_groups_of_a_round_are_compared_in_one_call() -> None:
    CALLS.clear()
    first, second = judge_groups(Batched(), [group("a", "bb"), group("c", "dd", "eee")])
    assert ([v.score for v in first], [v.score for v in second]) == ([0.0, 1.0], [0.0, 0.5, 1.0])
    assert CALLS == [(1 + 3) * 2]


@pytest.mark.parametrize("returned", [None, [], [Preference.of(1.0)], [1.0, 1.0]])
def test_a_batch_that_breaks_the_contract_stops_with_one_paragraph(returned: Any) -> None:
    class Broken(PairwiseJudge):
        def compare_all(self, games: Sequence[Game]) -> list[Preference]:
            return returned  # type: ignore[no-any-return]

    with pytest.raises(JudgeError, match=r"Broken: compare_all returned .* for 2 games.*one Preference per game"):
        verdicts(Broken(), "a", "b")


def test_a_class_without_compare_is_no_judge(tmp_path: Any) -> None:
    (tmp_path / "empty.py").write_text(
        "from judges import PairwiseJudge\nclass Empty(PairwiseJudge):\n    pass\n", encoding="utf-8"
    )
    with pytest.raises(JudgeError, match="does not define compare"):
        build_judge("empty.py:Empty", {}, base_dir=tmp_path)


def test_the_examples_of_a_pairwise_judge_name_both_responses() -> None:
    prompt = Prompt("example", (), None, {})

    class Longer(PairwiseJudge):
        examples = (Example(prompt, "aa", 1.0, against="b"), Example(prompt, "a", 0.5, against="b"))

        def compare(self, prompt: Prompt, first: Response, second: Response) -> float:
            return longer(first.text, second.text)

    class Shorter(Longer):
        def compare(self, prompt: Prompt, first: Response, second: Response) -> float:
            return longer(second.text, first.text)

    assert self_test(Longer()) == 2
    with pytest.raises(JudgeError, match=r"answer 'aa' against 'b' .*gave score 0.0.*expected score 1.0"):
        self_test(Shorter())


@given(st.integers(0, 9), st.integers(1, 10))
def test_the_circle_is_balanced_connected_and_meets_nobody_twice(n: int, opponents: int) -> None:
    games = circle(list(range(n)), opponents)
    assert len(set(games)) == len(games)
    assert all(a < b for a, b in games)
    each = Counter(place for game in games for place in game)
    assert len(set(each.values())) <= 1
    assert all(each[place] >= min(opponents, n - 1) for place in range(n))
    reached = {0}
    for _ in range(n):
        reached |= {place for game in games if reached & set(game) for place in game}
    assert n == 0 or reached == set(range(n))


@given(st.integers(0, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_swiss_tournament_meets_nobody_twice_and_plays_at_most_the_planned_games(
    n: int, rounds: int, random: Any
) -> None:
    met: set[tuple[int, int]] = set()
    for _ in range(rounds):
        couples = swiss_round(range(n), [random.random() for _ in range(n)], met)
        assert not met & set(couples)
        places = [place for couple in couples for place in couple]
        assert len(set(places)) == len(places)
        met |= set(couples)
    assert len(met) <= games_at_most("tournament", n, rounds)


def test_a_tournament_finds_the_best_with_fewer_games_than_all() -> None:
    texts = ["x" * length for length in (3, 7, 1, 8, 5, 2, 6, 4)]
    asked: list[str] = []
    judge = comparing(lambda a, b: asked.append(a) or longer(a, b), games="tournament", opponents=3)
    scores = [v.score for v in verdicts(judge, *texts)]
    assert scores.index(max(s for s in scores if s is not None)) == 3
    assert scores.index(min(s for s in scores if s is not None)) == 2
    assert len(asked) == judge.calls_at_most(8) == 2 * 12 < comparing(longer).calls_at_most(8) == 2 * 28


@given(st.lists(st.text(max_size=4), min_size=2, max_size=6), st.sampled_from(["all", "sampled", "tournament"]))
def test_what_one_wins_the_other_loses(texts: list[str], games: str) -> None:
    found = verdicts(comparing(longer, games=games, opponents=2), *texts)
    for one, other in combinations(range(len(texts)), 2):
        here, there = found[one].parts.get(f"beats {other}"), found[other].parts.get(f"beats {one}")
        assert (here is None) == (there is None)
        assert here is None or there is None or here + there == 1.0
    for verdict in found:
        if verdict.score is not None:
            beats = [value for name, value in verdict.parts.items() if name.startswith("beats")]
            assert verdict.parts["games"] == len(beats)
            assert verdict.score == pytest.approx(sum(beats) / len(beats))


def test_the_games_depend_on_the_texts_alone() -> None:
    assert drawn_order(["a", "b", "c"]) == drawn_order(["a", "b", "c"])
    assert [["a", "b", "c"][i] for i in drawn_order(["a", "b", "c"])] == [
        ["c", "a", "b"][i] for i in drawn_order(["c", "a", "b"])
    ]
    assert len(round_robin(5)) == games_at_most("all", 5, 1) == 10
