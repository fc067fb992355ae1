"""Tokenise known answers as a policy would sample them: with the end token, without what a template adds after it. Only
for data that none of our policies sampled; sampled responses keep their own ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loop.errors import UserError
from loop.prompts.row import Message, PromptRow


def render(tokenizer: Any, row: PromptRow, chat_template_kwargs: Mapping[str, Any]) -> list[int]:
    """Token ids of the prompt, up to where the answer begins: the one place where the chat template is applied.

    A tokenizer without a chat template (a base model) gets the messages' texts, joined by empty lines.
    """
    if getattr(tokenizer, "chat_template", None):
        from jinja2 import TemplateError

        try:
            ids = tokenizer.apply_chat_template(
                row.messages, add_generation_prompt=True, tokenize=True, return_dict=False, **chat_template_kwargs
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in row.messages)
            raise UserError(
                f"The model's chat template refuses prompt {row.id} (roles: {roles}): {error}. If it knows no system "
                f"role, put that text into prompts.template instead of prompts.system."
            ) from error
    else:
        ids = plain_prompt(tokenizer, "\n\n".join(message["content"] for message in row.messages))
    return [int(token) for token in ids]


def plain_prompt(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text outside a chat, with what the tokenizer puts before it."""
    ids: list[int] = tokenizer(text)["input_ids"]
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]  # some tokenizers end every text; an answer has to follow
    return ids


MARK = "@@answer@@"
"""Placeholder for an answer where only the surrounding text matters."""


@dataclass(frozen=True)
class Renderer:
    """A model's tokenizer and chat template. Without `chat`, or if the model has no template, texts are tokenised as
    they are and an answer directly follows its prompt."""

    tokenizer: Any
    chat_template_kwargs: Mapping[str, Any]
    chat: bool = True

    def prompt(self, messages: Sequence[Message], where: str) -> list[int]:
        """Ids up to where the answer begins; `where` names the row in messages."""
        if not self._has_template:
            return plain_prompt(self.tokenizer, "\n\n".join(message["content"] for message in messages))
        return render(self.tokenizer, PromptRow(where, list(messages), None, {}), self.chat_template_kwargs)

    def answer(self, messages: Sequence[Message], turns: Sequence[Message], where: str) -> list[int]:
        """Ids of the turns that follow the prompt, up to the end token of the last one."""
        if not self._has_template:
            return [*self._ids("\n\n".join(turn["content"] for turn in turns)), *self._eos]
        before = self._text(messages, where, asks=True)
        whole = self._text([*messages, *turns], where, asks=False)
        answer = whole.removeprefix(before)
        if not whole.startswith(before) or not answer.endswith(self._tail):
            raise UserError(
                f"{where}: the model's chat template renders an answered conversation differently from the prompt "
                f"followed by the answer (the prompt ends with {before[-40:]!r}), so the answer has no tokens of its "
                "own. Set chat_template_kwargs so that both agree (e.g. enable_thinking: false), or use another "
                "template."
            )
        after = self._count_ends(self._ids(self._tail))
        if not after:
            return [*self._ids(answer.removesuffix(self._tail)), *self._eos]
        ids = self._ids(answer)
        ends = [at for at, id in enumerate(ids) if id in self._ends]
        return ids[: ends[-after] + 1]

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
        messages = [{"role": "user", "content": "-"}, {"role": "assistant", "content": MARK}]
        return self._text(messages, "A conversation of two turns", asks=False).partition(MARK)[2]

    def _count_ends(self, ids: Sequence[int]) -> int:
        return sum(id in self._ends for id in ids)

    def _text(self, messages: Sequence[Message], where: str, *, asks: bool) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=asks, tokenize=False, **self.chat_template_kwargs
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"{where}: the model's chat template refuses the roles {roles}: {error}.") from error
        return text

    def _ids(self, text: str) -> list[int]:
        return [int(id) for id in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
