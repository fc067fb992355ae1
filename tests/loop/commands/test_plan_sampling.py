"""`prefloop plan` says what a paid judge will be asked at most; the numbers are worked out by hand."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from judges.resolve import build_judge
from loop.commands.plan import Plan, make_plan
from loop.commands.plan_sampling import describe_calls
from loop.config.load import load_config
from loop.store.run_folder import RunFolder

LOCAL = {"base_url": "http://localhost:1/v1", "model": "m"}
PRICED = {"prompt_price": 1.0, "completion_price": 2.0}


def plan_of(tmp_path: Path, judge: str, train: int | None = 10, eval_judge: str | None = None, **args: object) -> Plan:
    (tmp_path / "p.jsonl").touch()
    settings: dict[str, Any] = {
        "iterations": 2,
        "prompts": {"source": "file", "path": str(tmp_path / "p.jsonl"), "train": train, "gate": 3, "test": 2},
        "sampling": {"n": 4, "max_tokens": 100},
        "engine": {"kind": "transformers", "max_model_len": 300},
        "eval": {"samples": 1},
        "judge": {"name": judge, "args": args if judge == "combine" else {**LOCAL, **args}},
    }
    if eval_judge is not None:
        own = settings["judge"]["args"] if eval_judge.startswith("llm-") else {}
        settings["eval"]["judge"] = {"name": eval_judge, "args": own}
    path = tmp_path / "campaign.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return make_plan(RunFolder(tmp_path / "run"), load_config(path), check=False)


def planned(tmp_path: Path, judge: str, *, eval_judge: str | None = None, **args: Any) -> dict[str, object]:
    """The calls of the judge as `--json` prints them, with those of the evaluation's own under `eval`."""
    plan = plan_of(tmp_path, judge, eval_judge=eval_judge, **args).as_json()
    assert ("eval_judge_calls" in plan) == (eval_judge is not None and eval_judge.startswith("llm-"))
    return dict(plan["judge_calls"][0] | {"eval": (plan.get("eval_judge_calls") or [None])[0]})


def described(tmp_path: Path, **args: Any) -> str:
    """The calls of the judge `llm-grade` as a person reads them."""
    return describe_calls(plan_of(tmp_path, "llm-grade", **args).judge_calls[0])


def test_prompts_times_responses_times_orders_times_votes(tmp_path: Path) -> None:
    grade = planned(tmp_path, "llm-grade")
    assert grade["calls"] == 2 * 10 * 4 + 3 * (3 + 2) * 2  # two iterations and three evaluations
    compare = planned(tmp_path, "llm-compare", votes=3, temperature=0.5)
    assert compare["calls"] == 3 * 2 * (2 * 10 * 6 + 3 * (3 + 2) * 1)
    sampled = planned(tmp_path, "llm-compare", games="sampled", opponents=2, both_orders=False)
    assert sampled["calls"] == 2 * 10 * 4 + 3 * 5 * 1


def test_every_paid_part_of_a_combination_is_counted(tmp_path: Path) -> None:
    paid = {"judge": "llm-grade", "args": LOCAL}
    parts = [{"judge": "exact"}, paid, {**paid, "judge": "llm-compare"}]
    judge = build_judge("combine", {"parts": parts})
    assert [type(one).__name__ for one in judge.paid_for()] == ["LLMGrade", "LLMCompare"]
    assert planned(tmp_path, "combine", parts=parts[:2])["calls"] == planned(tmp_path, "llm-grade")["calls"]


def test_money_is_a_bound_over_tokens(tmp_path: Path) -> None:
    grade: dict[str, Any] = {"max_tokens": 50, "rubric": "x" * 300, "budget": PRICED}
    found = planned(tmp_path, "llm-grade", **grade)
    each = found["each"]
    assert isinstance(each, dict)
    assert each["completion_tokens"] == 50
    template = each["prompt_tokens"] - 200 - 100  # the longest prompt and the longest response
    assert 100 < template < 1000
    assert found["cost"] == pytest.approx(110 * (each["prompt_tokens"] * 1.0 + 50 * 2.0) / 1e6)
    assert described(tmp_path, **grade).startswith("at most 110 calls of at most")
    assert "cost at most 0.0" in described(tmp_path, **grade)
    assert "no prices given" in described(tmp_path)


def test_without_a_number_of_prompts_only_the_single_call_is_known(tmp_path: Path) -> None:
    assert "depends on the prompts" in described(tmp_path, train=None)


def test_a_judge_of_its_own_for_the_evaluation_is_counted_for_itself(tmp_path: Path) -> None:
    found = planned(tmp_path, "llm-grade", eval_judge="llm-compare")
    assert found["calls"] == 2 * 10 * 4
    assert isinstance(found["eval"], dict)
    assert found["eval"]["calls"] == 2 * 3 * (3 + 2) * 1  # both orders, three evaluations, one pair of 1 + 1 responses
    assert planned(tmp_path, "llm-grade", eval_judge="exact")["calls"] == 2 * 10 * 4
