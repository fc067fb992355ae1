"""Base class of the LLM judges: fills a template, and asks an endpoint or a model of the loop."""

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from judges.context import Generate, LocalModel, Messages, ModelRef, Usage
from judges.llm.api import import_openai, read_key
from judges.llm.asking import Answered, Ask, Asker, Failed, from_store, stored
from judges.llm.settings import LLMSettings
from judges.llm.template import Question, conversation, fenced
from judges.llm.verdict import Form, Read, Scale, instruction, read_reply, response_format, schema_of
from judges.remember import key_of
from judges.types import JudgeError, Prompt
from judges.versions import identity_of

CHARACTERS_PER_TOKEN = 3
"""A cautious estimate for a template's text; English has about four."""

DECIDING = ("dtype", "max_model_len")
"""Engine settings that affect replies; the others affect only speed."""

FORMS: dict[str, tuple[Form, ...]] = {"auto": ("json", "line"), "json": ("json",), "none": ("line",)}
"""The forms of a verdict to request for each value of `structured`, the preferred one first."""


class LLM(LLMSettings):
    """A judge that asks a language model."""

    version = "3"
    names: ClassVar[tuple[str, ...]] = ("response",)
    """Names of the responses in their marks."""
    _form: int = 0
    """The form of the request that the endpoint accepts."""

    @property
    @abstractmethod
    def _scale(self) -> Scale:
        """The allowed verdicts and their values."""

    @property
    def content_version(self) -> str:
        """The template's hash; with a separate engine also the model's and the settings that affect replies."""
        if not self.local:
            return self._template.digest
        deciding = {name: self.engine_settings[name] for name in DECIDING if name in self.engine_settings}
        return "+".join([self._template.digest, self._found.digest, *map(str, sorted(deciding.items()))])

    @cached_property
    def _found(self) -> ModelRef:
        return self.context.find(str(self.model))

    @property
    def local_model(self) -> LocalModel | None:
        if not self.local:
            return None
        settings, reply = self.engine_settings, self.max_tokens or 0
        return LocalModel(self.engine, self._found, settings, self.chat_template_kwargs, reply)

    @property
    def needs(self) -> frozenset[str]:
        if self.engine == "api":
            return frozenset()
        return frozenset({"generate" if self.engine == "policy" else "engine"})

    def ready(self) -> None:
        if self.engine == "api":
            import_openai()
            read_key(self.api_key_env)
        if self.local:
            assert self._found  # raises now if the model cannot be found

    def cost(self, usage: Usage) -> float | None:
        return self.budget.cost(usage)

    @property
    def longest_call(self) -> tuple[int, int, int]:
        own = self.rubric + "".join(text for _, text in self._template.messages)
        return len(own) // CHARACTERS_PER_TOKEN, len(self.slots), self.max_tokens or 0

    def reads(self, questions: Sequence[Question]) -> list[Read | Failed]:
        """Read the model's replies, question by question; replies in the store are not requested again."""
        keys = [key_of(self, q.prompt, q.responses, columns=self._template.columns, vote=q.vote) for q in questions]
        known = {key: from_store(text) for key in keys if (text := self.context.store.get(key)) is not None}
        for answered in known.values():
            self.context.on_usage(answered.reply.usage, True)
        asks = [
            Ask(key, tuple(self._body(question, key, form) for form in FORMS[self.structured]))
            for question, key in zip(questions, keys, strict=True)
            if key not in known
        ]
        answers = known | (self._answered(asks) if self.engine == "api" else self._generated(asks))
        return [self._read(q, key, answers[key]) for q, key in zip(questions, keys, strict=True)]

    def _answered(self, asks: Sequence[Ask]) -> dict[str, Answered | Failed]:
        if not asks:
            return {}
        asker = Asker(self, self._form)
        try:
            return asyncio.run(asker.run(asks))
        finally:
            self._form = asker.form

    def _generated(self, asks: Sequence[Ask]) -> dict[str, Answered | Failed]:
        distinct = list({ask.key: ask for ask in asks}.values())
        if not distinct:
            return {}
        if self.context.generate is None:
            model = "the policy in the sampling engine" if self.engine == "policy" else "its model in an engine"
            raise JudgeError(
                f"Judge {type(self).__name__} with engine: {self.engine} asks {model}, which is missing here. Use it "
                f"in a campaign, or use an endpoint: engine: api with base_url and model."
            )
        assert self.temperature is not None
        assert self.max_tokens is not None
        form = self._local_form(self.context.generate)
        replies = self.context.generate(
            [ask.bodies[form]["messages"] for ask in distinct],
            [int(ask.key[-8:], 16) >> 1 for ask in distinct],
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            schema=schema_of(self._scale, self.max_tokens) if FORMS[self.structured][form] == "json" else None,
        )
        answers = {ask.key: Answered(reply, form) for ask, reply in zip(distinct, replies, strict=True)}
        for key, answered in answers.items():
            usage = answered.reply.usage + Usage(calls=1)
            self.context.store.put(key, stored(answered), identity_of(self), usage)
            self.context.on_usage(usage, False)
        return dict(answers)

    def _local_form(self, generate: Generate) -> int:
        """The form to request from a local model; JudgeError if it needs a schema that the engine cannot enforce."""
        if "json" not in FORMS[self.structured] or generate.structured:
            return 0
        if "line" not in FORMS[self.structured]:
            raise JudgeError(
                f"Judge {type(self).__name__} with structured: json needs an engine that constrains replies to a "
                "schema, and transformers does not. Use vllm, or set structured: auto, which asks for a verdict line."
            )
        return FORMS[self.structured].index("line")

    def _body(self, question: Question, key: str, form: Form) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": self.messages(question, key, form)}
        options = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        body |= {name: value for name, value in options.items() if value is not None}
        if form == "json":
            body["response_format"] = response_format(self._scale)
        return body | self.request

    def messages(self, question: Question, key: str, form: Form) -> Messages:
        """The messages to send; every text by a person or a model is put between marks with a code."""
        prompt, code = question.prompt, question.code(key, self._template.columns)
        shown = question.shown(self.names, code)
        values = {
            "question": fenced("question", conversation(prompt), code),
            "reference": self._reference(prompt, code),
            "rubric": self.rubric,
            "verdict": instruction(self._scale, form, code),
            "code": code,
            **dict(zip(self.slots, shown, strict=True)),
            **{f"columns[{name}]": self._column(prompt, name, code) for name in self._template.columns},
        }
        return self._template.fill(values)

    def _reference(self, prompt: Prompt, code: str) -> str:
        known = prompt.target is not None and bool(prompt.target.strip())
        if self.reference == "always" and not known:
            raise JudgeError(
                f"Prompt {prompt.id!r} has no target, but judge.args.reference is always. Map the column with the "
                f"known answer to the target, or set reference: auto."
            )
        if self.reference == "never" or not known or not self._template.uses_reference:
            return ""
        return f"An answer that is known to be right:\n\n{fenced('reference', str(prompt.target), code)}"

    def _column(self, prompt: Prompt, name: str, code: str) -> str:
        if name not in prompt.columns:
            raise JudgeError(
                f"The template {self.template!r} uses the column {name!r}, which prompt {prompt.id!r} does not have. "
                f"Its columns: {', '.join(sorted(prompt.columns)) or 'none'}."
            )
        return fenced(name, str(prompt.columns[name]), code)

    def _read(self, question: Question, key: str, answer: Answered | Failed) -> Read | Failed:
        if isinstance(answer, Failed):
            return answer
        code = question.code(key, self._template.columns)
        judged = [response.text for response in question.responses]
        return read_reply(answer.reply, self._scale, FORMS[self.structured][answer.form], code, judged)
