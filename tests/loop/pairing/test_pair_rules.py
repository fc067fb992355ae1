"""Pair rules against the papers' algorithms, worked out by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from loop.config.pairs_section import PairsConfig
from loop.pairing.iteration import balanced, pair_all
from loop.pairing.one_prompt import NO_ANSWERS, PromptResult, build_prompt
from loop.pairing.pair_rules import accept, tournament
from loop.pairing.records import Answers, Judged
from loop.pairing.single_rules import standardised
from loop.pairing.win_rates import over_others, win_rates
from trainer.data import Pair, Ranked, Single

GAMES = [[0.5, 0.8, 0.9], [0.2, 0.5, 0.6], [0.1, 0.4, 0.5]]
"""Probability that the row's response beats the column's."""


def scored(*scores: float, lengths: Sequence[int] = ()) -> list[Judged]:
    """Responses 0, 1, ... with these scores."""
    return [
        Judged(str(k), f"tokens {k}", "score", score, "stop", lengths[k] if lengths else 10)
        for k, score in enumerate(scores)
    ]


def played(games: list[list[float]]) -> list[Judged]:
    """Responses 0, 1, ... as a pairwise judge leaves them."""
    beats = [{str(j): p for j, p in enumerate(row) if j != i} for i, row in enumerate(games)]
    return [
        Judged(str(k), f"tokens {k}", "score", sum(won.values()) / len(won), "stop", 10, won)
        for k, won in enumerate(beats)
    ]


def answer(role: str, score: float | None) -> Judged:
    return Judged(f"p/{role}", role, "given", score, "stop", 10)


def built(judged: list[Judged], rule: str, answers: Answers = NO_ANSWERS, **settings) -> PromptResult:
    return build_prompt("p", judged, PairsConfig(rule=rule, **settings), answers=answers)


def couples(made: PromptResult) -> list[tuple[str, ...]]:
    return [one.responses for one in made.relations]


# By score


def test_xpo_pairs_the_policys_response_with_the_references():
    own, theirs = (
        [replace(one, from_reference=origin) for one in several]
        for origin, several in ((False, scored(0.2, 0.9)), (True, scored(0.5, 0.5, 0.1)))
    )
    theirs = [replace(one, response_id=f"r{one.response_id}", token_ids_key=one.response_id) for one in theirs]
    made = built([*own, *theirs], "xpo")
    assert couples(made) == [("r0", "0"), ("1", "r1")]  # each with its counterpart; the third has none
    assert [pair.chosen_is_reference for pair in made.relations] == [True, False]
    assert made.reasons["r2"] == "unused"
    tied = built([own[0], replace(theirs[0], score=0.2)], "xpo")
    assert (tied.relations, tied.outcome) == ([], "all_tied")


def test_best_meets_worst_with_all_that_losses_ask_for():
    made = built(scored(0.2, 0.9, -0.3, 0.9, 0.1, 0.0, 0.5, 0.4), "best_vs_worst")  # RLHFlow's max_min
    (pair,) = made.relations
    assert isinstance(pair, Pair)
    assert (pair.chosen_id, pair.rejected_id) == ("1", "2")
    assert (pair.score_w, pair.score_l, pair.margin) == (0.9, -0.3, 1.2)
    assert (pair.win_w, pair.win_l, pair.probability) == (7 / 8, 0.5 / 8, 1.0)  # beats 6, ties with 1 and with itself
    assert pair.chosen_is_reference is None


@pytest.mark.parametrize(("penalty", "pair"), [(0.0, ("1", "2")), (0.005, ("3", "2")), (0.01, ("0", "1"))])
def test_a_penalty_on_length_changes_what_is_best(penalty, pair):  # the items of DICE, arXiv:2406.09760
    judged = scored(2.0, 3.0, 1.0, 2.6, lengths=(100, 300, 50, 200))
    made = built(judged, "best_vs_worst", length_penalty=penalty)
    assert couples(made) == [pair]
    assert made.relations[0].score_w == pytest.approx(
        judged[int(pair[0])].score - penalty * judged[int(pair[0])].length
    )


def test_of_equally_good_pairs_the_nearest_lengths_are_taken():
    judged = scored(1.0, 1.0, 0.0, 0.0, lengths=(10, 30, 50, 28))
    assert couples(built(judged, "best_vs_worst")) == [("0", "2")]
    assert couples(built(judged, "best_vs_worst", lengths="nearest")) == [("1", "3")]
    near = built(judged, "correct_vs_wrong", lengths="nearest", per_prompt=3)
    assert couples(near) == [("1", "3"), ("0", "3"), ("1", "2")]  # gaps 2, 18, 20


def test_all_pairs_come_with_the_widest_margin_first():
    assert couples(built(scored(3.0, 1.0, 2.0, 2.0), "all_pairs")) == [
        ("0", "1"), ("0", "2"), ("0", "3"), ("2", "1"), ("3", "1"),
    ]  # fmt: skip
    assert couples(built(scored(3.0, 1.0, 2.0), "all_pairs", min_margin=1.0)) == [("0", "1")]


def test_the_k_best_meet_the_k_worst_and_nobody_is_both():
    assert couples(built(scored(4.0, 1.0, 3.0, 2.0), "top_k_vs_bottom_k")) == [
        ("0", "1"), ("0", "3"), ("2", "1"), ("2", "3"),
    ]  # fmt: skip
    assert couples(built(scored(1.0, 3.0, 2.0), "top_k_vs_bottom_k", top_k=3)) == [("1", "0")]


# Rejection sampling


def test_rejection_sampling_accepts_as_published():
    uniforms = [0.30, 0.50, 0.40, 0.02]
    drawn = iter(uniforms)
    accepted = accept([1.0, 0.2, 0.7, -0.5], keep=3, beta=0.5, uniform=lambda: next(drawn))
    assert accepted == [0, 2, 3]  # probabilities 1, 0.2019, 0.5488, 0.0498
    assert next(drawn, None) is None


def test_rejection_sampling_at_its_limits():
    scores = [0.1, 0.9, 0.5, 0.7]
    assert accept(scores, keep=2, beta=1e-9, uniform=lambda: 0.5) == [1, 3]  # the top 2
    assert accept(scores, keep=3, beta=1e9, uniform=lambda: 0.5) == [0, 1, 2]  # all alike
    assert accept([0.3] * 3, keep=9, beta=0.5, uniform=lambda: 0.999) == [0, 1, 2]  # nothing left


def test_accepted_responses_meet_once_and_the_others_are_named():
    judged = scored(*(k / 10 for k in range(12)))
    made = built(judged, "rso", rso_keep=6)
    assert len(made.relations) == 3
    assert len({id for pair in couples(made) for id in pair}) == 6
    assert list(made.reasons.values()).count("not_accepted") == 6


def test_a_tournament_has_one_game_less_than_players():
    judged = scored(0.3, 0.8, 0.5, 0.1, 0.6)
    named = [(one.response_id, other.response_id) for one, other in tournament(judged)]
    assert named == [("1", "0"), ("2", "3"), ("1", "2"), ("1", "4")]
    assert len(built(judged, "rso", rso_keep=4, rso_ranking="tournament").relations) == 3


# By win rate


def test_win_rates_with_and_without_itself():
    judged = played(GAMES)
    assert list(win_rates(judged).values()) == pytest.approx([2.2 / 3, 1.3 / 3, 1 / 3])  # SPPO
    assert list(over_others(judged).values()) == pytest.approx([0.85, 0.4, 0.25])  # SPO


def test_scores_are_games_that_the_higher_one_wins():
    judged = scored(1.0, 0.0, 1.0, 0.5)
    as_games = played([[0.5 if a == b else float(a > b) for b in (1, 0, 1, 0.5)] for a in (1, 0, 1, 0.5)])
    assert win_rates(judged) == win_rates(as_games)
    assert over_others(judged) == over_others(as_games)


def test_sppo_pairs_carry_win_rates_and_probability():
    (pair,) = built(played(GAMES), "sppo").relations
    assert isinstance(pair, Pair)
    assert (pair.responses, pair.probability) == (("0", "2"), 0.9)
    assert (pair.win_w, pair.win_l) == pytest.approx((2.2 / 3, 1 / 3))


def test_sppo_over_all_responses_pairs_outside_in():
    made = built(scored(0.1, 0.9, 0.5, 0.7, 0.3), "sppo_all")
    assert couples(made) == [("1", "0"), ("3", "4")]
    assert made.reasons["2"] == "unused"


def test_a_circle_of_wins_is_no_preference_for_sppo_and_a_half_for_spo():
    circle = played([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])
    assert built(circle, "sppo").outcome == "all_tied"
    assert [one.score for one in built(circle, "spo").relations if isinstance(one, Single)] == [0.5] * 3


def test_spo_needs_two_responses():
    made = built(scored(1.0), "spo")
    assert (made.outcome, made.reasons) == ("no_games", {"0": "no_games"})


def test_oaif_takes_the_first_two_in_the_judges_order():
    (pair,) = built(played([[0.5, 0.35], [0.65, 0.5]]), "oaif").relations
    assert isinstance(pair, Pair)
    assert (pair.responses, pair.probability) == (("1", "0"), 0.65)
    assert built(scored(0.5, 0.5, 0.9), "oaif").outcome == "all_tied"


def test_a_game_that_was_not_decided_has_no_probability():
    judged = [
        Judged("0", "a", "score", 0.9, "stop", 10, {"2": 0.9}),
        Judged("1", "b", "score", 0.2, "stop", 10, {"2": 0.2}),
    ]
    (pair,) = built(judged, "best_vs_worst").relations
    assert isinstance(pair, Pair)
    assert (pair.probability, pair.margin) == (None, pytest.approx(0.7))
    assert built(judged, "oaif").outcome == "all_tied"


# With answers from the data


def test_dno_compares_gold_and_good_responses_with_much_lower_ones():
    gold = Answers(answer("gold", 6.0))
    made = built(scored(5.0, 3.0, 4.0, 6.0, 2.0), "dno_prct", gold, correct_at=5.0, gold_score=6.0)
    assert couples(made) == [
        ("p/gold", "1"), ("p/gold", "2"), ("p/gold", "4"),
        ("0", "1"), ("0", "2"), ("0", "4"),
        ("3", "0"), ("3", "1"), ("3", "2"), ("3", "4"),
    ]  # fmt: skip
    assert [made.relations[0].win_w, made.relations[0].probability, made.relations[0].margin] == [None, None, 3.0]
    assert built(scored(5.0), "dno_prct").outcome == "no_gold"


def test_spin_prefers_the_gold_answer_whatever_the_scores():
    made = built(scored(1.0, 0.0), "spin", Answers(answer("gold", None)))
    assert couples(made) == [("p/gold", "0"), ("p/gold", "1")]
    assert made.relations[0].margin is None
    same = [*scored(1.0), Judged("1", "gold", "score", 1.0, "stop", 10)]
    assert built(same, "spin", Answers(answer("gold", None))).reasons == {"0": "used", "1": "equals_gold"}


def test_a_gold_answer_stands_in_where_no_response_is_correct():
    gold = Answers(answer("gold", 1.0))
    made = built(scored(0.0, 0.0, 0.0), "correct_vs_wrong", gold, gold_fallback=True, per_prompt=10)
    assert couples(made) == [("p/gold", str(k % 3)) for k in range(10)]
    assert made.reasons == dict.fromkeys("012", "used")
    solved = built(scored(1.0, 0.0), "correct_vs_wrong", gold, gold_fallback=True, per_prompt=1)
    assert couples(solved) == [("0", "1")]
    assert built(scored(0.0, 0.0), "correct_vs_wrong", gold).outcome == "all_wrong"
    assert couples(built(scored(0.5, 0.0), "best_vs_worst", gold, gold_fallback=True)) == [("p/gold", "1")]
    long = Answers(Judged("p/gold", "gold", "given", 1.0, "stop", 500))
    penalised = built(scored(0.5, 0.0), "best_vs_worst", long, gold_fallback=True, length_penalty=0.01)
    assert couples(penalised) == [("p/gold", "1")]  # the answer pays none: it would be the worst


def test_d2o_puts_the_bad_answer_last():
    (group,) = built(
        scored(0.0, 1.0), "d2o", Answers(negative=answer("negative", None)), negative_column="bad"
    ).relations
    assert isinstance(group, Ranked)
    assert (group.responses, group.scores) == (("0", "1", "p/negative"), None)
    assert built(scored(0.0, 1.0), "d2o", negative_column="bad").outcome == "no_negative"


# Singles and groups


def test_labels_are_good_and_bad_singles():
    judged = [*scored(1.0, 0.0), Judged("2", "cut", "score", 1.0, "length", 10)]
    made = built(judged, "labels")
    assert [(one.response_id, one.good) for one in made.relations] == [("0", True), ("1", False)]
    assert made.reasons["2"] == "truncated"


def test_scores_are_standardised_over_a_prompt_an_iteration_or_not_at_all():
    groups = [("p", scored(1.0, 2.0, 3.0)), ("q", [Judged("3", "t", "score", 6.0, "stop", 10)])]

    def scores(over: str) -> list[float]:
        made = pair_all(groups, PairsConfig(rule="scored", standardise=over), 1)
        return [one.score for one in made.relations]

    assert scores("none") == [1.0, 2.0, 3.0, 6.0]
    assert scores("iteration") == pytest.approx([x / math.sqrt(3.5) for x in (-2, -1, 0, 3)])  # mean 3, variance 3.5
    assert scores("prompt") == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])  # q has no spread
    assert standardised([]) == []
    assert standardised([0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0]


def test_ranks_drop_ties_unless_they_are_kept():
    judged = scored(0.5, 0.9, 0.5, 0.1)
    made = built(judged, "ranked")
    assert (couples(made), made.reasons["2"]) == ([("1", "0", "3")], "tied")
    (kept,) = built(judged, "ranked", keep_ties=True).relations
    assert (kept.response_ids, kept.scores) == (("1", "0", "2", "3"), (0.9, 0.5, 0.5, 0.1))
    assert built(scored(0.5, 0.5), "ranked", keep_ties=True).outcome == "all_tied"


def test_only_wrong_responses_are_to_be_forgotten():
    made = built(scored(1.0, 0.0), "negatives", Answers(negative=answer("negative", None)), negative_column="bad")
    assert [(one.response_id, one.good) for one in made.relations] == [("1", False), ("p/negative", False)]
    assert built(scored(1.0, 1.0), "negatives").outcome == "all_correct"


# Balance


def test_classes_by_solve_rate_keep_as_much_as_the_smallest():
    rates = {"a": 0.9, "b": 1.0, "c": 0.1, "d": 0.5}
    kept = balanced({"a": 4, "b": 4, "c": 2, "d": 3}, rates, 1)
    assert kept == {"a": 1, "b": 1, "c": 2, "d": 2}


def test_what_balance_takes_is_counted():
    easy = [(f"e{p}", [Judged(f"e{p}{k}", f"{k}", "score", float(k > 0), "stop") for k in range(8)]) for p in range(3)]
    hard = [("h", [Judged(f"h{k}", f"{k}", "score", float(k > 6), "stop") for k in range(8)])]
    made = pair_all([*easy, *hard], PairsConfig(rule="best_vs_worst", balance="solve_rate"), 1)
    assert made.prompts == {"paired": 2, "balance": 2}
    assert made.responses == {"used": 4, "unused": 24, "balance": 4}
