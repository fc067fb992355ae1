"""A sweep is one run per combination, evaluates the base once where it may, and goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.commands.fork import Origin
from loop.commands.sweep import (
    Outcome,
    combinations,
    describe_origin,
    plan_sweep,
    refuse_stopped,
    split_values,
    take_over,
)
from loop.errors import AwaitingLabels, UserError
from loop.store.lineage import read_lineage
from loop.store.run_folder import RunFolder
from loop.store.stage import STAGES
from tests.helpers.campaigns import Cli, copy_run, refusal, times


def test_the_grid_has_every_combination_with_a_readable_name() -> None:
    grid = combinations(["train.beta=0.1,0.2", "seed=3", "sampling.n=2,4"])
    assert [one.name for one in grid] == ["beta=0.1-n=2", "beta=0.1-n=4", "beta=0.2-n=2", "beta=0.2-n=4"]
    assert grid[1].overrides == ("seed=3", "train.beta=0.1", "sampling.n=4")


def test_keys_that_end_alike_are_told_apart_and_so_are_values_that_look_alike() -> None:
    grid = combinations(["sampling.temperature=0.5,1", "eval.temperature=0.5,1"])
    assert grid[0].name == "sampling.temperature=0.5-eval.temperature=0.5"
    names = [one.name for one in combinations(["train.loss={name: dpo},{name; dpo}"])]
    assert len(set(names)) == 2
    assert all("/" not in name and " " not in name for name in names)


def test_commas_inside_brackets_and_quotes_belong_to_a_value() -> None:
    assert split_values("[0.8,1.2],1") == ["[0.8,1.2]", "1"]
    assert split_values('{a: [1,2], b: 3},"x,y"') == ["{a: [1,2], b: 3}", '"x,y"']


@given(st.lists(st.text("ab.1 ", min_size=1), min_size=1))
def test_plain_values_are_split_as_they_were_joined(values: list[str]) -> None:
    assert split_values(",".join(values)) == values


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["train.beta=0.1"], "nothing to sweep"),
        (["train.beta"], "not of the form"),
        (["train.beta=0.1,,0.2"], "not of the form"),
        (["train.beta=0.1,0.1"], "names a value twice"),
        (["seed=1,2", "seed=3,4"], "given twice"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        combinations(texts)


def test_all_settings_are_checked_before_anything_starts(cli: Cli, settings: dict[str, Any]) -> None:
    config = cli.write(settings)
    assert "train.bta" in refusal(cli("sweep", config, "train.bta=0.1,0.2"))
    with pytest.raises(UserError, match=r"train\.beta"):
        plan_sweep(str(config), ["train.beta=0.1,-1"], None, cli.runs)
    assert not cli.runs.exists()


def test_a_sweep_over_training_samples_once_and_another_seed_makes_its_own(
    cli: Cli, settings: dict[str, Any], reference: Path
) -> None:
    members = plan_sweep(str(cli.write(settings)), ["seed=0,1", "train.beta=0.1,0.4"], "s", cli.runs)
    first = RunFolder(copy_run(reference, cli, members[0].run.name))
    origin = take_over(members[1], [first])
    assert origin == Origin(first, 1, "pair")
    assert describe_origin(origin) == f"the samples, verdicts and pairs of iteration 1 of {first.name}"
    new = members[1].run
    assert [name for name in STAGES if new.stage(1, name).manifest()] == ["sample", "judge", "pair"]
    assert times(new.root, "iter-001/pair/*.parquet") == times(first.root, "iter-001/pair/*.parquet")
    parent = read_lineage(new).parent
    assert parent is not None
    assert parent.place == "stage pair of iteration 1"
    assert take_over(members[2], [first, new]) is None  # another seed: other prompts
    assert not members[2].run.root.exists()


@pytest.mark.parametrize(
    ("key", "iteration", "stage"),
    [("pairs.per_prompt=2,3", 1, "judge"), ("sampling.n=4,6", 0, ""), ("promote.rule=always,better", 1, "pair")],
)
def test_a_run_of_a_sweep_takes_over_as_much_as_its_settings_allow(
    cli: Cli, settings: dict[str, Any], reference: Path, key: str, iteration: int, stage: str
) -> None:
    members = plan_sweep(str(cli.write(settings)), [key], "s", cli.runs)
    first = RunFolder(copy_run(reference, cli, members[0].run.name))
    assert take_over(members[1], [RunFolder(cli.runs / "not-there"), first]) == Origin(first, iteration, stage)


def test_a_run_that_stopped_makes_the_command_fail_and_people_only_make_it_wait(
    cli: Cli, settings: dict[str, Any]
) -> None:
    one, two = plan_sweep(str(cli.write(settings)), ["seed=0,1"], "s", cli.runs)
    refuse_stopped([Outcome(one, None), Outcome(two, None)])
    with pytest.raises(AwaitingLabels, match="1 of 2 runs stopped: s-seed=1"):
        refuse_stopped([Outcome(one, None), Outcome(two, AwaitingLabels("labels"))])
    with pytest.raises(UserError, match="2 of 2"):
        refuse_stopped([Outcome(one, UserError("no pairs")), Outcome(two, AwaitingLabels("labels"))])


@pytest.mark.slow
def test_a_sweep_runs_continues_and_compares(cli: Cli, settings: dict[str, Any]) -> None:
    config = cli.write(settings | {"iterations": 1})
    grid = ("train.beta=0.1,0.4", "train.max_steps=2")
    dry = cli("sweep", config, *grid, "--dry-run")
    assert dry.out.count("campaign-beta=") == 2
    assert not cli.runs.exists()
    ended = cli("sweep", config, *grid, "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert [Path(run["run"]).name for run in told["runs"]] == ["campaign-beta=0.1", "campaign-beta=0.4"]
    (compared,) = told["comparison"]["comparisons"]
    assert compared["paired"]
    one, two = (cli.runs / Path(run["run"]).name for run in told["runs"])
    for shared in ("iter-000/eval/*.parquet", "iter-001/sample/*.parquet", "iter-001/pair/*.parquet"):
        assert times(two, shared) == times(one, shared)
    (two / "iter-001" / "promotion.json").unlink()
    before = times(two, "iter-*/*/*")
    again = cli("sweep", config, *grid)
    assert again.code == 0, again.err
    assert "against the first" in again.out
    assert (two / "iter-001" / "promotion.json").exists()
    assert times(two, "iter-*/*/*") == before
