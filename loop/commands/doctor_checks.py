"""Checks a chat template against its tokenizer and stop tokens, and explains the consequence of each fault."""

from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from loop.errors import UserError
from loop.prompts.chat_template import ChatFormat, Renderer
from loop.prompts.preferences import PAIRS
from loop.prompts.row import PromptRow
from loop.store import tables
from loop.store.run_folder import RunFolder

QUESTION, ANSWER, SYSTEM = "@@question@@", "@@answer@@", "@@system@@"
"""Stand for texts where only what the template writes around them is of interest."""
USER = {"role": "user", "content": QUESTION}


KINDS_OF_ANSWERS = {"a plain one": "Yes.", "with a thought": "<think>So.</think>Yes.", "with blanks": "  Yes.\n"}
"""Answers that templates are known to change."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An `error` spoils a run, a `warning` may, a `note` is worth knowing."""

    level: Literal["error", "warning", "note"]
    what: str


@dataclass(frozen=True)
class TemplateCheck:
    """One tokenizer with its template; `uses_system` says whether the campaign has a system message."""

    tokenizer: Any
    stop_ids: Set[int]
    chat_template_kwargs: Mapping[str, Any]
    uses_system: bool

    def findings(self) -> list[Finding]:
        """All faults, in the order of the tokens: beginning, system message, header of the answer, its end."""
        if self.tokenizer.eos_token_id is None and not self.stop_ids:
            return [Finding("error", "neither tokenizer nor generation config names an end token: no response stops")]
        if not self.tokenizer.chat_template:
            text = "the tokenizer has no chat template: messages are joined by empty lines, and the answer follows"
            return [Finding("note", text)]
        try:
            return [*self._beginning(), *self._system(), *self._header(), *self._end(), *self._answers()]
        except Exception as error:  # noqa: BLE001  a template is foreign code
            return [Finding("error", f"the chat template refuses a question of the user: {error}")]

    def _beginning(self) -> list[Finding]:
        bos = self.tokenizer.bos_token_id
        ids = self._ids(self._text([USER], asks=True))
        if bos is not None and ids[:2] == [bos, bos]:
            return [Finding("error", f"the chat template begins with two {self.tokenizer.bos_token!r}")]
        return []

    def _system(self) -> list[Finding]:
        """Whether a system message gets into the prompt."""
        level: Literal["error", "note"] = "error" if self.uses_system else "note"
        way = "put that text into prompts.template" if self.uses_system else "leave prompts.system empty"
        try:
            text = self._text([{"role": "system", "content": SYSTEM}, USER], asks=True)
        except Exception as error:  # noqa: BLE001  a template is foreign code
            return [Finding(level, f"the chat template refuses a system message ({error}): {way}")]
        return [] if SYSTEM in text else [Finding(level, f"the chat template drops the system message silently: {way}")]

    def _answers(self) -> list[Finding]:
        """Which answers from data the template would not write as they are; sampled responses are never rendered."""
        renderer = Renderer(self.tokenizer, ChatFormat(self.chat_template_kwargs, on_change="allow"))
        found = []
        for what, text in KINDS_OF_ANSWERS.items():
            with suppress(UserError):  # the other findings explain it
                renderer.check([USER], [{"role": "assistant", "content": text}], what)
            if renderer.changed:
                found.append(f"{renderer.changed.pop()}")
        words = "the chat template changes answers from data (model.on_template_change says what happens to them)"
        return [Finding("note", f"{words}: {'; '.join(found)}")] if found else []

    def _header(self) -> list[Finding]:
        """Whether the prompt ends with the header of an answer."""
        if self._text([USER], asks=True) != self._text([USER], asks=False):
            return []
        text = "the chat template has no generation prompt: the policy itself has to begin the assistant's turn"
        return [Finding("warning", text)]

    def _end(self) -> list[Finding]:
        """Whether the model stops where the template ends a turn."""
        turn = [USER, {"role": "assistant", "content": ANSWER}]
        ends = [i for i in self._ids(self._text(turn, asks=False).partition(ANSWER)[2]) if i in self._special()]
        eos = self.tokenizer.eos_token
        if not ends:
            return [Finding("note", f"the chat template writes no end token after an answer; {eos!r} ends a response")]
        end = self.tokenizer.convert_ids_to_tokens(ends[0])
        if ends[0] not in self.stop_ids:
            text = f"turns end with {end!r}, at which the model does not stop: add it to its generation_config.json"
            return [Finding("error", text)]
        if ends[0] != self.tokenizer.eos_token_id:
            return [Finding("note", f"turns end with {end!r}, which is not the end token {eos!r}; both end it")]
        return []

    def _special(self) -> set[int]:
        return {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special} | set(self.stop_ids)

    def _text(self, messages: list[dict[str, str]], *, asks: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=asks, tokenize=False, **self.chat_template_kwargs
        )
        return text

    def _ids(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]


NOT_KNOWN = "I do not know."
"""The rejected answer of a pair that is made up."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as text. `trained`: its log-prob is part of the loss. `end`: a response stops with it."""

    id: int
    text: str
    trained: bool
    special: bool
    end: bool


@dataclass(frozen=True, slots=True)
class Stream:
    """A pair and where it is from."""

    origin: str
    prompt: list[Token]
    chosen: list[Token]
    rejected: list[Token]


def trained_pair(run: RunFolder, tokenizer: Any, stops: Set[int]) -> Stream | None:
    """The first pair of the run, by the very ids that were sampled and are trained; None before there is one."""
    for k in run.iterations():
        path = run.stage(k, "pair").pairs
        if run.stage(k, "pair").manifest() is None or not path.exists():
            continue
        pair = tables.read(path).slice(0, 1).to_pylist()[0]
        wanted = {pair["chosen_id"]: "chosen", pair["rejected_id"]: "rejected"}
        ids: dict[str, list[int]] = {}
        own, others = run.response_files(k)
        for responses in (*own, *others):
            for row in tables.read(responses, ["response_id", "prompt_token_ids", "token_ids"]).to_pylist():
                if part := wanted.get(row["response_id"]):
                    ids |= {"prompt": row["prompt_token_ids"], part: row["token_ids"]}
        if len(ids) == 3:
            return stream(f"the first pair of iteration {k}", tokenizer, stops, ids)
    return None


def made_up_pair(row: PromptRow, tokenizer: Any, stops: Set[int], chat: ChatFormat) -> Stream:
    """A campaign's first prompt with its first given pair, or with made-up answers: its target, and NOT_KNOWN."""
    renderer = Renderer(tokenizer, replace(chat, on_change="allow"))
    made_up = {"chosen": row.target or "Yes.", "rejected": NOT_KNOWN}
    turns = {part: [{"role": "assistant", "content": text}] for part, text in made_up.items()}
    given = row.columns[PAIRS][0] if PAIRS in row.columns else None
    ids = {"prompt": renderer.prompt(row.messages, row.id)}
    for part in turns:
        ids[part] = renderer.answer(row.messages, given[part] if given else turns[part], row.id)
    answers = "its first given pair" if given else "made-up answers"
    return stream(f"the first training prompt, with {answers}", tokenizer, stops, ids)


def stream(origin: str, tokenizer: Any, stops: Set[int], ids: dict[str, list[int]]) -> Stream:
    """Prompt tokens are read, all tokens of a response are trained, its end token too."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}

    def tokens(part: str) -> list[Token]:
        last, response = len(ids[part]) - 1, part != "prompt"
        return [
            Token(i, text_of(tokenizer, i), response, i in special, response and i in stops and place == last)
            for place, i in enumerate(ids[part])
        ]

    return Stream(origin, tokens("prompt"), tokens("chosen"), tokens("rejected"))


def text_of(tokenizer: Any, token: int) -> str:
    """What the token writes; a token that is a part of a letter by its own name."""
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else text
