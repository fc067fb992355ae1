"""Pairs that cannot be trained are counted by reason; contradictions are refused."""

import pytest

from trainer.data import EMPTY_PROMPT, EMPTY_RESPONSE, IDENTICAL, TOO_LONG, Pair, PreferenceData, PromptGroup, Response
from trainer.data import check_data as check
from trainer.errors import TrainerError

GROUP = PromptGroup(
    "p",
    [5, 6],
    (
        Response("good", [7, 8]),
        Response("bad", [9]),
        Response("twin", (7, 8)),
        Response("empty", []),
        Response("long", [7] * 9),
    ),
)
GOOD = Pair("p", "good", "bad")


def data(*pairs: Pair, groups: tuple[PromptGroup, ...] = (GROUP,)) -> PreferenceData:
    return PreferenceData(groups, pairs)


def test_each_dropped_pair_has_its_reason() -> None:
    nothing = PromptGroup("nothing", [], GROUP.responses)
    checked = check(
        data(
            GOOD,
            Pair("p", "good", "twin"),
            Pair("p", "good", "good"),
            Pair("p", "good", "empty"),
            Pair("p", "long", "bad"),
            Pair("nothing", "good", "bad"),
            groups=(GROUP, nothing),
        ),
        vocabulary=10,
        context=10,
    )
    assert checked.data.relations == (GOOD,)
    assert checked.dropped == {EMPTY_PROMPT: 1, EMPTY_RESPONSE: 1, IDENTICAL: 2, TOO_LONG: 1}


def test_nothing_left_names_the_reasons() -> None:
    with pytest.raises(TrainerError, match="None of the 1 pairs can be trained on: 1 identical responses"):
        check(data(Pair("p", "good", "twin")), vocabulary=10, context=None)


def test_no_pair_at_all_points_to_pairing() -> None:
    with pytest.raises(TrainerError, match="no pair to train on"):
        check(data(), vocabulary=10, context=None)


@pytest.mark.parametrize("vocabulary", [6, 8])
def test_ids_outside_the_vocabulary_are_refused(vocabulary: int) -> None:
    with pytest.raises(TrainerError, match=f"vocabulary has {vocabulary} ids"):
        check(data(GOOD), vocabulary=vocabulary, context=None)


@pytest.mark.parametrize("pair", [Pair("p", "good", "gone"), Pair("gone", "good", "bad")])
def test_a_pair_of_unknown_responses_is_refused(pair: Pair) -> None:
    with pytest.raises(TrainerError, match="same sampling stage"):
        check(data(pair), vocabulary=10, context=None)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_weights_that_are_no_weights_are_refused(weight: float) -> None:
    with pytest.raises(TrainerError, match="weight"):
        check(data(Pair("p", "good", "bad", weight)), vocabulary=10, context=None)


def test_ids_that_are_not_unique_are_refused() -> None:
    with pytest.raises(TrainerError, match="twice"):
        check(data(GOOD, groups=(GROUP, GROUP)), vocabulary=10, context=None)
    double = PromptGroup("p", [5], (Response("good", [1]), Response("good", [2])))
    with pytest.raises(TrainerError, match="same id"):
        check(data(groups=(double,)), vocabulary=10, context=None)
