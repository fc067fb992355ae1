"""Render chats with the policy's template and tokenise them.

Known answers are tokenised as a policy would sample them: with the end token, without what a template adds after it.
Only data that none of our policies sampled need that; sampled responses keep their own ids. A template that changes
what is trained is never silent: the text of an answer stands unchanged in what is rendered, or the answer counts as
changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from judges.models.chat_text import ids_of, special_tokens
from loop.config.settings import ModelConfig
from loop.config.types import OnTemplateChange, SpecialTokens
from loop.errors import UserError
from loop.prompts.row import Message, PromptRow

OPTIONS: dict[str, Literal["drop", "allow"]] = {"dropped": "drop", "trained as the template writes them": "allow"}
"""What happens to answers that the template changes, and the setting that says so."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How chats become tokens: the settings of `model` that say so."""

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    special_tokens: SpecialTokens = "text"
    on_change: OnTemplateChange = "refuse"


def chat_format(model: ModelConfig) -> ChatFormat:
    """The format that the section `model` asks for."""
    return ChatFormat(model.chat_template_kwargs, model.special_tokens, model.on_template_change)


def render(tokenizer: Any, row: PromptRow, chat: ChatFormat) -> list[int]:
    """Token ids of the prompt, up to where the answer begins: the one place where the chat template is applied.
    A tokenizer without a chat template (a base model) gets the messages' texts, joined by empty lines."""
    contents = [message["content"] for message in row.messages]
    if not getattr(tokenizer, "chat_template", None):
        return plain_prompt(tokenizer, "\n\n".join(contents), chat)
    text = apply_template(tokenizer, row.messages, chat, f"prompt {row.id}", asks=True)
    return encode(tokenizer, text, contents, chat)


def plain_prompt(tokenizer: Any, text: str, chat: ChatFormat) -> list[int]:
    """Token ids of a text outside a chat, with what the tokenizer puts before it."""
    as_text = chat.special_tokens == "text" and any(token in text for token in special_tokens(tokenizer))
    ids: list[int] = tokenizer(text, **({"split_special_tokens": True} if as_text else {}))["input_ids"]
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]  # some tokenizers end every text; an answer has to follow
    return [int(token) for token in ids]


def encode(tokenizer: Any, text: str, contents: Sequence[str], chat: ChatFormat) -> list[int]:
    """Token ids of a rendered chat whose messages have these contents. UserError if a content holds the name of a
    special token and the template changes it, too."""
    ids = ids_of(tokenizer, text, contents if chat.special_tokens == "text" else ())
    if ids is None:
        raise UserError(
            "A message holds the name of a special token, and the chat template changes the message, so that it cannot "
            f"be tokenised as text ({shown(text, 0)}). Remove the name from the data, or set special_tokens to token."
        )
    return ids


def apply_template(tokenizer: Any, messages: Sequence[Message], chat: ChatFormat, where: str, *, asks: bool) -> str:
    """The chat as the template writes it, with an answer's header if it `asks` for one. UserError names `where`."""
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=asks, tokenize=False, **chat.kwargs
        )
    except Exception as error:  # a template is foreign code, which raises anything
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"The model's chat template refuses {where} (roles: {roles}): {str(error).rstrip('.')}. If it knows no "
            f"system role, put that text into prompts.template instead of prompts.system."
        ) from error
    return text


MARK = "@@answer@@"
"""Placeholder for an answer where only the surrounding text matters."""


@dataclass(frozen=True)
class Renderer:
    """A model's tokenizer and chat template. Without `chat`, or if the model has no template, texts are tokenised as
    they are and an answer directly follows its prompt."""

    tokenizer: Any
    format: ChatFormat = ChatFormat()
    chat: bool = True
    changed: list[str] = field(default_factory=list)
    """For each answer so far that the template changes: where it is from, and what becomes of it."""

    def prompt(self, messages: Sequence[Message], where: str) -> list[int]:
        """Ids up to where the answer begins; `where` names the row in messages."""
        if not self._has_template:
            return plain_prompt(self.tokenizer, "\n\n".join(message["content"] for message in messages), self.format)
        return render(self.tokenizer, PromptRow(where, list(messages), None, {}), self.format)

    def answer(self, messages: Sequence[Message], turns: Sequence[Message], where: str) -> list[int]:
        """Ids of the turns that follow the prompt, up to the end token of the last one. No ids for an answer that the
        template changes, if such answers are to be dropped."""
        contents = [turn["content"] for turn in turns]
        if not self._has_template:
            return [*self._encode("\n\n".join(contents), ["\n\n".join(contents)]), *self._eos]
        answer = self._rendered(messages, turns, where)
        if self._changes(answer, contents, where) and self.format.on_change == "drop":
            return []
        after = sum(id in self._ends for id in self._encode(self._tail, ()))
        if not after:
            return [*self._encode(answer.removesuffix(self._tail), contents), *self._eos]
        ids = self._encode(answer, contents)
        ends = [at for at, id in enumerate(ids) if id in self._ends]
        return ids[: ends[-after] + 1]

    def check(self, messages: Sequence[Message], turns: Sequence[Message], where: str) -> None:
        """Note whether the template changes the answer, as `answer` does. UserError if such answers are refused."""
        if self._has_template:
            self._changes(self._rendered(messages, turns, where), [turn["content"] for turn in turns], where)

    def note(self) -> str | None:
        """How many answers the template changes, and what happens to them; None if it changes none."""
        if not self.changed:
            return None
        fate = next(words for words, setting in OPTIONS.items() if setting == self.format.on_change)
        return (
            f"the model's chat template changes {len(self.changed)} given answers, which are {fate} "
            f"(model.on_template_change={self.format.on_change}). The first: {self.changed[0]}"
        )

    def _changes(self, answer: str, contents: Sequence[str], where: str) -> bool:
        change = change_in(answer.removesuffix(self._tail).removeprefix(self._header), contents)
        if change is not None and self.format.on_change == "refuse":
            raise UserError(
                "The model's chat template changes a given answer, so another text would be trained. "
                f"{where}: {change}. Change "
                "the data or the template (model.chat_template_kwargs), or set model.on_template_change to drop, which "
                "leaves such answers out, or to allow."
            )
        if change is not None:
            self.changed.append(f"{where}: {change}")
        return change is not None

    def _rendered(self, messages: Sequence[Message], turns: Sequence[Message], where: str) -> str:
        """What the template writes for the turns after the prompt, with what follows them."""
        before = apply_template(self.tokenizer, messages, self.format, where, asks=True)
        whole = apply_template(self.tokenizer, [*messages, *turns], self.format, where, asks=False)
        answer = whole.removeprefix(before)
        if not whole.startswith(before) or not answer.endswith(self._tail):
            raise UserError(
                f"{where}: the model's chat template renders an answered conversation differently from the prompt "
                f"followed by the answer (the prompt ends with {before[-40:]!r}), so the answer has no tokens of its "
                "own. Set chat_template_kwargs so that both agree (e.g. enable_thinking: false), or use another "
                "template."
            )
        return answer

    @property
    def _has_template(self) -> bool:
        return self.chat and bool(getattr(self.tokenizer, "chat_template", None))

    @cached_property
    def _ends(self) -> set[int]:
        """Tokens that can end a turn: a template's own end of turn is a special token, though not always the `eos`."""
        special = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return special.union(self._eos)

    @property
    def _eos(self) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    @cached_property
    def _tail(self) -> str:
        """What the template writes after an answer: the end of the turn, a new line, with some the next header."""
        return self._around[1]

    @cached_property
    def _header(self) -> str:
        """What a template without a generation prompt writes before an answer: the policy has to write it, too."""
        asked = [{"role": "user", "content": "-"}]
        with_header, without = (self._of_two(asked, asks=asks) for asks in (True, False))
        return self._around[0].removeprefix(without) if with_header == without else ""

    @cached_property
    def _around(self) -> tuple[str, str]:
        """What the template writes before and after an answer, its prompt included."""
        messages = [{"role": "user", "content": "-"}, {"role": "assistant", "content": MARK}]
        before, _, after = self._of_two(messages, asks=False).partition(MARK)
        return before, after

    def _of_two(self, messages: Sequence[Message], *, asks: bool) -> str:
        return apply_template(self.tokenizer, messages, self.format, "a conversation of two turns", asks=asks)

    def _encode(self, text: str, contents: Sequence[str]) -> list[int]:
        return encode(self.tokenizer, text, contents, self.format)


def change_in(rendered: str, contents: Sequence[str]) -> str | None:
    """What a template did to the turns of an answer, apart from blanks around them; None if their texts stand in
    `rendered` as they are and, for a single turn, nothing else does."""
    at, end = rendered.find(contents[0]), 0
    before = rendered[: max(at, 0)]
    for content in contents:
        at = rendered.find(content, end)
        if at < 0:
            return f"{shown(content, _same(content, rendered))} becomes {shown(rendered, _same(content, rendered))}"
        end = at + len(content)
    if before.strip() or rendered[end:].strip():
        return f"{shown(contents[0], 0)} becomes {shown(rendered, 0)}"
    return None


def _same(one: str, other: str) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def shown(text: str, difference: int) -> str:
    """The text around the first difference, at most 60 characters, quoted."""
    start = max(0, difference - 20)
    return repr(("…" if start else "") + text[start : start + 60] + ("…" if len(text) > start + 60 else ""))
