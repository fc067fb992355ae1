"""The numbers of an iteration's signal, worked out by hand, and the alarms over them."""

import math
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from loop.config.settings import AlarmsConfig
from loop.measure.alarms import RULES, alarms
from loop.measure.signal import Tally, entropy, late_mean, percentile, use_of
from loop.pairing.records import Judged
from trainer.data import Pair, Single


def response(
    name: str, score: float | None, *, tokens: str | None = None, length: int = 1, cut: bool = False
) -> Judged:
    """A judged response; no score is an abstention."""
    kind = "abstain" if score is None else "score"
    return Judged(name, tokens or name, kind, score, "length" if cut else "stop", length)


GROUPS: list[tuple[str, list[Judged]]] = [
    # mixed: one right of three scored; a and b have the same tokens
    (
        "p",
        [
            response("a", 1.0, length=2),
            response("b", 0.0, tokens="a", length=2),
            response("c", 0.0, length=4),
            response("d", None, length=4),
        ],
    ),
    ("q", [response("e", 1.0, length=8), response("f", 1.0, length=8, cut=True)]),  # all right
    ("r", [response("g", 0.5, length=10), response("h", 0.0, length=10)]),  # all wrong, but no tie
    ("s", [response("i", None, length=2), response("j", None, length=50, cut=True)]),  # unscored
]


def numbers(groups: list[tuple[str, list[Judged]]]) -> dict[str, float | None]:
    tally = Tally(correct_at=1.0)
    assert list(tally.watch(groups)) == groups
    return tally.numbers()


def test_responses_that_nobody_was_asked_about_are_no_doubts_of_the_judge() -> None:
    asked = [response("a", 1.0), response("b", 0.0), response("c", None), response("d", 1.0)]
    others = [replace(response(f"not asked {i}", None), not_asked=True) for i in range(4)]
    found = numbers([("p", [*asked, *others])])
    assert found["abstained"] == 1 / 4
    assert found["mixed"] == 1
    assert numbers([("p", others)])["abstained"] is None


def test_every_number_is_as_worked_out_by_hand() -> None:
    found = numbers(GROUPS)
    assert found == {
        "solve_rate": pytest.approx((1 / 3 + 1 + 0) / 3),  # over the three prompts with scores
        "mixed": 1 / 4,
        "all_right": 1 / 4,
        "all_wrong": 1 / 4,
        "unscored": 1 / 4,
        "ties": pytest.approx(2 / 5),  # b = c, e = f; a against b and c, g against h differ
        "responses_per_prompt": 10 / 4,
        "unique_per_prompt": 9 / 4,
        "unique": 9 / 10,
        "length": 100 / 10,
        "length_p95": 50,
        "truncated": 2 / 10,
        "abstained": 3 / 10,
        "errors": 0.0,
    }


def test_grades_that_the_rule_does_not_divide_into_right_and_wrong_have_no_solve_rate() -> None:
    graded = Tally(correct_at=1.0, by_outcome=False)
    graded.add([response("a", 0.1), response("b", 0.2), response("c", 0.3)])
    two = Tally(correct_at=1.0, by_outcome=False)
    two.add([response("a", 1.0), response("b", 0.0)])
    assert [graded.numbers()[name] for name in ("solve_rate", "mixed", "all_right", "all_wrong")] == [None] * 4
    assert (graded.numbers()["ties"], graded.numbers()["unscored"]) == (0.0, 0.0)
    assert (two.numbers()["solve_rate"], two.numbers()["mixed"]) == (0.5, 1.0)


def test_a_prompt_counts_once_however_many_responses_it_has() -> None:
    many = ("p", [response(f"a{i}", 1.0) for i in range(30)])
    assert numbers([many, ("q", [response("b", 0.0)])])["solve_rate"] == 0.5


def test_nothing_gives_no_number_instead_of_a_zero() -> None:
    assert set(numbers([]).values()) == {None}
    assert numbers([("p", [response("a", None)])])["solve_rate"] is None
    assert use_of([], 0, 0) == {"per_prompt": None, "trained_on": None, "uses": None, "uses_at_most": None}
    assert entropy([]) is None


@pytest.mark.parametrize(("share", "value"), [(0.5, 1), (0.51, 3), (0.9, 3), (0.95, 7), (1.0, 7)])
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(share: float, value: int) -> None:
    assert percentile({1: 5, 3: 4, 7: 1}, share) == value


def test_use_counts_each_response_as_often_as_training_sees_it() -> None:
    pairs = [Pair("p", "a", "b"), Pair("p", "a", "c"), Pair("q", "d", "e")]
    # a twice, b, c, d and e once: 6 uses of 5 responses, of 20 judged ones to 4 prompts
    assert use_of(pairs, 4, 20) == {"per_prompt": 3 / 4, "trained_on": 5 / 20, "uses": 6 / 5, "uses_at_most": 2}
    assert use_of([Single("p", "a", good=True)], 1, 2)["trained_on"] == 0.5


def test_entropy_is_per_token_over_all_shards() -> None:
    assert entropy([(-6.0, 4), (-2.0, 12)]) == 0.5


def test_the_late_mean_reads_the_last_quarter() -> None:
    steps: list[dict[str, Any]] = [{"x": float(i)} for i in range(8)] + [{"other": 1}]
    assert late_mean(steps, "x") == 6.5
    assert late_mean([{"x": 3.0}], "x") == 3.0
    assert late_mean(steps, "missing") is None


# ---- alarms ----

CALM = {"mixed": 0.5, "solve_rate": 0.5, "unique": 0.9, "entropy": 1.0, "length": 20.0, "truncated": 0.0}
CALM |= {"abstained": 0.0, "displacement": 0.4, "sampler_gap": 0.01}
CROSSED = {
    "mixed": {"mixed": 0.19},
    "solved": {"solve_rate": 0.91},
    "unsolved": {"solve_rate": 0.04},
    "unique": {"unique": 0.19},
    "entropy": {"entropy": 0.29},
    "length": {"length": 30.1},
    "truncated": {"truncated": 0.51},
    "abstained": {"abstained": 0.21},
    "displacement": {"displacement": 0.96},
    "sampler_gap": {"sampler_gap": 0.16},
}
"""By alarm, a number just beyond its default threshold."""


def test_a_calm_iteration_rings_no_alarm() -> None:
    assert alarms([CALM, CALM], AlarmsConfig()) == []


def test_every_threshold_has_its_alarm_and_its_case() -> None:
    assert list(AlarmsConfig.model_fields) == list(RULES) == list(CROSSED)


@pytest.mark.parametrize("name", CROSSED)
def test_an_alarm_says_number_threshold_and_what_to_do(name: str) -> None:
    (alarm,) = alarms([CALM, CALM | CROSSED[name]], AlarmsConfig())
    assert alarm.name == name
    assert alarm.threshold == getattr(AlarmsConfig(), name)
    assert f"(alarms.{name} is {alarm.threshold:g}); " in alarm.text
    assert alarms([CALM, CALM | CROSSED[name]], AlarmsConfig(**{name: None})) == []


@pytest.mark.parametrize("name", CROSSED)
def test_a_number_at_the_threshold_is_no_alarm(name: str) -> None:
    rule = RULES[name]
    base = CALM[rule.number or name] if rule.relative else 1.0
    at = {rule.number or name: getattr(AlarmsConfig(), name) * base}
    assert alarms([CALM, CALM | at], AlarmsConfig()) == []


def test_growth_is_measured_from_iteration_1_and_not_in_it() -> None:
    history = [CALM | {"length": length} for length in (10.0, 14.0, 16.0)]
    assert alarms(history[:1], AlarmsConfig()) == alarms(history[:2], AlarmsConfig()) == []
    (alarm,) = alarms(history, AlarmsConfig())
    assert (alarm.name, alarm.value) == ("length", 1.6)
    assert alarms([CALM | {"length": 0.0}, CALM], AlarmsConfig()) == []


def test_what_was_not_measured_rings_no_alarm() -> None:
    assert alarms([{}], AlarmsConfig()) == alarms([CALM, dict.fromkeys(CALM)], AlarmsConfig()) == []


def test_a_threshold_that_makes_no_sense_is_refused() -> None:
    for name, value in (("mixed", 1.5), ("length", 1.0), ("sampler_gap", -0.1), ("displacement", math.inf)):
        with pytest.raises(ValidationError):
            AlarmsConfig(**{name: value})
