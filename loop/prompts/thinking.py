"""How a campaign's model marks its thoughts: with the tags of its chat template, or as the config says."""

import json
import re
from pathlib import Path
from typing import Any

from judges.types import USUAL, Thinking
from loop.config.settings import ModelConfig, ThinkingTags, ThinkingTagsOrNone
from loop.errors import UserError
from loop.prompts.chat_template import apply_template, chat_format
from loop.store.model_folder import resolve_base

SHAPES = (
    ("<{}>", "</{}>"),
    ("[{}]", "[/{}]"),
    ("<|{}|>", "<|/{}|>"),
    ("<|START_{}|>", "<|END_{}|>"),
    ("<|begin_of_{}|>", "<|end_of_{}|>"),
    ("◁{}▷", "◁/{}▷"),
)
"""How families of models write the tags around a word for thinking."""
WORD = r"((?i:[\w:.-]*(?:think|thought|reason)[\w:.-]*))"
QUESTION = "@@question@@"


def find_thinking(given: ThinkingTagsOrNone, model: ModelConfig, folder: Path | None = None) -> Thinking | None:
    """The tags around the thoughts of the campaign's model; None if all of a response is its answer. `folder` is where
    the base model was found, if it has been."""
    if given == "none":
        return None
    try:
        folder = folder or resolve_base(model.base)
    except UserError:
        return tags_in("", given)  # looking for the base model says what is wrong with it
    thinking = tags_in(template_of(folder), given)
    if thinking.open not in template_of(folder):
        return thinking
    return Thinking(thinking.open, thinking.close, _opens(folder, model, thinking))


def tags_in(template: str, given: ThinkingTags | None = None) -> Thinking:
    """The given tags, else the first that a chat template closes, else the usual ones."""
    if given is not None:
        return Thinking(given.open, given.close)
    found = [
        (match.start(), Thinking(opening.format(match[1]), closing.format(match[1])))
        for opening, closing in SHAPES
        for match in re.finditer(re.escape(closing).replace(r"\{\}", WORD), template)
    ]
    return min(found, key=lambda one: one[0])[1] if found else USUAL


def template_of(folder: Path) -> str:
    """The chat template of a model folder as text; empty if it has none."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    return found if isinstance(found, str) else json.dumps(found or "", ensure_ascii=False)


def _opens(folder: Path, model: ModelConfig, thinking: Thinking) -> bool:
    """Whether a prompt ends inside a thought."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": QUESTION}]
    try:
        asked = apply_template(tokenizer, messages, chat_format(model), "a question", asks=True)
    except UserError:
        return False  # a template for other conversations than this one
    after = asked.rpartition(QUESTION)[2]
    return after.rfind(thinking.open) > after.rfind(thinking.close)
