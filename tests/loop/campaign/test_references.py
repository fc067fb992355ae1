"""What an iteration starts from and is anchored to: every rule, its record, and what contradicts it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from loop.campaign.context import Iteration, ModelRoles
from loop.commands.plan import make_plan
from loop.config.load import LoadedConfig, load_config
from loop.errors import UserError
from loop.store.model_folder import weights_hash
from loop.store.model_refs import Model
from loop.store.run_folder import RunFolder
from tests.helpers import tiny
from tests.helpers.campaigns import assert_same_results, read, refusal, rows
from tests.helpers.inprocess import Here

BASE, ONE, TWO, ANCHOR = (Model(Path(name), name, k) for k, name in enumerate(("base", "one", "two", "anchor")))
STANDING = ModelRoles(incumbent=ONE, initial=BASE, previous=TWO, separate=ANCHOR)


def first(config: LoadedConfig) -> Iteration:
    campaign: Any = None
    return Iteration(campaign, 1, config.base, STANDING, {})


WEIGHTS = "train/model/model.safetensors"


def loaded(settings: dict[str, Any], tmp_path: Path, **changes: Any) -> Any:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings | changes), encoding="utf-8")
    return load_config(path)


@pytest.mark.parametrize(
    ("rule", "model"), [("incumbent", ONE), ("previous", TWO), ("initial", BASE), ("path", ANCHOR), ("ema", ANCHOR)]
)
def test_each_reference_is_the_model_that_it_names(
    rule: str, model: Model, settings: dict[str, Any], tmp_path: Path
) -> None:
    path = {"reference_path": "some/model"} if rule == "path" else {}
    assert first(loaded(settings, tmp_path, reference=rule, **path)).reference is model


@pytest.mark.parametrize(
    ("rule", "start", "sampler"), [("incumbent", ONE, ONE), ("previous", TWO, TWO), ("initial", BASE, ONE)]
)
def test_what_is_trained_was_sampled_except_when_the_base_is_trained_anew(
    rule: str, start: Model, sampler: Model, settings: dict[str, Any], tmp_path: Path
) -> None:
    it = first(loaded(settings, tmp_path, start=rule))
    assert (it.start, it.sampler) == (start, sampler)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": "path"}, "reference path needs the model's name in reference_path"),
        ({"reference_path": "some/model"}, "set reference to path, or reference_path to null"),
        ({"train": {"warm_start": {}}, "reference": "ema"}, "set reference to incumbent"),
        ({"train": {"warm_start": {}}, "start": "previous"}, "set reference to previous"),
        ({"train": {"loss": "tr_dpo", "lora": {}}}, "tr_dpo moves its reference"),
    ],
)
def test_contradictions_are_refused_in_one_paragraph(
    changes: dict[str, Any], words: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        loaded(settings, tmp_path, **changes)
    assert words in str(refused.value)
    assert "\n\n" not in str(refused.value)


def test_a_warm_start_may_begin_at_the_base_if_that_is_the_reference(settings: dict[str, Any], tmp_path: Path) -> None:
    config = loaded(settings, tmp_path, train={"warm_start": {}}, start="initial", reference="initial").base
    assert (config.start, config.reference) == ("initial", "initial")


def test_plan_says_in_words_what_is_trained_sampled_and_anchored_to(settings: dict[str, Any], tmp_path: Path) -> None:
    chosen = loaded(settings, tmp_path, start="initial", reference="ema", reference_decay=0.9)
    first, second = make_plan(RunFolder(tmp_path / "none"), chosen, check=False).as_json()["iterations"]
    assert "from the base model, temperature" in first["sample"]
    assert "from the last promoted model, temperature" in second["sample"]
    assert "starting from the base model" in second["train"]
    assert second["reference"] == "the average of base and promoted models (decay 0.9)"


@pytest.mark.slow
def test_an_average_takes_in_what_is_promoted_and_a_rejected_candidate_may_be_gone_on_from(
    here: Here, settings: dict[str, Any]
) -> None:
    settings |= {"iterations": 3, "start": "previous", "reference": "ema", "reference_decay": 0.25}
    settings["train"] |= {"lora": {"rank": 2}}
    settings["per_iteration"] = {2: {"promote.rule": "better", "promote.confidence": 0.9999}}
    config = here.write(settings)
    ended = here("run", config)
    assert (ended.code, ended.err) == (0, "")
    run = here.runs / "campaign"
    base, first, second, third = (read(run / f"iter-{k:03d}" / "promotion.json") for k in range(4))
    assert [p["promoted"] for p in (first, second, third)] == [True, False, True]
    assert third["start"] == second["candidate"]
    assert {row["policy_hash"] for row in rows(*(run / "iter-003" / "sample").glob("*.parquet"))} == {
        second["candidate"]["hash"]
    }
    assert first["reference"]["hash"] == base["policy"]["hash"]
    assert second["reference"] == third["reference"]
    assert weights_hash(run / second["reference"]["path"]) == second["reference"]["hash"]
    initial = load_file(Path(base["policy"]["path"]) / "model.safetensors")
    promoted = load_file(run / "iter-001" / WEIGHTS)
    for name, values in load_file(run / second["reference"]["path"] / "model.safetensors").items():
        assert values.allclose(0.25 * initial[name] + 0.75 * promoted[name], atol=1e-6)
    assert "reference: the average of base and promoted models up to iteration 1" in ended.out
    assert not (run / "iter-003" / "reference").exists()
    told = here("fork", "campaign@2", "new")
    assert (told.code, told.err) == (0, "")
    assert here("run", here.runs / "new").code == 0
    assert_same_results(here.runs / "new", run)
    (here.runs / "new" / second["reference"]["path"] / "model.safetensors").unlink()
    told = refusal(here("fork", "new@2", "newer"))
    assert f"{second['reference']['path']}/model.safetensors is missing" in told


@pytest.mark.slow
def test_a_reference_that_was_swapped_is_noticed_and_one_of_another_family_is_refused(
    here: Here, settings: dict[str, Any], tmp_path: Path
) -> None:
    anchor = tiny.save_model(tmp_path / "anchor", seed=3)
    settings |= {"iterations": 1, "reference": "path", "reference_path": str(anchor)}
    config = here.write(settings)
    here.pause_at("os.rename:*/iter-001/pair/.pairs.parquet.partial*", config).kill()
    named = read(here.runs / "campaign" / "iter-000" / "reference.json")
    assert named["model"]["hash"] == weights_hash(anchor)
    tiny.save_model(anchor, seed=4)
    assert f"The reference in {anchor} is not the model this run was made with" in refusal(here("run", config))
    tiny.save_model(anchor, seed=3)
    run = here.run(config)
    assert read(run / "iter-001" / "promotion.json")["reference"]["hash"] == weights_hash(anchor)
    steps = (run / "iter-001" / "train" / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    assert '"margin": 0.0,' not in steps[0], "the anchor is another model, so the first margins are not 0"
    (anchor / "tokenizer.json").write_text(
        (anchor / "tokenizer.json").read_text(encoding="utf-8").replace('"a"', '"a b"'), encoding="utf-8"
    )
    assert "another vocabulary" in refusal(here("run", config, "--name", "again"))
