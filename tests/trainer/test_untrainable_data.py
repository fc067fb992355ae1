"""What cannot be trained on is dropped and counted, or refused in one paragraph: what, where, what to do."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.data import (
    EMPTY_RESPONSE,
    IDENTICAL,
    NO_RESPONSE,
    TOO_LONG,
    Pair,
    PreferenceData,
    Ranked,
    Response,
    Single,
    check_data,
)
from trainer.errors import TrainerError
from trainer.losses.table import METHODS
from trainer.objective import COLUMNS, Objective, check_needs
from trainer.round import train_round
from trainer.settings import TrainSettings
from trainer.spec import RoundSpec

Spec = Callable[..., RoundSpec]
Report = Callable[[dict[str, Any]], None]


def test_what_a_round_drops_is_in_its_summary(make_spec: Spec, toy_data: PreferenceData, silent: Report) -> None:
    first, *others = toy_data.groups
    more = (Response("empty", []), Response("twin", list(first.responses[0].token_ids)), Response("long", [5] * 58))
    groups = (replace(first, responses=(*first.responses, *more)), *others)
    bad = tuple(Pair(first.id, "r0", id) for id in ("empty", "twin", "long"))
    data = PreferenceData(groups, (*toy_data.relations, *bad))
    summary = train_round(make_spec(max_steps=4), data, report=silent)
    assert summary.dropped == {EMPTY_RESPONSE: 1, IDENTICAL: 1, TOO_LONG: 1}
    assert summary.pairs == len(toy_data.relations)


def test_a_sequence_as_long_as_the_context_is_trained(
    make_spec: Spec, toy_data: PreferenceData, silent: Report
) -> None:
    first, *others = toy_data.groups
    full = Response("full", [5] * (64 - len(first.token_ids)))
    groups = (replace(first, responses=(*first.responses, full)), *others)
    data = PreferenceData(groups, (Pair(first.id, "r0", "full"),))
    summary = train_round(make_spec(), data, report=silent)
    assert (summary.pairs, summary.dropped) == (1, {})


def objective(name: str) -> Objective:
    return Objective(TrainSettings(loss=name).terms)


def relation(kind: str, **columns: Any) -> Pair | Single | Ranked:
    """A relation of the toy data's first prompt with every column that a loss may need, but for the given ones."""
    if kind == "pairs":
        known = {"score_w": 2.0, "score_l": 1.0, "win_w": 0.8, "win_l": 0.2, "probability": 0.9, "margin": 1.0}
        return Pair("p0", "r0", "r1", **known | {"chosen_is_reference": True} | columns)
    if kind == "singles":
        return Single("p0", "r0", **{"good": True, "score": 0.5} | columns)
    return Ranked("p0", ("r0", "r1"), **{"scores": (0.5, 0.25)} | columns)


CASES = [
    (name, need, column)
    for name, method in METHODS.items()
    for need in sorted(method.needs & COLUMNS.keys())
    for column in COLUMNS[need][0]
    if hasattr(relation(method.kind), column)
]


def check(name: str, toy_data: PreferenceData, *relations: Pair | Single | Ranked) -> None:
    check_needs(objective(name), PreferenceData(toy_data.groups, relations))


@pytest.mark.parametrize(("name", "need", "column"), CASES)
def test_a_missing_column_is_named_with_what_to_do(name: str, need: str, column: str, toy_data: PreferenceData) -> None:
    whole = relation(METHODS[name].kind)
    check(name, toy_data, whole)
    expected = rf"The loss {name} needs \w+( \w+)*, but 1 of 2 \w+ have none\. .*or .*another loss\."
    with pytest.raises(TrainerError, match=expected):
        check(name, toy_data, whole, replace(whole, **{column: None}))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "need", "column"), [case for case in CASES if case[2] not in ("good",)])
def test_a_column_of_no_numbers_is_refused(
    name: str, need: str, column: str, number: float, toy_data: PreferenceData
) -> None:
    whole = relation(METHODS[name].kind)
    value: Any = (0.5, number) if column == "scores" else number
    with pytest.raises(TrainerError, match=rf"The loss {name} needs a .*number.* prompt 'p0' has {number:g}\. Use"):
        check(name, toy_data, whole, replace(whole, **{column: value}))


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("spo", "score"),
        ("nash_md", "score"),
        ("nash_md_token", "score"),
        ("sppo", "win_l"),
        ("sppo_single", "probability"),
    ],
)
def test_numbers_that_are_no_shares_are_refused(name: str, column: str, toy_data: PreferenceData) -> None:
    kind = METHODS[name].kind
    check(name, toy_data, relation(kind, **{column: 0.0}), relation(kind, **{column: 1.0}))
    for number in (-0.01, 1.01, 7.0):
        with pytest.raises(TrainerError, match=rf"{name} needs a number from 0 to 1 as .*'p0' has {number:g}\."):
            check(name, toy_data, relation(kind, **{column: number}))


def test_spo_over_pairs_with_raw_scores_is_refused(make_spec: Spec, toy_data: PreferenceData, silent: Report) -> None:
    """Singles are made of pairs with the judge's scores, which are no win rates."""
    pairs = tuple(replace(pair, score_w=8.0, score_l=3.0) for pair in toy_data.relations if isinstance(pair, Pair))
    with pytest.raises(TrainerError, match="The loss spo needs a number from 0 to 1 as score, but prompt 'p0' has 8"):
        train_round(make_spec(loss="spo"), PreferenceData(toy_data.groups, pairs), report=silent)


def test_groups_without_responses_are_dropped_and_uneven_scores_refused(toy_data: PreferenceData) -> None:
    groups = (Ranked("p0", ("r0", "r1")), Ranked("p1", ()))
    checked = check_data(PreferenceData(toy_data.groups, groups), vocabulary=97, context=64)
    assert checked.dropped == {NO_RESPONSE: 1}
    uneven = PreferenceData(toy_data.groups, (Ranked("p0", ("r0", "r1"), (1.0,)),))
    with pytest.raises(TrainerError, match="ranked group of prompt 'p0' has 2 responses and 1 scores"):
        check_data(uneven, vocabulary=97, context=64)


def test_tokens_of_another_tokenizer_are_refused(make_spec: Spec, toy_data: PreferenceData, silent: Report) -> None:
    first, *others = toy_data.groups
    foreign = replace(first, responses=(Response("r0", [5, 97]), *first.responses[1:]))
    data = PreferenceData((foreign, *others), toy_data.relations)
    with pytest.raises(TrainerError, match=r"response 'r0'\) holds the token id 97, .* has 97 ids.* sample again"):
        train_round(make_spec(), data, report=silent)


def test_a_reference_with_another_vocabulary_is_refused_for_every_loss(
    make_spec: Spec, make_policy: Callable[..., Path], toy_data: PreferenceData, silent: Report
) -> None:
    other = make_policy(1, vocab_size=90)
    with pytest.raises(TrainerError, match=r"97 ids, .* of 90\. Both must use the same tokens"):
        train_round(make_spec(reference=other, reference_hash="other", loss="tdpo1"), toy_data, report=silent)


def test_a_reference_that_follows_cannot_be_an_adapter(
    make_spec: Spec, toy_data: PreferenceData, silent: Report
) -> None:
    with pytest.raises(TrainerError, match=r"cannot be used with lora: .* Train all weights, or use another loss"):
        train_round(make_spec(loss="tr_dpo", lora={"rank": 2}), toy_data, report=silent)
