"""The doctor shows the very tokens that are trained, and finds each fault of a chat template."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from loop.cli.main import app
from loop.commands.doctor import examine, print_report, stream_text
from loop.commands.doctor_checks import TemplateCheck, Token
from loop.store.run_folder import RunFolder
from tests.helpers import tiny
from tests.helpers.campaigns import Cli, copy_run, read, rows


@pytest.fixture(scope="module")
def tokenizer(toys: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(toys / "model")


def found(tokenizer: Any, template: str | None, *, system: bool = False, stops: frozenset[int] | None = None) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    stops = frozenset({tiny.EOS}) if stops is None else stops
    return [(f.level, f.what) for f in TemplateCheck(changed, stops, {}, uses_system=system).findings()]


TURNS = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<eos>{% endfor %}"
ASK = "{% if add_generation_prompt %}assistant:{% endif %}"


def test_a_sound_template_has_no_fault(tokenizer: Any) -> None:
    assert found(tokenizer, TURNS + ASK, system=True) == []


@pytest.mark.parametrize(
    ("template", "level", "words"),
    [
        (None, "note", "no chat template"),
        (TURNS, "warning", "no generation prompt"),
        (TURNS.replace("<eos>", "\n") + ASK, "note", "no end token after an answer"),
        (TURNS.replace("<eos>", "<pad>") + ASK, "error", "at which the model does not stop"),
        (
            TURNS.replace(
                "{{ m['role'] }}:{{ m['content'] }}<eos>",
                "{% if m['role'] != 'system' %}{{ m['role'] }}:{{ m['content'] }}<eos>{% endif %}",
            )
            + ASK,
            "error",
            "drops the system message",
        ),
        ("{{ raise_exception('no') if messages[0]['role'] == 'system' }}" + TURNS + ASK, "error", "refuses a system"),
        ("{{ raise_exception('never') }}", "error", "refuses a question"),
    ],
)
def test_each_fault_of_a_template_is_found(tokenizer: Any, template: str | None, level: str, words: str) -> None:
    ((was, what),) = found(tokenizer, template, system=True)
    assert was == level
    assert words in what


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{{ m['content'] | trim }}", r"with blanks: '  Yes.\n' becomes 'Yes.'"),
        ("{{ m['content'].split('</think>')[-1] }}", "with a thought: '<think>So.</think>Yes.' becomes 'Yes.'"),
        ("<think></think>{{ m['content'] }}", "a plain one: 'Yes.' becomes '<think></think>Yes.'"),
    ],
)
def test_answers_that_the_template_would_change_are_shown(tokenizer: Any, written: str, words: str) -> None:
    template = TURNS.replace(
        "{{ m['content'] }}", f"{{% if m['role'] == 'assistant' %}}{written}{{% else %}}q{{% endif %}}"
    )
    ((level, what),) = found(tokenizer, template + ASK)[-1:]
    assert level == "note"
    assert words in what


def test_a_system_message_that_nobody_uses_is_only_noted(tokenizer: Any) -> None:
    refusing = "{{ raise_exception('no') if messages[0]['role'] == 'system' }}" + TURNS + ASK
    assert [level for level, _ in found(tokenizer, refusing)] == ["note"]


def test_two_begin_tokens_are_an_error(tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.bos_token = "<pad>"
    ((level, what),) = found(changed, "<pad><pad>" + TURNS + ASK)
    assert (level, "begins with two '<pad>'" in what) == ("error", True)


def test_an_end_of_turn_that_stops_but_is_not_the_end_token_is_noted(tokenizer: Any) -> None:
    ((level, what),) = found(tokenizer, TURNS.replace("<eos>", "<pad>") + ASK, stops=frozenset({tiny.EOS, tiny.PAD}))
    assert level == "note"
    assert "'<pad>', which is not the end token '<eos>'" in what


def test_a_model_without_an_end_token_is_an_error(tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.eos_token = None
    assert [level for level, _ in found(changed, TURNS, stops=frozenset())] == ["error"]


def test_the_pair_of_a_run_is_shown_by_the_ids_that_were_trained(reference: Path) -> None:
    told = examine(str(reference), Path("runs")).as_json()
    pair = rows(reference / "iter-001" / "pair" / "pairs.parquet")[0]
    sampled = {r["response_id"]: r for r in rows(*sorted((reference / "iter-001" / "sample").glob("*.parquet")))}
    shown = told["pair"]
    assert [t["id"] for t in shown["prompt"]] == sampled[pair["chosen_id"]]["prompt_token_ids"]
    for part, key in (("chosen", "chosen_id"), ("rejected", "rejected_id")):
        response = sampled[pair[key]]
        assert [t["id"] for t in shown[part]] == response["token_ids"]
        assert all(t["trained"] for t in shown[part])
        assert shown[part][-1]["end"] == (response["finish_reason"] == "stop")
    assert not any(t["trained"] or t["end"] for t in shown["prompt"])
    gaps = {k: read(reference / f"iter-00{k}" / "train" / "manifest.json")["counts"]["sampler_gap"] for k in (1, 2)}
    assert told["sampler_gap"] == gaps


def test_a_config_without_a_run_shows_its_first_prompt(cli: Cli, settings: dict[str, Any]) -> None:
    told = examine(str(cli.write(settings)), cli.runs).as_json()
    assert "made-up" in told["pair"]["origin"]
    assert "".join(t["text"] for t in told["pair"]["prompt"]).endswith("a:")
    last = {"id": tiny.EOS, "text": "<eos>", "trained": True, "special": True, "end": True}
    assert told["pair"]["chosen"][-1] == last
    assert told["engine"]["chosen"] == "transformers"
    assert told["versions"]["torch"]
    assert not cli.runs.exists()
    changed = examine(str(cli.write(settings)), cli.runs, ["engine.kind=vllm"]).as_json()
    assert changed["engine"]["why"] == "engine.kind is vllm"


def test_a_gap_that_is_too_wide_is_a_warning(cli: Cli, reference: Path) -> None:
    run = RunFolder(copy_run(reference, cli))
    path = run.stage(2, "train").manifest_path
    manifest = read(path)
    manifest["counts"]["sampler_gap"] = 0.4
    path.write_text(json.dumps(manifest), encoding="utf-8")
    warnings = [f["what"] for f in examine(run.name, cli.runs).as_json()["findings"] if f["level"] == "warning"]
    assert [what for what in warnings if "in iteration 2" in what and "0.400 nat" in what]


def test_without_a_source_only_this_machine_is_examined(tmp_path: Path) -> None:
    told = examine(None, tmp_path).as_json()
    assert told.keys() == {"versions", "devices", "engine", "findings"}
    assert told["devices"][-1]["kind"] == "cpu"


def test_a_model_that_is_not_there_is_a_finding_and_exit_code_1(cli: Cli, settings: dict[str, Any]) -> None:
    config = cli.write(settings | {"model": {"base": str(cli.folder / "nowhere")}})
    ended = CliRunner().invoke(app, ["doctor", str(config), "--json", "--runs", str(cli.runs)])
    assert ended.exit_code == 1
    assert "nowhere" in json.loads(ended.output)["findings"][-1]["what"]


def test_adapters_that_the_model_cannot_have_are_a_finding(cli: Cli, settings: dict[str, Any]) -> None:
    settings["train"]["lora"] = {"target_modules": ["w_pack"]}
    ended = CliRunner().invoke(app, ["doctor", str(cli.write(settings)), "--json", "--runs", str(cli.runs)])
    assert ended.exit_code == 1
    assert "w_pack" in json.loads(ended.output)["findings"][-1]["what"]


def test_the_stream_is_readable_and_marks_special_and_end(reference: Path) -> None:
    token = Token(1, "a b", trained=True, special=False, end=False)
    line = [token, replace(token, text="\n"), replace(token, text="<eos>", special=True, end=True)]
    assert stream_text(line).plain == "a·b|⏎|‹<eos>› END"
    console = Console(record=True, width=200, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    print_report(examine(str(reference), Path("runs")), console)
    text = console.export_text()
    title = "prompt    (read, not trained)"
    for words in ("engine: transformers", title, "nat per token", "a response stops at <eos>"):
        assert words in text
