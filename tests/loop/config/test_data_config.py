"""Settings of the data schedule and of preference data: what they mean, one paragraph for what contradicts itself."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from loop.commands.plan import make_plan
from loop.config.load import LoadedConfig, load_config
from loop.errors import UserError
from loop.store.run_folder import RunFolder

PREFERENCES = {"iterations": 2, "prompts": {"source": "preferences", "path": "p.jsonl"}}
SAMPLED = {
    "prompts": {"source": "file", "path": "q.jsonl", "train": 90, "per_iteration": 30},
    "judge": {"name": "exact"},
}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def loading(settings: dict[str, Any], *overrides: str) -> LoadedConfig:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        return load_config(tmp_path / "c.yaml", overrides)

    return loading


def test_preference_data_need_no_judge_and_are_measured_by_preferences(load: Any) -> None:
    loaded = load(PREFERENCES)
    assert (loaded.base.judge, loaded.base.eval_judge, loaded.base.samples) == (None, None, False)
    assert loaded.base.promote.metric == "preference_accuracy"
    assert loaded.raw["prompts"]["path"] == str(Path("p.jsonl").absolute())


def test_what_is_stored_loads_as_the_same_campaign(load: Any) -> None:
    replay = ["pairs.replay={1: 0.3}", "per_iteration.2.pairs.offline={path: o.jsonl, share: 0.2}"]
    for settings in (load(PREFERENCES, "prompts.parts=2", *replay).raw, load(SAMPLED, *replay).raw):
        assert load(settings).raw == settings
        assert load(settings).at(2).pairs.replay == {1: 0.3}
        assert load(settings).at(2).pairs.offline.path == str(Path("o.jsonl").absolute())
        assert load(settings).at(1).pairs.offline is None


def test_a_judge_may_measure_what_preference_data_train(load: Any) -> None:
    loaded = load(PREFERENCES, "eval.judge={name: length}")
    assert loaded.base.judge is None
    assert loaded.base.eval_judge.name == "length"
    assert loaded.base.promote.metric == "sampled_accuracy"


def test_a_judge_that_would_have_nothing_to_do_is_refused(load: Any) -> None:
    with pytest.raises(UserError, match=r"judge and eval\.judge are both set.* nothing to do; remove it"):
        load(PREFERENCES, "judge={name: exact}", "eval.judge={name: length}")


def test_the_sets_and_the_slices_record_different_keys(load: Any) -> None:
    prompts = load(SAMPLED).base.prompts
    known = {"source", "path", "test_path", "prompt_column", "target_column", "system", "few_shot", "template"}
    assert prompts.recorded().keys() == known | {"train", "gate", "test"}
    assert prompts.scheduled() == {"per_iteration": 30, "order": "random", "solve_rate_column": None}
    assert load(SAMPLED, "prompts.order=easy_to_hard").base.prompts.scheduled()["order"] == "easy_to_hard"


def test_ordered_prompts_may_be_gone_through_again(load: Any) -> None:
    assert load(SAMPLED, "iterations=7", "prompts.order=hard_to_easy").iterations == 7


@pytest.mark.parametrize(
    ("settings", "override", "said"),
    [
        (SAMPLED, "judge=null", "judge is missing: what labels the responses."),
        (SAMPLED, "iterations=1 pairs.replay={1: 0.3}", "from 1 iteration before, but there is only 1 iteration"),
        (SAMPLED, "pairs.replay={3: 0.3}", "from 3 iterations before, but there are only 3 iterations"),
        (SAMPLED, "pairs.replay={1: -1}", "pairs.replay.1"),
        (SAMPLED, "pairs={replay: {1: 1.0}, rule: [oaif, labels]} train.loss=kto", "iteration 2 makes singles"),
        (SAMPLED, "pairs.offline={share: 0.2}", "the preference data has neither path nor dataset"),
        (SAMPLED, "pairs.offline={path: a, dataset: b, share: 0.2}", "the preference data has both path and dataset"),
        (SAMPLED, "pairs.offline={path: a.jsonl}", "pairs.offline.share is missing: their share of all pairs"),
        (SAMPLED, "pairs.offline={path: a.jsonl, share: 1.0}", "pairs.offline.share is 1.0, expected a number"),
        (SAMPLED, "pairs={rule: labels, offline: {path: a, share: 0.5}}", "the rule labels makes singles"),
        (
            SAMPLED,
            "pairs.offline={path: a, share: 0.5} train.loss=sppo",
            "the loss sppo cannot be trained from pairs of",
        ),
        (SAMPLED, "prompts.order=easy_to_hard prompts.per_iteration=null", "every iteration takes all of them"),
        (SAMPLED, "promote.metric=preference_accuracy", "measures preference data, and this campaign samples"),
        (PREFERENCES, "prompts.path=null", "the preference data has neither path nor dataset"),
        (PREFERENCES, "prompts.parts=1", "2 iterations need 2 parts of the preference data, but prompts.parts is 1"),
        (PREFERENCES, "prompts={source: preferences, path: p, parts: 9, train: 8}", "parts is 9, but only 8 prompts"),
        (PREFERENCES, "prompts.parts=2 prompts.per_iteration=5", "parts and per_iteration both set"),
        (PREFERENCES, "prompts.order=easy_to_hard", "set parts (or per_iteration), or order to random"),
        (PREFERENCES, "prompts.test_split=test", "test_split goes with dataset"),
        (PREFERENCES, "pairs.rule=best_vs_worst", "pairs.rule applies to sampled responses, but the pairs come from"),
        (PREFERENCES, "train.sync_every=1", "preference data (prompts.source), so nothing is sampled"),
        (PREFERENCES, "sampling.adaptive={probe: 2}", "sampling.adaptive decides by sampled responses, but the pairs"),
        (PREFERENCES, "sampling.widen={below: 0.5}", "sampling.widen decides by sampled responses, but the pairs"),
        (PREFERENCES, "pairs.replay={1: 0.5}", "every iteration takes all pairs anyway; set prompts.parts"),
        (PREFERENCES, "promote.metric=greedy_accuracy", "promote.metric greedy_accuracy needs a judge"),
        (PREFERENCES, "promote.limits.length=50", "promote.limits.length is measured on judged responses"),
        (PREFERENCES, "train={select: best, checkpoint_every: 5}", "train.select best chooses by judged responses"),
        (PREFERENCES, "train.loss=plackett_luce", "it is written over groups; use a loss over pairs"),
        (PREFERENCES, "judge={name: exact} promote.metric=preference_accuracy", "campaigns that nothing judges"),
        (
            {**SAMPLED, "prompts": {"source": "mixture", "train": 9, "sources": [{"prompts": {"source": "fil"}}] * 2}},
            "seed=1",
            'prompts.sources.0.prompts.source is "fil", expected one of reasoning-gym, gsm8k, file, hub; did you mean',
        ),
        (
            {**SAMPLED, "prompts": {"source": "mixture", "train": 9, "sources": [{"prompts": SAMPLED["prompts"]}]}},
            "prompts.sources=[]",
            "a mixture has two sources or more",
        ),
    ],
)
def test_contradictions_are_refused(load: Any, settings: dict[str, Any], override: str, said: str) -> None:
    depth, overrides = 0, [""]
    for letter in override:  # blanks inside braces belong to a value
        depth += (letter in "{[") - (letter in "}]")
        if letter == " " and not depth:
            overrides.append("")
        else:
            overrides[-1] += letter
    with pytest.raises(UserError) as caught:
        load(settings, *overrides)
    assert said in str(caught.value)


def test_the_plan_says_what_every_iteration_trains_on(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(PREFERENCES, "prompts.parts=2", "prompts.order=easy_to_hard", "pairs.replay={1: 0.5}")
    monkeypatch.setattr("loop.commands.plan.missing", lambda loaded: [])  # the data are not there
    plan = make_plan(RunFolder(tmp_path / "run"), loaded, check=False).as_json()
    assert "in 2 parts, one each iteration, the easiest first (by how much likelier the base model" in plan["prompts"]
    first, second = (it["pair"] for it in plan["iterations"])
    assert first == f"its pairs are given ({Path('p.jsonl').absolute()}, part 1 of 2)"
    assert second.endswith("part 2 of 2); 50 % as many pairs as it makes are replayed from iteration 1")
    assert {it["sample"] for it in plan["iterations"]} == {"nothing is sampled"}
    assert plan["judge"] is None
    sampled = make_plan(RunFolder(tmp_path / "run"), load(SAMPLED, "pairs.replay={2: 0.15}"), check=False).as_json()
    assert (
        "at most 10 per prompt; 15 % as many pairs as it makes are replayed from iteration 1"
        in (sampled["iterations"][2]["pair"])
    )
