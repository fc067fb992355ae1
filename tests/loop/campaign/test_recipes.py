"""Every recipe is valid, and runs at toy size from the base model's evaluation to the last promotion.

The campaigns run inside the test's own process, and a tiny random model takes the place of the small real one. What a
toy keeps of its recipe is tested by itself.
"""

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from loop.campaign.context import Campaign
from loop.campaign.run import work
from loop.cli.steer_commands import recipes
from loop.commands.recipe import recipe_of
from loop.commands.sweep import plan_sweep, run_sweep, summary
from loop.config.load import LoadedConfig, diff, load_config, made_small, shipped_configs, shipped_recipes
from loop.errors import UserError
from loop.store import tables
from loop.store.files import read_json, read_rows
from loop.store.locate import locate
from loop.store.run_folder import RunFolder
from loop.view.display import Display
from loop.view.status import collect
from loop.workers.pool import WorkerPool
from tests.helpers.campaigns import Cli, refusal
from tests.helpers.inprocess import InProcess

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted(shipped_recipes())
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
KEPT = (
    "pairs.rule", "pairs.gold_fallback", "pairs.rso_beta", "pairs.gold_margin", "sampling.temperature",
    "sampling.top_p", "sampling.from_reference", "train.loss", "train.beta", "train.learning_rate", "train.schedule",
    "train.warmup_share", "train.warm_start", "train.grouping", "train.sync_every", "train.select", "start",
    "reference", "promote.rule", "eval.temperature",
)  # fmt: skip
"""What makes the algorithm, as far as a toy can keep it."""


def value_at(loaded: LoadedConfig, key: str) -> Any:
    value: Any = loaded.raw
    for part in key.split("."):
        value = value[part]
    return value


# ---- the files ----


@pytest.mark.parametrize("name", RECIPES)
def test_a_toy_keeps_the_algorithm(name: str) -> None:
    recipe, toy = load_config(name), load_config(name, toy=True)
    assert {key: value_at(toy, key) for key in KEPT} == {key: value_at(recipe, key) for key in KEPT}
    assert toy.base.samples == recipe.base.samples
    assert (toy.base.eval_judge is None) == (recipe.base.eval_judge is None)
    assert toy.name == f"{recipe.name}-toy"
    changed = {key for key, _, _ in diff(recipe.raw, toy.raw)}
    assert {"model.base", "prompts.train"} <= changed
    assert toy.base.train.max_steps == (None if toy.base.train.online else 2)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_paper_and_the_page_lists_both(name: str) -> None:
    text = shipped_configs()[name].read_text(encoding="utf-8")
    cited = re.findall(r"arXiv:(\d{4}\.\d{5})", text.splitlines()[0])
    assert len(cited) == 1, "the first line says what it is and names the paper"
    assert "# What differs from the paper:" in text
    (row,) = [line for line in PAGE.splitlines() if f"`{name}`" in line and line.startswith("|")]
    assert f"https://arxiv.org/abs/{cited[0]}" in row


@pytest.mark.parametrize(
    "override", re.findall(r"`(train\.[^`]*)`", PAGE.partition("## Losses")[2].partition("\n## ")[0])
)
def test_every_loss_of_the_page_fits_the_offline_recipe(override: str) -> None:
    assert load_config("recipes/dpo", [override]).base.train.terms


def test_overrides_go_on_top_of_the_toy() -> None:
    toy = load_config("recipes/sppo", ["sampling.n=3", "train.loss.eta=10"], toy=True)
    assert (toy.base.sampling.n, toy.base.train.terms[0].arguments["eta"]) == (3, 10)


def test_no_single_iteration_outgrows_the_toy() -> None:
    changes = {2: {"train.max_steps": 50, "train.beta": 0.2}}
    toy = made_small(load_config("quickstart").raw | {"per_iteration": changes}, ROOT / "configs" / "toy")
    assert toy["per_iteration"] == {2: {"train.beta": 0.2}}


def test_replay_from_before_the_toys_iterations_is_left_out() -> None:
    assert load_config("recipes/dno").base.pairs.replay == {1: 0.3, 2: 0.15}
    assert load_config("recipes/dno", toy=True).base.pairs.replay == {1: 0.3}


def test_a_faulty_config_is_refused_before_it_becomes_a_toy(cli: Cli) -> None:
    path = cli.write({"prompts": {"source": "file", "path": "x.jsonl"}, "judge": {"name": "exact"}, "sampling": 3})
    assert "sampling" in refusal(cli("plan", path, "--toy"))


def test_an_existing_run_is_no_toy(tmp_path: Path) -> None:
    (tmp_path / "campaign.yaml").touch()
    (tmp_path / "lineage.json").touch()
    with pytest.raises(UserError, match="is an existing run, whose size cannot change; --toy needs a config"):
        locate(str(tmp_path), [], None, tmp_path, toy=True)


def test_the_recipes_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    recipes()
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == RECIPES
    assert all("arXiv:" in line for line in lines)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_shown_with_its_differences_and_its_size(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(name.removeprefix("recipes/"))
    header = shipped_configs()[name].read_text(encoding="utf-8").partition("\n\n")[0]
    assert len(recipe.differs) == len(re.findall(r"^# - ", header, re.MULTILINE)) > 0
    assert recipe.paper.startswith("https://arxiv.org/abs/2")
    assert len(recipe.iterations) == load_config(name).iterations
    recipes("show", name)
    shown = capsys.readouterr().out
    assert all(item in shown for item in recipe.differs)
    assert f"model    {load_config(name).base.model.base}" in shown


def test_the_calls_of_a_paid_judge_are_shown() -> None:
    assert recipe_of("dno").calls[0].startswith("at most 305,000 calls of at most 4,268 tokens")
    assert recipe_of("iterative-rpo").calls == ()


def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"There is no recipe 'spp'; did you mean sppo\?.*Recipes: d2o"):
        recipe_of("spp")
    with pytest.raises(UserError, match="Name the recipe"):
        recipes("show")


# ---- the campaigns ----


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loop.workers.pool.Worker", InProcess)


def run_toy(name: str, model: Path, folder: Path, *changes: str) -> RunFolder:
    """Run a recipe at toy size on the tiny model; its run folder."""
    fixed = [f"model.base={model}", "threads=1", "train.precision=fp32", "eval.samples=1"]
    loaded, run = load_config(name, [*fixed, *changes], toy=True), RunFolder(folder / "run")
    with run.locked(), closing(WorkerPool(run, loaded.base, Display(to_stderr=True))) as pool:
        work(Campaign(run, loaded, pool, Display(to_stderr=True)))
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_at_toy_size(name: str, toys: Path, tmp_path: Path) -> None:
    run = run_toy(name, toys / "model", tmp_path)
    toy = load_config(name, toy=True)
    assert run.iterations() == list(range(toy.iterations + 1))
    assert len(collect(run).iterations) == toy.iterations + 1
    for k in range(1, toy.iterations + 1):
        steps = read_rows(run.stage(k, "train").steps)
        assert len(steps) == 2, "two optimizer steps"
        assert read_json(run.promotion(k))["promoted"] or toy.at(k).promote.rule != "always"


@pytest.mark.slow
def test_xpo_pairs_a_response_of_the_policy_with_one_of_the_reference(toys: Path, tmp_path: Path) -> None:
    run = run_toy("recipes/xpo", toys / "model", tmp_path, "train.learning_rate=1e-3")
    base, trained = (read_json(run.promotion(k))["policy"]["hash"] for k in (0, 1))
    assert base != trained
    sampled = [
        row for path in sorted(run.stage(2, "sample").path.glob("*.parquet")) for row in tables.read(path).to_pylist()
    ]
    by = {row["response_id"]: row["policy_hash"] for row in sampled}
    assert {row["policy_hash"] for row in sampled if row["index"] == 0} == {trained}
    assert {row["policy_hash"] for row in sampled if row["index"] == 1} == {base}
    pairs = tables.read(run.stage(2, "pair").relations("pairs")).to_pylist()
    assert pairs
    for pair in pairs:
        assert {by[pair["chosen_id"]], by[pair["rejected_id"]]} == {base, trained}
        assert pair["chosen_is_reference"] == (by[pair["chosen_id"]] == base)


@pytest.mark.slow
def test_a_sweep_over_beta_gives_the_points_of_reward_and_kl(toys: Path, tmp_path: Path) -> None:
    changes = ["train.beta=0.1,1", f"model.base={toys / 'model'}", "threads=1", "train.precision=fp32"]
    members = plan_sweep("recipes/dpo-sentiment", changes, None, tmp_path, toy=True)
    assert [member.run.name for member in members] == ["dpo-sentiment-toy-beta=0.1", "dpo-sentiment-toy-beta=1"]
    told = summary(run_sweep(members, Display(to_stderr=True)), tmp_path)
    assert [outcome.stopped for outcome in told.outcomes] == [None, None]
    assert told.comparison is not None
    assert len(told.comparison.entrants) == 2
    for member in members:
        (kl,) = read_json(member.run.promotion(1))["limits"]
        assert kl["name"] == "kl"
        assert kl["value"] is not None
