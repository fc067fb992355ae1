"""Warnings and figures of the report, each from numbers that are set by hand."""

import math
from copy import deepcopy
from dataclasses import is_dataclass, replace
from typing import Any

import pytest

from loop.measure.alarms import RULES
from loop.measure.estimators import best_of_kl
from loop.report.data import IterationData, RunData, read_run
from loop.report.figure import Figure, Missing
from loop.report.figures_data import orders, solve_rates
from loop.report.figures_quality import frontier, kl, moved, won_and_lost
from loop.report.figures_training import gradient_field
from loop.report.warnings import CAMPAIGN_ALARMS, alarms
from loop.store.run_records import Difference, SetMetrics
from loop.store.run_state import Alarm
from tests.helpers.made_runs import Made, make_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """Two iterations with KL and nothing wrong."""
    made = Made(iterations=2, kl=True, tokens=1, shard=9, skill=lambda k: (0.2, 0.4, 0.5)[k], train=20, test=20)
    return read_run(make_run(tmp_path_factory.mktemp("figures") / "run", made))


def changed(data: RunData, number: int, **fields: Any) -> RunData:
    """The run with other fields in one iteration; dicts are merged into the records and dicts that are there."""
    iterations = list(data.iterations)
    old = iterations[number]
    merged = {name: merge(getattr(old, name), value) for name, value in fields.items()}
    iterations[number] = replace(old, **merged)
    return replace(data, iterations=iterations)


def merge(old: Any, new: Any) -> Any:
    if not isinstance(new, dict):
        return new
    return replace(old, **new) if is_dataclass(old) else deepcopy(old) | new


def gain(value: float, low: float, high: float) -> Difference:
    return Difference(value, low, high, None, 20)


def alarm(name: str, text: str) -> Alarm:
    return Alarm(name, "pair", 0.0, 0.0, text)


def steps(**columns: tuple[float, float]) -> list[dict[str, Any]]:
    """Eight steps whose columns go from a first to a last value."""
    return [{name: first + i / 7 * (last - first) for name, (first, last) in columns.items()} for i in range(8)]


def told(data: RunData) -> dict[str, str]:
    return {alarm.what: alarm.text for alarm in alarms(data)}


def iteration_data(data: RunData, number: int = 2) -> IterationData:
    return data.iterations[number]


def test_a_campaign_with_nothing_wrong_has_no_warning(data: RunData) -> None:
    assert told(data) == {}


def test_entropy_that_falls_without_a_gain_is_a_warning_and_with_one_is_not(data: RunData) -> None:
    fallen = changed(data, 2, steps=steps(entropy=(2.0, 0.1)), promotion={"gain": gain(0.0, -0.1, 0.1)})
    assert "iteration 2: entropy fell from 1.864 to 0.236" in told(fallen)["entropy collapsed"]
    gained = changed(fallen, 2, promotion={"gain": gain(0.2, 0.1, 0.3)})
    assert told(gained) == {}


def test_growing_and_cut_off_responses_are_warnings(data: RunData) -> None:
    test = merge(iteration_data(data).test, {"mean_length": 1.3, "truncated_share": 0.25})
    found = told(changed(data, 2, state={"test": test}))
    assert found["responses grow longer"] == "iteration 2: 1.3 tokens on average, 30.0 % more than the incumbent"
    assert found["responses are truncated"] == "iteration 2: 25.0 % of the test responses hit the token limit"


def test_alarms_of_the_campaign_are_on_the_page_by_iteration(data: RunData) -> None:
    alarmed = changed(data, 1, state={"alarms": (alarm("entropy", "narrow: 20 %"),)})
    alarmed = changed(alarmed, 2, state={"alarms": (alarm("entropy", "narrow: 10 %"), alarm("length", "long"))})
    assert told(alarmed) == {
        "entropy collapsed": "iteration 1: narrow: 20 %; iteration 2: narrow: 10 %",
        "training responses grow longer": "iteration 2: long",
    }


def test_every_alarm_of_a_campaign_has_figures_to_stand_at() -> None:
    assert set(CAMPAIGN_ALARMS) == set(RULES)


def test_gradients_that_are_no_numbers_are_a_warning(data: RunData) -> None:
    broken = changed(data, 1, steps=[{"gradient_norm": float("inf")}, {"gradient_norm": 1.0}])
    assert told(broken)["the gradient is not finite"] == "iteration 1: in 1 of 2 steps"


def test_a_judge_that_fails_or_depends_on_the_order_is_a_warning(data: RunData) -> None:
    numbers = replace(
        iteration_data(data).sets["train"],
        responses=10,
        kinds={"score": 8, "error": 1, "abstain": 1},
        order_consistent=0.5,
    )
    found = told(changed(data, 2, sets={"train": numbers}))
    assert found["the judge often fails"] == "iteration 2: 10.0 % of the responses got an error instead of a verdict"
    assert found["the judge depends on response order"] == "iteration 2: both orders agree in 50.0 %"
    assert isinstance(orders(changed(data, 2, sets={"train": numbers})), Figure)
    assert isinstance(orders(data), Missing)


def test_the_frontier_has_the_candidates_and_the_best_of_n_line(data: RunData) -> None:
    figure = frontier(data)
    assert isinstance(figure, Figure)
    assert figure.table is not None
    rows = {row[0]: row for row in figure.table.rows}
    for k in (1, 2):
        score = iteration_data(data, k).sets["test"].score
        assert score is not None
        assert rows[2.0 * k][1] == score[0]
    best = iteration_data(data, 1).sets["train"].best
    assert {x: row[4] for x, row in rows.items() if row[4] is not None} == {best_of_kl(n): v for n, v in best.items()}


def test_kl_is_left_out_where_nothing_measured_it(data: RunData) -> None:
    bare = replace(data, iterations=[replace(one, promotion=None) for one in data.iterations])
    assert isinstance(kl(data), Figure)
    for figure in (kl(bare), frontier(bare)):
        assert isinstance(figure, Missing)
        assert "promote.limits.kl" in figure.why


def test_won_and_lost_count_greedy_answers_that_changed(data: RunData) -> None:
    before = SetMetrics(counts={"greedy_accuracy": {"a": [0, 1], "b": [1, 1], "c": [1, 1], "d": [0, 0]}})
    after = SetMetrics(counts={"greedy_accuracy": {"a": [1, 1], "b": [0, 1], "c": [1, 1], "d": [1, 1]}})
    assert won_and_lost(before, after) == (1, 1)
    assert isinstance(moved(data), Figure)


def test_the_columns_of_the_solve_rates_are_whole(data: RunData) -> None:
    figure = solve_rates(data)
    assert isinstance(figure, Figure)
    assert figure.table is not None
    for row in figure.table.rows:
        assert sum(float(str(cell).rstrip(" %")) for cell in row[1:]) == pytest.approx(100, abs=0.3)


def test_the_gradient_field_is_drawn_for_dpo_alone(data: RunData) -> None:
    figure = gradient_field(data)
    assert isinstance(figure, Figure)
    assert figure.drawing.count('class="arrow"') == 14 * 9
    other = replace(
        data,
        configs={
            2: data.settings(2).model_copy(update={"train": data.settings(2).train.model_copy(update={"loss": "ipo"})})
        },
    )
    assert isinstance(gradient_field(other), Missing)


def test_the_pairs_of_a_round_lie_in_the_gradient_field(data: RunData) -> None:
    rows = [row | {"log_ratios": [[math.log(10), -math.log(100)], [0.0, 0.0]]} for row in iteration_data(data).steps]
    figure = gradient_field(changed(data, 2, steps=rows))
    assert isinstance(figure, Figure)
    assert figure.table is not None
    pairs = [row for row in figure.table.rows if row[1] == "one pair"]
    assert [[round(value, 6) for value in row[2:]] for row in pairs] == [[1.0, -2.0], [0.0, 0.0]] * len(rows)
    assert figure.drawing.count("a pair of step") == 2 * len(rows)
    assert "x1 = 10, x2 = 0.01" in figure.drawing
    plain = gradient_field(data)
    assert isinstance(plain, Figure)
    assert "a pair of step" not in plain.drawing
