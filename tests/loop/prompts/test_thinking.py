"""Which tags stand around a model's thoughts: those of its chat template, unless the config says otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from judges import Thinking
from loop.config.settings import JudgeConfig, ModelConfig, ThinkingTags
from loop.engines.base import thought_tags, with_tags
from loop.prompts.row import PromptRow
from loop.prompts.thinking import find_thinking, tags_in, template_of
from loop.store import tables
from loop.workers.judge_service import JudgeService, JudgeTask
from tests.helpers.tiny import save_tokenizer

TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
ASKS = TURNS + "{% if add_generation_prompt %}assistant: TAIL{% endif %}"
SWITCH = ASKS.replace("TAIL", "{% if thinking is false %}<think>\n\n</think>\n\n{% endif %}")
MENTION = "{% if false %}{{ m['content'].split('</think>')[-1] }}{% endif %}" + ASKS.replace("TAIL", "")


@pytest.mark.parametrize(
    ("template", "tags"),
    [
        ("", ("<think>", "</think>")),
        ("{{ messages }}", ("<think>", "</think>")),
        ("{{ content.split('</think>')[-1] }}", ("<think>", "</think>")),
        ("{{ '[THINK]' + thought + '[/THINK]' }}", ("[THINK]", "[/THINK]")),
        ("<|START_THINKING|>{{ t }}<|END_THINKING|>", ("<|START_THINKING|>", "<|END_THINKING|>")),
        ("<|begin_of_thought|>{{ t }}<|end_of_thought|>", ("<|begin_of_thought|>", "<|end_of_thought|>")),
        ("<seed:think>{{ t }}</seed:think>", ("<seed:think>", "</seed:think>")),
        ("<reasoning>{{ t }}</reasoning><answer></answer>", ("<reasoning>", "</reasoning>")),
        ("<thought>{{ t }}</thought>", ("<thought>", "</thought>")),
        ("◁think▷{{ t }}◁/think▷", ("◁think▷", "◁/think▷")),
        ("<tool></tool><think>{{ t }}</think><thought></thought>", ("<think>", "</think>")),
    ],
)
def test_the_tags_of_a_family_are_found(template: str, tags: tuple[str, str]) -> None:
    assert tags_in(template) == Thinking(*tags)


def model(folder: Path, template: str | None, **kwargs: Any) -> ModelConfig:
    """The settings of a folder that has a tokenizer with this template, and no weights."""
    save_tokenizer(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return ModelConfig(base=str(folder), chat_template_kwargs=kwargs)


@pytest.mark.parametrize(
    ("template", "kwargs", "thinking"),
    [
        (None, {}, Thinking()),
        (TURNS, {}, Thinking()),
        (MENTION, {}, Thinking()),
        (ASKS.replace("TAIL", "<think>\n"), {}, Thinking(opened=True)),
        (TURNS + "assistant: <think>", {}, Thinking(opened=True)),
        (SWITCH, {}, Thinking()),
        (SWITCH, {"thinking": False}, Thinking()),
        (ASKS.replace("TAIL", "[THINK]") + "{# [/THINK] #}", {}, Thinking("[THINK]", "[/THINK]", opened=True)),
        ("{{ raise_exception('no') }}<think></think>", {}, Thinking()),
    ],
)
def test_a_prompt_that_opens_the_thought_is_seen(
    tmp_path: Path, template: str | None, kwargs: dict[str, Any], thinking: Thinking
) -> None:
    settings = model(tmp_path, template, **kwargs)
    assert find_thinking(None, settings, tmp_path) == thinking


def test_the_config_decides(tmp_path: Path) -> None:
    settings = model(tmp_path, ASKS.replace("TAIL", "<think>"))
    assert find_thinking("none", settings, tmp_path) is None
    assert find_thinking(ThinkingTags(open="<a>", close="</a>"), settings, tmp_path) == Thinking("<a>", "</a>")
    assert find_thinking(ThinkingTags(open="<think>", close="</t>"), settings, tmp_path) == Thinking(
        "<think>", "</t>", opened=True
    )
    assert find_thinking(None, ModelConfig(base=str(tmp_path / "nowhere"))) == Thinking()


def test_a_template_may_stand_in_the_tokenizers_settings(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "◁think▷◁/think▷"}]
    for template in ("◁think▷◁/think▷", named):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
        assert tags_in(template_of(tmp_path)) == Thinking("◁think▷", "◁/think▷")


@pytest.mark.parametrize("tags", [{"open": "<a>"}, {"open": "", "close": "x"}, {"open": "x", "close": "x"}, "tags", 3])
def test_other_settings_are_refused(tags: object) -> None:
    with pytest.raises(ValidationError):
        JudgeConfig.model_validate({"name": "gsm8k", "thinking": tags})


def test_special_tokens_around_a_thought_stay_in_the_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    tags = thought_tags(tokenizer)
    for text, shown in [
        ("[THINK]18[/THINK]20<eos>", "[THINK]18[/THINK]20"),
        ("[THINK]18", "[THINK]18"),
        ("20<eos>", "20"),
        ("1[/THINK]é<pad>", "1[/THINK]é"),
        ("", ""),
    ]:
        ids = tokenizer(text)["input_ids"]
        assert with_tags(tokenizer.decode(ids, skip_special_tokens=True), ids, tokenizer, tags) == shown


TEXTS = ["#### 18", "<think>#### 18</think>#### 20", "<think>#### 18", "[THINK]#### 18[/THINK]20"]


@pytest.mark.parametrize(
    ("thinking", "extracted"),
    [
        (None, ["18", "20", None, "18"]),
        ("none", ["18", "20", "18", "18"]),
        (ThinkingTags(open="[THINK]", close="[/THINK]"), ["18", "20", "18", "20"]),
    ],
)
def test_a_campaigns_judge_knows_them(tmp_path: Path, thinking: Any, extracted: list[str | None]) -> None:
    rows = [
        {"prompt_id": "p", "response_id": str(i), "text": text, "finish_reason": "stop"} for i, text in enumerate(TEXTS)
    ]
    (tmp_path / "shard").write_bytes(tables.to_bytes(rows, tables.RESPONSES, {}))
    settings = JudgeConfig(name="gsm8k", thinking=thinking)
    service = JudgeService(settings, tmp_path / "cache", (), model(tmp_path, TURNS), tmp_path)
    prompts = (PromptRow("p", [{"role": "user", "content": "?"}], "20", {}),)
    service.label(JudgeTask("s", tmp_path / "shard", tmp_path / "verdicts", prompts), lambda **_: None)
    table = tables.read(tmp_path / "verdicts")
    assert table["extracted"].to_pylist() == extracted
    assert table["why"].to_pylist()[2] == (
        "unparsable: the thought is not closed" if thinking is None else "####, expected 20"
    )


def test_only_other_tags_than_the_usual_ones_change_a_fingerprint(tmp_path: Path) -> None:
    def fingerprint(thinking: Any, template: str) -> dict[str, Any]:
        settings = JudgeConfig(name="gsm8k", thinking=thinking)
        return JudgeService(settings, tmp_path / "cache", (), model(tmp_path, template), tmp_path).fingerprint

    plain = JudgeService(JudgeConfig(name="gsm8k"), tmp_path / "cache").fingerprint
    assert set(plain) == {"name", "version", "args"}
    assert fingerprint(None, TURNS) == plain == fingerprint(ThinkingTags(open="<think>", close="</think>"), TURNS)
    assert fingerprint("none", TURNS) == plain | {"thinking": "none"}
    opened = {"open": "<think>", "close": "</think>", "opened": True}
    assert fingerprint(None, ASKS.replace("TAIL", "<think>")) == plain | {"thinking": opened}
