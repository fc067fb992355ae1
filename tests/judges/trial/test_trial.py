"""A trial and the report on it: numbers worked out by hand, identities, and judges with a known bias."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges import Group, Judge, JudgeError, PairwiseJudge, PointwiseJudge, Preference, Prompt, Response, Verdict
from judges.trial.labelled import Case
from judges.trial.report import OrderBias, ScoreAgreement, calibration, correlation, kappa, ranks, report
from judges.trial.selftest import agree_with
from judges.trial.trial import AT_A_TIME, Outcome, try_cases


class Length(PointwiseJudge):
    """The score is what the text says: "0.7", "abstain" or "raise"; otherwise its length."""

    def one(self, prompt: Prompt, response: Response) -> Verdict | float:
        if response.text == "abstain":
            return Verdict.abstain("told so")
        try:
            return float(response.text)
        except ValueError:
            if response.text == "raise":
                raise
            return float(len(response.text))


class Longer(PairwiseJudge):
    """The longer one is better, unless it is longer by one only: then the one that is read first."""

    def compare(self, prompt: Prompt, first: Response, second: Response) -> Preference:
        more = len(first.text) - len(second.text)
        return Preference.of(0.8 if abs(more) <= 1 else float(more > 0))


class Last(Judge):
    """Of all responses to a prompt the last is right."""

    def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        return [[Verdict.of(r is group.responses[-1]) for r in group.responses] for group in groups]


def case(wanted: str | float, *texts: str, prompt: str = "?", where: str = "") -> Case:
    kind: Any = "pair" if len(texts) == 2 else "label" if isinstance(wanted, str) else "score"
    where = where or f"{prompt} {texts}"
    responses = tuple(Response(f"{where} {i}", text, "stop") for i, text in enumerate(texts))
    return Case(where, kind, Prompt(where, ({"role": "user", "content": prompt},), None, {}), responses, wanted)


def said(judge: Judge, *cases: Case, **options: Any) -> list[str]:
    return [outcome.decision for outcome in try_cases(judge, cases, **options)]


# ---- what a judge said ----


def test_scores_say_right_from_the_threshold_on_and_what_is_no_score_agrees_with_no_label() -> None:
    cases = [case("right", "1.0"), case("wrong", "0.9"), case("right", "abstain"), case("wrong", "raise")]
    outcomes = try_cases(Length(), cases)
    assert [o.decision for o in outcomes] == ["right", "wrong", "abstain", "error"]
    assert [o.agrees for o in outcomes] == [True, True, False, False]
    assert said(Length(), *cases[:2], correct_at=0.9) == ["right", "right"]


def test_an_abstention_that_was_wanted_agrees_and_an_error_never_does() -> None:
    outcomes = try_cases(Length(), [case("abstain", "abstain"), case("abstain", "raise"), case("abstain", "1")])
    assert [o.agrees for o in outcomes] == [True, False, False]


def test_a_score_agrees_within_the_tolerance() -> None:
    cases = [case(0.5, "0.5"), case(0.5, "0.6"), case(0.5, "abstain")]
    assert [o.agrees for o in try_cases(Length(), cases)] == [True, False, False]
    assert [o.agrees for o in try_cases(Length(), cases, tolerance=0.1000001)] == [True, True, False]


def test_a_pointwise_judge_prefers_the_higher_score() -> None:
    cases = [case("chosen", "2", "1"), case("chosen", "1", "2"), case("chosen", "1", "1"), case("chosen", "1", "raise")]
    assert said(Length(), *cases) == ["chosen", "rejected", "tie", "error"]
    assert [o.orders for o in try_cases(Length(), cases)] == [()] * 4


def test_a_pairwise_judge_is_asked_in_both_orders_and_contradiction_is_a_tie() -> None:
    outcomes = try_cases(Longer(), [case("chosen", "aaa", "a"), case("chosen", "a", "aaa"), case("chosen", "aa", "a")])
    assert [o.decision for o in outcomes] == ["chosen", "rejected", "tie"]
    assert [[word.probability for word in o.orders] for o in outcomes] == [
        [1.0, 1.0],
        [0.0, 0.0],
        [0.8, pytest.approx(0.2)],
    ]


def test_a_pairwise_judge_that_plays_one_order_is_taken_at_that_word() -> None:
    cases = [case("chosen", f"{i:02}a", f"{i:02}") for i in range(40)]
    words = said(Longer(both_orders=False), *cases)
    assert set(words) == {"chosen", "rejected"}  # whichever is read first


def test_a_group_judge_sees_the_responses_to_equal_prompts_together() -> None:
    cases = [case("wrong", "a", prompt="p"), case("right", "b", prompt="q"), case("right", "c", prompt="p")]
    assert said(Last(), *cases) == ["wrong", "right", "right"]
    (outcome,) = try_cases(Last(), [case("chosen", "a", "b")])
    assert [word.probability for word in outcome.orders] == [0.0, 1.0]  # the last one read wins


def test_a_pairwise_judge_without_pairs_is_refused() -> None:
    with pytest.raises(JudgeError, match=r"compares two responses, but .* at line 7 has one response with a label"):
        try_cases(Longer(), [case("chosen", "a", "b"), case("right", "a", where="line 7")])


def test_many_cases_are_judged_in_parts_and_come_back_in_order() -> None:
    seen: list[int] = []
    cases = [case(float(i), str(i)) for i in range(2 * AT_A_TIME + 3)]
    outcomes = try_cases(Length(), cases, on_progress=seen.append)
    assert [o.case for o in outcomes] == cases
    assert all(o.agrees for o in outcomes)
    assert seen == [AT_A_TIME, 2 * AT_A_TIME, len(cases)]


# ---- the report ----


def test_the_rates_and_the_confusion_of_a_small_trial() -> None:
    cases = [
        case("right", "1"),
        case("right", "0"),
        case("wrong", "0"),
        case("wrong", "abstain"),
        case("right", "raise"),
    ]
    found = report(try_cases(Length(), cases))
    assert (found.agreed, found.agreement, found.agreement_among_decided) == (2, 2 / 5, 2 / 3)
    assert (found.abstain_rate, found.error_rate, found.tie_rate) == (1 / 5, 1 / 5, None)
    assert found.examples == {"label": 5}
    assert found.confusion == {"right": {"right": 1, "wrong": 1, "error": 1}, "wrong": {"wrong": 1, "abstain": 1}}
    assert (found.scores, found.orders) == (None, None)


def test_kappa_of_a_table_by_hand() -> None:
    counts = {("1", "right"): 20, ("1", "wrong"): 5, ("0", "right"): 10, ("0", "wrong"): 15}
    cases = [case(label, text, where=f"{text}{label}{i}") for (text, label), n in counts.items() for i in range(n)]
    # observed (20 + 15) / 50 = 0.7; chance 0.6 · 0.5 + 0.4 · 0.5 = 0.5
    assert kappa(try_cases(Length(), cases)) == pytest.approx(0.4)
    assert kappa(try_cases(Length(), cases[:20])) is None  # all right, and all said to be: no chance to be wrong


def test_the_calibration_of_two_bins_by_hand() -> None:
    points = [(0.1, False), (0.1, True), (0.95, True), (1.0, True)]
    found = calibration(points)
    assert found is not None
    # |0.1 − 0.5| · 2/4 + |0.975 − 1| · 2/4
    assert found.ece == pytest.approx(0.2125)
    assert [(row.low, row.n, row.share_right) for row in found.bins] == [(0.1, 2, 0.5), (0.9, 2, 1.0)]
    assert calibration([(1.5, True)]) is None
    assert calibration([]) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1))
def test_one_bin_has_the_error_of_the_mean_and_more_bins_never_less(points: list[tuple[float, bool]]) -> None:
    one, ten = calibration(points, bins=1), calibration(points, bins=10)
    assert one is not None
    assert ten is not None
    mean = abs(sum(p for p, _ in points) - sum(hit for _, hit in points)) / len(points)
    assert math.isclose(one.ece, mean, abs_tol=1e-12)
    assert ten.ece >= one.ece - 1e-12
    assert sum(row.n for row in ten.bins) == len(points)


def test_ranks_and_correlations_by_hand() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]
    assert correlation([1, 2, 3], [2, 4, 7]) == pytest.approx(5 / math.sqrt(2 * 38 / 3))
    assert correlation([1, 1], [2, 3]) is None
    assert correlation([1], [2]) is None


def test_scores_are_compared_with_the_labelled_ones() -> None:
    found = report(try_cases(Length(), [case(1.0, "1"), case(2.0, "4"), case(3.0, "9"), case(3.0, "abstain")]))
    assert found.scores == ScoreAgreement(
        3,
        pearson=pytest.approx(8 / math.sqrt(2 * 98 / 3)),
        spearman=pytest.approx(1.0),
        mean_absolute_difference=pytest.approx(8 / 3),
    )


def test_a_judge_that_likes_length_shows_beside_labels_that_do_not() -> None:
    cases = [case("right", "aa"), case("wrong", "aaaa"), case("right", "aaa"), case("wrong", "aaaaa")]
    found = report(try_cases(Length(), cases)).length
    assert found.score == pytest.approx(1.0)
    # the labels' ranks 3.5, 1.5, 3.5, 1.5 against 1, 3, 2, 4
    assert found.label == pytest.approx(-4 / math.sqrt(5 * 4))
    pairs = [
        case("chosen", "aaa", "a"),
        case("chosen", "a", "aaa"),
        case("chosen", "b", "bbbb"),
        case("chosen", "c", "c"),
    ]
    found = report(try_cases(Longer(), pairs)).length
    assert (found.longer_preferred_by_judge, found.longer_preferred_by_labels) == (1.0, 1 / 3)


def test_a_judge_that_likes_what_it_reads_first_is_found_out() -> None:
    class First(PairwiseJudge):
        def compare(self, prompt: Prompt, first: Response, second: Response) -> float:
            return 0.9

    found = report(try_cases(First(), [case("chosen", "a", "b"), case("chosen", "c", "d")]))
    assert found.orders == OrderBias(2, consistent=0.0, first_preferred=1.0)
    assert (found.tie_rate, found.agreement) == (1.0, 0.0)
    assert found.calibration.ece == pytest.approx(0.4)  # says 0.9 where it is right half of the time
    fair = report(try_cases(Longer(), [case("chosen", "aaa", "a"), case("chosen", "a", "aaa")]))
    assert fair.orders == OrderBias(2, consistent=1.0, first_preferred=0.5)


def test_what_one_order_leaves_open_counts_as_left_open() -> None:
    class Shy(PairwiseJudge):
        def compare(self, prompt: Prompt, first: Response, second: Response) -> Preference:
            return Preference.abstain("shy") if first.text == "b" else Preference.of(1.0)

    found = report(try_cases(Shy(), [case("chosen", "a", "b")]))
    assert (found.abstain_rate, found.orders) == (1.0, None)


# ---- the user's examples before a campaign ----


def test_the_share_that_was_asked_for_is_enough_and_less_is_not(tmp_path: Any) -> None:
    path = tmp_path / "labelled.csv"
    rows = "".join(f"?,{'1' if i < 7 else '0'},right\n" for i in range(10))
    path.write_text(f"prompt,response,label\n{rows}", encoding="utf-8")
    assert agree_with(Length(), path, agreement=0.7, correct_at=1.0) == 10
    complaint = r"agrees with 7 of 10 .*=0\.71 requires.* line 9: '0' is labelled right, .* gave wrong \(no reason\)"
    with pytest.raises(JudgeError, match=complaint) as caught:
        agree_with(Length(), path, agreement=0.71, correct_at=1.0)
    assert "\n" not in str(caught.value)
    assert agree_with(Length(), path, agreement=1.0, correct_at=0.0) == 10


def outcome_of(judge: Judge, one: Case) -> Outcome:
    return try_cases(judge, [one])[0]


def test_the_reason_that_is_shown_is_the_judges_own() -> None:
    assert outcome_of(Length(), case("right", "abstain")).why == "told so"
    assert "ValueError: could not convert" in outcome_of(Length(), case("right", "raise")).why
