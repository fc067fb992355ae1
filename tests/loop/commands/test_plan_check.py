"""What a config names is resolved before the first token is sampled, and everything that is wrong is told at once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from loop.commands.plan import make_plan, print_plan
from loop.config.load import load_config
from loop.errors import UserError
from loop.store.run_folder import RunFolder
from tests.helpers import inprocess, tiny

LOSS = '''
from trainer.losses.terms import loss

@loss(kind="pairs", needs=["reference"])
def foo(pairs, *, beta: float = 0.1):
    """A loss of one's own."""
    return -beta * pairs.delta
'''


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    tiny.save_model(folder / "model")
    tiny.save_prompts(folder / "prompts.jsonl")
    (folder / "judge.py").write_text(tiny.PARITY)
    (folder / "losses.py").write_text(LOSS)
    return folder


def settings(shared: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    given = tiny.settings(shared / "model", shared / "prompts.jsonl", shared / "judge.py")
    for name, values in sections.items():
        given[name] = {**given.get(name, {}), **values} if isinstance(values, dict) else values
    return given


def plan(folder: Path, given: dict[str, Any], *, check: bool) -> Any:
    (folder / "c.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    return make_plan(RunFolder(folder / "runs" / "c"), load_config(folder / "c.yaml"), check=check)


def refusal(folder: Path, given: dict[str, Any], *, check: bool) -> str:
    with pytest.raises(UserError) as caught:
        plan(folder, given, check=check)
    return str(caught.value)


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


CHEAP: dict[str, tuple[dict[str, Any], str]] = {
    "mix": ({"train": {"mix": {"path": "/no/mix.jsonl"}}}, "train.mix.path: there is no file /no/mix.jsonl"),
    "offline": ({"pairs": {"offline": {"path": "/no/o.jsonl", "share": 0.5}}}, "pairs.offline.path: there is no file"),
    "prompts": ({"prompts": {"path": "/no/p.jsonl"}}, "prompts.path: there is no file /no/p.jsonl"),
    "test prompts": ({"prompts": {"test_path": "/no/t.jsonl"}}, "prompts.test_path: there is no file"),
    "examples": ({"judge": {"examples": "/no/e.jsonl"}}, "judge.examples: there is no file"),
    "judge's file": ({"judge": {"name": "/no/j.py:J"}}, "judge.name: there is no file /no/j.py"),
    "judge": ({"judge": {"name": "exat"}}, "judge.name: there is no judge 'exat'. Did you mean 'exact'?"),
    "judge of the evaluation": ({"eval": {"judge": {"name": "mth"}}}, "eval.judge.name: there is no judge 'mth'"),
    "loss": ({"train": {"loss": "/no/l.py:foo"}}, "train.loss: there is no file /no/l.py"),
    "loss in a sum": ({"train": {"loss": [{"name": "dpo"}, {"name": "/no/l.py:foo"}]}}, "train.loss: there is no file"),
    "model": ({"model": {"base": "/no/model"}}, "model.base: there is no folder or file /no/model"),
    "model file": ({"model": {"base": "no.gguf"}}, "model.base: there is no folder or file"),
    "model package": ({"model": {"base": "pypi:no-such-model"}}, "the package no-such-model is not installed"),
    "threads": ({"threads": 4096}, "threads=4096 is more than the"),
    "iteration": ({"per_iteration": {9: {"train.beta": 0.2}}}, "per_iteration.9: there are only 2 iterations"),
    "limits": (
        {"promote": {"limits": {"perplexity_ratio": 1.2, "text": "/no/l.txt"}}},
        "promote.limits.text: there is no file /no/l.txt",
    ),
    "vllm's parameters": ({"eval": {"extra": {"top_k": 3}}}, "the transformers engine has none of them"),
    "later iterations": ({"train": {"mix": [None, {"path": "/no/2.jsonl"}]}}, "there is no file /no/2.jsonl"),
}


@pytest.mark.parametrize("what", CHEAP)
def test_what_is_not_there_is_told_by_plan_alone(shared: Path, tmp_path: Path, what: str) -> None:
    change, words = CHEAP[what]
    assert words in refusal(tmp_path, settings(shared, **change), check=False)


CONTRADICTIONS = [
    ({"sampling": {"n": 1}}, "compares responses to one prompt, and sampling.n is 1"),
    ({"prompts": {"template": "the same"}}, "it names no column, so every prompt would be the same"),
    ({"model": {"base": " "}}, "the name is empty"),
    ({"sampling": {"min_tokens": 13}}, "sampling.min_tokens (13) is more than the max_tokens (12)"),
    ({"eval": {"min_tokens": 9, "max_tokens": 8}}, "eval.min_tokens (9) is more than the max_tokens (8)"),
    ({"sampling": {"logit_bias": {3: 101}}}, "sampling.logit_bias.3 is 101: Input should be less"),
    ({"sampling": {"bad_words": [" "]}}, "sampling.bad_words"),
    ({"judge": {"thinking": {"close": "</think>"}}}, "judge.thinking.open is missing"),
]


@pytest.mark.parametrize(("change", "words"), CONTRADICTIONS)
def test_what_cannot_work_is_refused_when_the_config_is_read(
    shared: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    text = refusal(tmp_path, settings(shared, **change), check=False)
    assert words in text
    assert "\n\n" not in text


def test_an_override_without_a_value_is_refused(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings(shared)), encoding="utf-8")
    with pytest.raises(UserError, match=r"'train.beta=' gives no value; write train.beta=null for none"):
        load_config(tmp_path / "c.yaml", ["train.beta="])


DEEP: dict[str, tuple[Any, str]] = {
    "loss without a name": ({"train": {"loss": "SHARED/losses.py:bar"}}, "the loss 'SHARED/losses.py:bar' cannot be"),
    "loss's arguments": ({"train": {"loss": {"name": "SHARED/losses.py:foo", "gama": 1}}}, "gama"),
    "loss's module": ({"train": {"loss": "no_module:foo"}}, "the loss 'no_module:foo' cannot be imported"),
    "mix's columns": (
        {"train": {"mix": {"path": "SHARED/prompts.jsonl"}}},
        "expected prompt and response, or messages",
    ),
    "offline's columns": ({"pairs": {"offline": {"path": "SHARED/prompts.jsonl", "share": 0.5}}}, "no column 'chosen'"),
    "prompts' column": ({"prompts": {"prompt_column": "promt"}}, "no column 'promt'"),
    "more prompts than there are": ({"prompts": {"train": 4800}}, "need 4814"),
    "judge's arguments": ({"judge": {"args": {"rihgt": 1}}}, "rihgt"),
    "judge's class": ({"judge": {"name": "SHARED/judge.py:Parityy"}}, "has no 'Parityy'"),
    "context": ({"engine": {"max_model_len": 4096}}, "engine.max_model_len=4096 is more than the 512 positions"),
    "every prompt too long": ({"engine": {"max_model_len": 16}}, "Every train prompt is too long: the shortest of"),
    "stop token": (
        {"sampling": {"stop_token_ids": [258]}},
        "the token 258, but the model has the tokens 0 to 257",
    ),
    "biased token": ({"sampling": {"logit_bias": {999: 1}}}, "logit_bias names the token 999"),
    "tracker": ({"trackers": {"names": ["no_module:Tracker"]}}, "trackers.names: 'no_module:Tracker' cannot be used"),
    "adapters on a tied head": ({"train": {"lora": {"target_modules": ["lm_head"]}}}, "which has the same weight"),
    "adapters on no layer": ({"train": {"lora": {"target_modules": ["q_proj", "qkv"]}}}, "it has no layer qkv"),
    "reference": ({"reference": "path", "reference_path": "SHARED"}, "has no config.json"),
}


def filled(value: Any, shared: Path) -> Any:
    return json.loads(json.dumps(value).replace("SHARED", str(shared)))


@pytest.mark.parametrize("what", DEEP)
def test_what_cannot_be_used_is_told_by_plan_check(shared: Path, tmp_path: Path, what: str) -> None:
    change, words = filled(DEEP[what], shared)
    assert words in refusal(tmp_path, settings(shared, **change), check=True)


def test_all_wrong_names_are_told_in_one_list(shared: Path, tmp_path: Path) -> None:
    chosen = ("loss's module", "mix's columns", "offline's columns", "judge's arguments", "tracker")
    given = settings(shared)
    expected = []
    for what in chosen:
        change, words = filled(DEEP[what], shared)
        for section, values in change.items():
            given[section] = {**given.get(section, {}), **values}
        expected.append(words)
    given["eval"]["judge"] = {"name": "exat"}
    given["threads"] = 4096
    text = refusal(tmp_path, given, check=True)
    for words in (*expected, "no judge 'exat'", "threads=4096"):
        assert words in text
    assert text.startswith("8 things in the config cannot be used:\n  1. ")


EMPTY = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]},
    {"prompt": "q", "response": "  "},
]


def test_a_mix_without_a_text_is_refused_and_empty_examples_are_counted(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines(tmp_path / "mix.jsonl", EMPTY)
    given = settings(shared, train={"mix": {"path": path}})
    words = f"None of the 2 examples in {path} can be trained on: 1 empty prompt, 1 empty response. Correct them"
    assert words in refusal(tmp_path, given, check=True)
    lines(tmp_path / "mix.jsonl", [*EMPTY, {"prompt": "q", "response": "a", "system": "b"}])
    print_plan(plan(tmp_path, given, check=True))
    note = f"note: {path}: 2 of 3 examples are left out (1 empty prompt, 1 empty response)"
    assert note in capsys.readouterr().out.splitlines()


def test_what_a_template_does_to_blanks_is_shown_as_it_is(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "model", tmp_path / "trims")
    template = tiny.TEMPLATE.replace("m['content']", "m['content'] | trim").replace("a:", "{% if true %}a:{% endif %}")
    (tmp_path / "trims" / "chat_template.jinja").write_text(template, encoding="utf-8")
    path = lines(tmp_path / "mix.jsonl", [{"prompt": "q", "response": "    return 1\n"}])
    given = settings(shared, model={"base": str(tmp_path / "trims")}, train={"mix": {"path": path}})
    assert r"row 1: '    return 1\n' becomes 'return 1" in refusal(tmp_path, given, check=True)


def test_a_template_that_writes_the_date_is_noted(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "model", tmp_path / "dated")
    dated = "{% if not date_string %}{% set date_string = strftime_now('%d %b') %}{% endif %}{{ date_string }}"
    (tmp_path / "dated" / "chat_template.jinja").write_text(dated + tiny.TEMPLATE, encoding="utf-8")
    model: dict[str, Any] = {"base": str(tmp_path / "dated")}
    (note,) = plan(tmp_path, settings(shared, model=model), check=True).checked["notes"]
    assert "writes the date of the day" in note
    model["chat_template_kwargs"] = {"date_string": "26 Jul 2024"}
    assert "notes" not in plan(tmp_path, settings(shared, model=model), check=True).checked


@pytest.mark.parametrize("judge", ["exact", "contains", "number", "gsm8k", "math", "regex"])
def test_every_target_is_tried_on_the_judge_before_anything_is_sampled(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: str
) -> None:
    rows = [{"prompt": f"{i} + 1 =", "target": None if i == 17 else str(i + 1)} for i in range(40)]
    data = {"path": lines(tmp_path / "p.jsonl", rows), "train": 26, "per_iteration": None}
    args = {"pattern": "(?P<answer>.*)"} if judge == "regex" else {}
    given = settings(shared, prompts=data) | {"judge": {"name": judge, "args": args}}
    text = refusal(tmp_path, given, check=True)
    assert "has no target" in text or "its target is None" in text
    assert "The prompt begins with '17 + 1 ='" in text
    with pytest.raises(UserError, match="target"):
        run_it(monkeypatch, tmp_path)
    assert not list((tmp_path / "runs").glob("*/iter_*/*/*.parquet"))


def test_a_run_tells_all_wrong_names_before_it_samples(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = filled({**DEEP["loss's module"][0]["train"], **DEEP["mix's columns"][0]["train"]}, shared)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings(shared, train=change)), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"2 things in the config cannot be used:\n  1\. .*no_module.*\n  2\. .*messages"
    ):
        run_it(monkeypatch, tmp_path)
    assert not list((tmp_path / "runs").glob("*/iter_*/*/*.parquet"))


def test_a_loss_of_a_file_trains(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = {"train": {"loss": f"{shared / 'losses.py'}:foo"}, "iterations": 1}
    checked = plan(tmp_path, settings(shared, **change), check=True).checked
    assert checked is not None
    root = run_it(monkeypatch, tmp_path)
    assert RunFolder(root).decision(1) is not None


def run_it(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    return inprocess.run_here(monkeypatch, folder, yaml.safe_load((folder / "c.yaml").read_text()), "c")
