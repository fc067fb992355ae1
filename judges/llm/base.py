"""Base class of the LLM judges: their arguments, and how they ask a model.

A question is a template filled with a prompt and its response(s). Replies come from the store; only missing ones are
requested, from an OpenAI-compatible endpoint or a model that the loop provides.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from judges.context import Generate, LocalModel, Messages, ModelRef, Usage
from judges.contract import Judge
from judges.llm.api import Endpoint, import_openai, read_key
from judges.llm.asking import Answered, Ask, Asker, Failed, Limits, from_store, stored
from judges.llm.budget import Budget
from judges.llm.template import Question, Template, conversation, fenced, read_template
from judges.llm.verdict import Form, Read, Scale, instruction, read_reply, response_format, schema_of
from judges.remember import key_of
from judges.types import JudgeError, Prompt
from judges.versions import identity_of

CHARACTERS_PER_TOKEN = 3
"""A cautious estimate for a template's text; English has about four."""

DECIDING = ("dtype", "max_model_len")
"""Engine settings that affect replies; the others affect only speed."""


class LLM(Judge):
    """A judge that asks a language model."""

    version = "2"
    costly: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "api_key_env", "concurrency", "requests_per_minute", "timeout", "retries", "retry_wait"}
        | {"deadline", "budget", "engine_settings"}
    )
    slots: ClassVar[tuple[str, ...]] = ()
    """Template slots of the response(s)."""

    engine: Literal["api", "policy", "vllm", "transformers"] = "api"
    """Which model judges: one at an OpenAI-compatible endpoint; the policy itself (self-rewarding), in the sampling
    engine; or another model in a separate engine on this machine (`vllm` or `transformers`)."""

    base_url: str | None = None
    """The endpoint, e.g. `https://api.openai.com/v1` or `http://localhost:8000/v1`."""

    model: str | None = None
    """The model's name at the endpoint; with a separate engine a folder, a hub id or `pypi:name`."""

    engine_settings: dict[str, Any] = Field(default={})
    """Keys that override the config's section `engine` in the separate engine: max_model_len, gpu_memory_share, …"""

    chat_template_kwargs: dict[str, Any] = Field(default={})
    """With a separate engine, passed to the model's chat template, e.g. `enable_thinking: false`."""

    revision: str = ""
    """Any text; change it when the endpoint serves other weights under the same name, to ignore cached replies."""

    template: str
    """A template that comes with prefloop, or the path of a text file."""

    rubric: str
    """The grading criteria, as text."""

    reference: Literal["auto", "always", "never"] = "auto"
    """Show the prompt's target as the known right answer: if there is one, always (stop if missing), or never."""

    temperature: NonNegativeFloat | None = 0.0
    """The judge's sampling temperature; null leaves it to the endpoint."""

    max_tokens: PositiveInt | None = 1024
    """Maximum tokens of a reply, reasoning included; a reply that is cut off gives no verdict. Null sets no limit."""

    votes: PositiveInt = 1
    """How often each question is asked; values above 1 need a temperature."""

    structured: Literal["auto", "json", "none"] = "auto"
    """Ask for a JSON object with a schema: `auto` if the endpoint or engine (vllm) supports it, `json` always, `none`
    asks for a verdict line."""

    request: dict[str, Any] = Field(default={})
    """Additional keys of the request, e.g. `reasoning_effort: low`; they override prefloop's own."""

    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; null for an endpoint that needs none."""

    concurrency: PositiveInt = 16
    """Requests in flight at the same time; higher is faster until the endpoint throttles."""

    requests_per_minute: PositiveFloat | None = None
    """Maximum request rate; null sets none."""

    timeout: PositiveFloat = 60.0
    """Seconds that one try may take in total, however slowly the answer streams in."""

    retries: NonNegativeInt = 5
    """How often a request is retried after a timeout, a lost connection, 429 or 5xx."""

    retry_wait: PositiveFloat = 1.0
    """Seconds before the first retry; doubles each time, with jitter. The endpoint's Retry-After takes precedence."""

    deadline: PositiveFloat = 600.0
    """Seconds that one request may take with all its tries; after that it is an error."""

    budget: Budget = Field(default=Budget())
    """Spending limits for the whole run: max_calls, max_tokens, max_cost, prompt_price, completion_price."""

    _form: int = 0
    """The form of the request that the endpoint accepts."""

    @field_validator("base_url")
    @classmethod
    def _is_a_plain_address(cls, given: str | None) -> str | None:
        parts = urlsplit(given or "http://x")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("the address must hold no key; put it in the variable that api_key_env names")
        return given

    @field_validator("request")
    @classmethod
    def _leaves_the_judges_own(cls, given: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"messages", "model", "n", "response_format", "stream"} & set(given)):
            raise ValueError(f"{', '.join(taken)} cannot be set here: the judge sets it itself")
        return given

    @model_validator(mode="after")
    def _can_ask(self) -> "LLM":
        missing = [name for name in ("base_url", "model") if getattr(self, name) is None]
        if self.local and missing != ["base_url"]:
            raise ValueError(f"with engine: {self.engine} set model (a folder, a hub id, pypi:name), and no base_url")
        if self.local and self.request:
            raise ValueError(f"request is only for an endpoint; with engine: {self.engine} use chat_template_kwargs")
        if not self.local and (self.engine_settings or self.chat_template_kwargs):
            raise ValueError("engine_settings and chat_template_kwargs need engine: vllm or transformers")
        if self.engine == "api" and missing:
            raise ValueError(f"set {' and '.join(missing)}: the endpoint and which of its models judges")
        if self.engine == "policy" and len(missing) < 2:
            raise ValueError("with engine: policy the policy judges itself; remove base_url and model")
        if self.votes > 1 and self.temperature == 0:
            raise ValueError(f"{self.votes} votes at temperature 0 are all the same; raise temperature or set votes: 1")
        if self.engine != "api" and None in (self.temperature, self.max_tokens):
            raise ValueError(f"with engine: {self.engine} temperature and max_tokens must be numbers")
        assert self._template is not None  # read now, so that a bad template fails with the arguments
        return self

    @cached_property
    def _template(self) -> Template:
        return read_template(self.template, self.slots)

    @property
    @abstractmethod
    def _scale(self) -> Scale:
        """The allowed verdicts and their values."""

    @property
    def local(self) -> bool:
        """Whether the judge's model runs in a separate engine on this machine."""
        return self.engine in ("vllm", "transformers")

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

    # ---- questions ----

    def reads(self, questions: Sequence[Question]) -> list[Read | Failed]:
        """Read the model's replies, question by question; replies in the store are not requested again."""
        keys = [key_of(self, q.prompt, q.responses, columns=self._template.columns, vote=q.vote) for q in questions]
        known = {key: from_store(text) for key in keys if (text := self.context.store.get(key)) is not None}
        for answered in known.values():
            self.context.on_usage(answered.reply.usage, True)
        asks = [self._ask(q, key) for q, key in zip(questions, keys, strict=True) if key not in known]
        answers = known | (self._answered(asks) if self.engine == "api" else self._generated(asks))
        return [self._read(q, key, answers[key]) for q, key in zip(questions, keys, strict=True)]

    def _answered(self, asks: Sequence[Ask]) -> dict[str, Answered | Failed]:
        """Ask the endpoint."""
        if not asks:
            return {}
        limits = Limits(**{name: getattr(self, name) for name in Limits.__dataclass_fields__})
        endpoint = Endpoint(str(self.base_url), str(self.model), self.api_key_env)
        asker = Asker(
            endpoint, limits, self.context, f"{type(self).__name__} ({self.model})", identity_of(self), self._form
        )
        try:
            return asyncio.run(asker.run(asks))
        finally:
            self._form = asker.form

    def _generated(self, asks: Sequence[Ask]) -> dict[str, Answered | Failed]:
        """Ask the model that the loop provides."""
        distinct = list({ask.key: ask for ask in asks}.values())
        if not distinct:
            return {}
        if self.context.generate is None:
            whom = "the policy in the sampling engine" if self.engine == "policy" else "its model in an engine"
            raise JudgeError(
                f"Judge {type(self).__name__} with engine: {self.engine} asks {whom}, which is missing here. Use it in "
                f"a campaign, or use an endpoint: engine: api with base_url and model."
            )
        assert self.temperature is not None
        assert self.max_tokens is not None
        form = self._local_form(self.context.generate)
        replies = self.context.generate(
            [ask.bodies[form]["messages"] for ask in distinct],
            [int(ask.key[-8:], 16) >> 1 for ask in distinct],
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            schema=schema_of(self._scale, self.max_tokens) if self._forms[form] == "json" else None,
        )
        answers = {ask.key: Answered(reply, form) for ask, reply in zip(distinct, replies, strict=True)}
        for key, answered in answers.items():
            usage = answered.reply.usage + Usage(calls=1)
            self.context.store.put(key, stored(answered), identity_of(self), usage)
            self.context.on_usage(usage, False)
        return dict(answers)

    @property
    def _forms(self) -> tuple[Form, ...]:
        """The requested forms of a verdict, the preferred one first."""
        if self.structured == "auto":
            return ("json", "line")
        return ("json",) if self.structured == "json" else ("line",)

    def _local_form(self, generate: Generate) -> int:
        """The form to request from a local model; JudgeError if it needs a schema that the engine cannot enforce."""
        if "json" not in self._forms or generate.structured:
            return 0
        if "line" not in self._forms:
            raise JudgeError(
                f"Judge {type(self).__name__} with structured: json needs an engine that constrains replies to a "
                "schema, and transformers does not. Use vllm, or set structured: auto, which asks for a verdict line."
            )
        return self._forms.index("line")

    def _ask(self, question: Question, key: str) -> Ask:
        return Ask(key, tuple(self._body(question, key, form) for form in self._forms))

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
        shown = question.shown(self._names, code)
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

    @property
    def _names(self) -> tuple[str, ...]:
        """Names of the responses in their marks."""
        return ("response",)

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
        return read_reply(answer.reply, self._scale, self._forms[answer.form], code)
