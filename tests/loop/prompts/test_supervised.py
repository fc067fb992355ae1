"""The file of `train.mix`: which tokens a row becomes, where its path may stand, what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from loop.config.load import load_config
from loop.errors import UserError
from loop.prompts.chat_template import Renderer
from loop.prompts.supervised import mix_digest, read_mix
from loop.workers.train_service import TrainTask, read_examples
from tests.helpers import tiny
from tests.helpers.campaigns import Cli, read, refusal
from trainer.settings import MixSettings, TrainSettings
from trainer.spec import RoundSpec


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A folder with a tokenizer, which is all that reading needs."""
    tiny.save_tokenizer(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def tokenizer(policy: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = tiny.TEMPLATE.replace("a:", "{% if add_generation_prompt %}a:{% endif %}")
    return tokenizer


def save(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_rows_become_examples_in_the_policys_tokens(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "hi", "response": "ho"}, {"prompt": "hi", "response": " "}, {"prompt": "", "response": "ho"}]
    data = read_mix(save(tmp_path / "mix.jsonl", rows), Renderer(tokenizer))
    found = [(tokenizer.decode(g.token_ids), tokenizer.decode(g.responses[0].token_ids)) for g in data.groups]
    assert found == [("u:hi\na:", "ho<eos>"), ("u:hi\na:", ""), ("", "")]  # the trainer drops and counts the empty ones
    assert [(s.prompt_id, s.good) for s in data.relations] == [(f"mix row {n}", True) for n in (1, 2, 3)]  # type: ignore[union-attr]


def test_messages_end_with_the_answer(tmp_path: Path, tokenizer: Any) -> None:
    talk = [message("system", "be brief"), message("user", "hi"), message("assistant", "ho")]
    (group,) = read_mix(save(tmp_path / "mix.jsonl", [{"messages": talk}]), Renderer(tokenizer)).groups
    assert tokenizer.decode(group.token_ids) == "s:be brief\nu:hi\na:"
    assert tokenizer.decode(group.responses[0].token_ids) == "ho<eos>"


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, tokenizer: Any) -> None:
    render = Renderer(tokenizer)
    with pytest.raises(UserError, match=r"has the columns prompt, answer, expected prompt and response, or messages"):
        read_mix(save(tmp_path / "a.jsonl", [{"prompt": "hi", "answer": "ho"}]), render)
    with pytest.raises(UserError, match=r"b\.jsonl, row 1, column 'messages': .* ends with the role 'user' after 1"):
        read_mix(save(tmp_path / "b.jsonl", [{"messages": [message("user", "hi")]}]), render)
    with pytest.raises(UserError, match=r"train\.mix\.path: .*c\.jsonl is empty"):
        read_mix(save(tmp_path / "c.jsonl", []), render)
    with pytest.raises(UserError, match=r"train\.mix\.path: there is no file .*d\.jsonl\. Put it there"):
        mix_digest(str(tmp_path / "d.jsonl"))


def test_a_task_without_a_mix_has_no_examples(tmp_path: Path, policy: Path) -> None:
    def task(settings: TrainSettings) -> TrainTask:
        at = tmp_path / "x"
        return TrainTask("t", RoundSpec(policy, "h", policy, "h", at, at, settings, 0, 1), "h", (), at, at)

    assert read_examples(task(TrainSettings())) is None
    mix = MixSettings(path=save(tmp_path / "mix.jsonl", [{"prompt": "hi", "response": "ho"}]))
    found = read_examples(task(TrainSettings(mix=mix)))
    assert found is not None
    assert list(found.groups[0].responses[0].token_ids)[-1] == tiny.EOS


def test_its_path_is_absolute_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = {"prompts": {"source": "file", "path": "p.jsonl"}, "judge": {"name": "exact"}}
    given: dict[str, Any] = {
        "one": {"train": {"mix": {"path": "a.jsonl"}}},
        "schedule": {"train": {"mix": [{"path": "a.jsonl"}, None]}},
        "paths": {"train": {"mix": {"path": ["a.jsonl", "b.jsonl"]}}},
        "override": {"per_iteration": {1: {"train.mix": {"path": "a.jsonl"}}}},
    }
    for name, more in given.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(base | more), encoding="utf-8")
        loaded = load_config(tmp_path / f"{name}.yaml")
        mix = loaded.at(1).train.mix
        assert mix is not None, name
        assert mix.path == str(tmp_path / "a.jsonl"), name
        second = loaded.at(2).train.mix
        assert (second.path if second else None) == {
            "one": str(tmp_path / "a.jsonl"),
            "paths": str(tmp_path / "b.jsonl"),
        }.get(name), name


@pytest.mark.slow
def test_a_campaign_trains_with_a_warm_start_and_a_mix(cli: Cli, settings: dict[str, Any]) -> None:
    rows = [{"prompt": f"{n}?", "response": "no"} for n in range(5)]
    path = cli.folder / "mix.jsonl"
    settings["train"] |= {"mix": {"path": save(path, rows), "per_step": 2}, "warm_start": {"epochs": 1}}
    config = cli.write(settings | {"iterations": 1})
    ended = cli("run", config)
    assert (ended.code, ended.err) == (0, ""), ended.out + ended.err
    assert "both after a warm start on the chosen responses" in ended.out
    stage = cli.runs / "campaign" / "iter-001" / "train"
    counts = read(stage / "manifest.json")["counts"]
    steps = [json.loads(line) for line in (stage / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    assert counts["mix"] == {"examples": 5, "dropped": {}, "trained": sum(step["mix_examples"] for step in steps)}
    assert counts["warm_start"]["steps"] > 0
    assert (counts["first"]["margin"], counts["sampler_gap"]) == (0.0, None)
    assert not (stage / "work").exists()

    assert cli("run", config).code == 0
    save(path, rows[:-1])
    assert "iteration 1, stage train" in (told := refusal(cli("run", config)))
    assert "was made from data that differ" in told
    path.unlink()
    assert "train.mix.path: there is no file" in refusal(cli("run", config))
