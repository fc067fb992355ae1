"""What `prefloop compare` says of two runs, checked against their tables, and its statistics against known values."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from loop.config.load import load_config
from loop.config.yaml_text import to_yaml
from loop.errors import UserError
from loop.measure.evaluation import METRICS
from loop.measure.stats import unpaired_difference
from loop.store import tables
from loop.store.run_folder import RunFolder
from loop.view.comparison import ChangedSetting, CorrectInOne, PromptCounts, compare_runs
from loop.view.comparison_tables import print_comparison
from tests.helpers.campaigns import Cli, copy_run, read, rows


@pytest.fixture
def runs(reference: Path, cli: Cli) -> Path:
    """The reference campaign twice, the second with two settings changed on paper."""
    for name in ("one", "two"):
        copy_run(reference, cli, name)
    raw = load_config(cli.runs / "two" / "campaign.yaml").raw
    raw["train"]["beta"], raw["sampling"]["n"] = 0.3, 5
    (cli.runs / "two" / "campaign.yaml").write_text(to_yaml(raw), encoding="utf-8")
    return cli.runs


def test_a_run_compared_with_itself_differs_in_nothing(runs: Path) -> None:
    found = compare_runs(["one", "one@2"], runs, 5)
    (compared,) = found.comparisons
    assert found.settings == []
    assert compared.paired
    assert {compared.metrics[metric].value for metric in METRICS} == {0.0}
    assert compared.only_right == CorrectInOne(0, 0)
    assert compared.disagreements == []


def test_settings_that_differ_have_a_value_for_every_run(runs: Path) -> None:
    found = compare_runs(["one", "two", "one"], runs, 0)
    settings = {row.key: row.values for row in found.settings}
    assert settings == {"train.beta": [None, 0.3, None], "sampling.n": [4, 5, 4]}


def test_iterations_are_the_models_named_and_the_difference_is_that_of_their_metrics(runs: Path) -> None:
    found = compare_runs(["one@0", "two"], runs, 0)
    (compared,) = found.comparisons
    assert [(e.iteration, e.incumbent) for e in found.entrants] == [(0, False), (2, True)]
    tests = [read(runs / "one" / f"iter-00{k}" / "eval" / "metrics.json")["test"] for k in (0, 2)]
    for metric in METRICS:
        difference = compared.metrics[metric]
        assert None not in (difference.value, difference.low, difference.high)
        assert difference.value == pytest.approx(tests[1][metric]["value"] - tests[0][metric]["value"])
        assert difference.low <= difference.value <= difference.high
    assert [row.iteration for row in found.iterations] == [0, 1, 2]


def test_disagreements_are_the_prompts_with_one_right_greedy_response(runs: Path) -> None:
    (compared,) = compare_runs(["one@0", "two"], runs, 99).comparisons
    right = []
    for k in (0, 2):
        folder = runs / "one" / f"iter-00{k}" / "eval"
        scores = {row["response_id"]: row["score"] for row in rows(folder / "test-verdicts-000.parquet")}
        greedy = [row for row in rows(folder / "test-000.parquet") if row["temperature"] == 0]
        right.append({row["prompt_id"]: scores[row["response_id"]] >= 1 for row in greedy})
    expected = sorted(prompt for prompt in right[0] if right[0][prompt] != right[1][prompt])
    assert [example.prompt_id for example in compared.disagreements] == expected
    assert compared.only_right.first + compared.only_right.second == len(expected)
    for example in compared.disagreements:
        assert example.first.right == right[0][example.prompt_id]
        assert example.second.right == right[1][example.prompt_id]
        assert example.second.text in {row["text"] for row in rows(runs / "one/iter-002/eval/test-000.parquet")}


def test_other_test_prompts_are_said_and_compared_unpaired(runs: Path) -> None:
    path = runs / "two" / "prompts" / "test.parquet"
    table = tables.read(path)
    path.write_bytes(tables.table_bytes(table.slice(1)))
    answers = runs / "two" / "iter-001" / "eval" / "test-000.parquet"
    responses = tables.read(answers)
    asked = pc.not_equal(responses["prompt_id"], table["id"][0])
    answers.write_bytes(tables.table_bytes(responses.filter(asked)))
    (compared,) = compare_runs(["one", "two@1"], runs, 0).comparisons
    assert not compared.paired
    assert compared.test_prompts == PromptCounts(first=8, second=7, both=7)


def test_other_ways_of_evaluating_are_named(runs: Path) -> None:
    path = RunFolder(runs / "two").stage(2, "eval").manifest_path
    manifest = read(path)
    manifest["inputs"]["eval.temperature"] = 1.3
    path.write_text(json.dumps(manifest), encoding="utf-8")
    (compared,) = compare_runs(["one", "two"], runs, 0).comparisons
    assert compared.evaluated_differently == [ChangedSetting("eval.temperature", [0.8, 1.3])]


def test_what_cannot_be_compared_is_refused_with_a_way_out(runs: Path) -> None:
    shutil.rmtree(runs / "two" / "iter-002" / "eval")
    (runs / "two" / "iter-002" / "promotion.json").unlink()
    for names, words in {
        ("one",): "at least two runs",
        ("one", "two@2"): "not evaluated yet",
        ("one", "tow"): "did you mean two",
        ("one", "two@9"): "it has: 0, 1, 2",
    }.items():
        with pytest.raises(UserError, match=words):
            compare_runs(names, runs, 0)


def test_what_is_printed_names_settings_metrics_and_examples(runs: Path) -> None:
    console = Console(record=True, width=120)
    print_comparison(compare_runs(["one@0", "two"], runs, 2), console)
    text = console.export_text()
    for words in ("train.beta", "sampled accuracy", "paired on the same 8 test prompts", "points [", "p = "):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


# ---- unpaired ----


def shares(success: int, trials: int) -> tuple[Any, Any]:
    return [1.0] * success + [0.0] * (trials - success), [1.0] * trials


def test_the_unpaired_interval_is_newcombes() -> None:
    # Newcombe (1998), Table II, 56/70 against 48/80, method 10: 0.0524 to 0.3339 with normal quantiles; t quantiles
    # at 69 and 79 degrees of freedom widen it a little.
    found = unpaired_difference(shares(48, 80), shares(56, 70), 0.95)
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.0524, abs=0.004)
    assert found.high == pytest.approx(0.3339, abs=0.004)
    assert found.p_value is not None
    assert found.p_value < 0.05


@given(st.integers(0, 20), st.integers(2, 20), st.integers(0, 20), st.integers(2, 20))
def test_unpaired_is_antisymmetric_and_its_p_value_fits_the_interval(s1: int, m1: int, s2: int, m2: int) -> None:
    one, two = shares(min(s1, m1), m1), shares(min(s2, m2), m2)
    there, back = unpaired_difference(one, two, 0.9), unpaired_difference(two, one, 0.9)
    assert there.value == pytest.approx(-(back.value or 0.0))
    assert (there.low, there.high) == (pytest.approx(-(back.high or 0.0)), pytest.approx(-(back.low or 0.0)))
    assert None not in (there.low, there.high, there.p_value)
    if abs(there.p_value - 0.1) > 1e-4:
        assert (there.p_value < 0.1) == (there.low > 0 or there.high < 0)


def test_without_trials_nothing_can_be_said() -> None:
    assert unpaired_difference(shares(0, 0), shares(1, 2), 0.95).value is None
