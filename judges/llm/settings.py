"""Arguments of the LLM judges, the checks of their combinations, and spending limits."""

from functools import cached_property
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from judges.context import Usage
from judges.contract import Judge
from judges.llm.template import Template, read_template
from judges.types import JudgeError

MILLION = 1_000_000


class Budget(BaseModel):
    """Limits for the whole run, resumed or not; calls in flight when a limit is reached still finish."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_calls: NonNegativeInt | None = None
    """Maximum number of calls, including failed ones and retries."""

    max_tokens: NonNegativeInt | None = None
    """Maximum number of tokens, sent and received, as the endpoint counts them."""

    max_cost: NonNegativeFloat | None = None
    """Maximum cost, in the unit of the prices."""

    prompt_price: NonNegativeFloat | None = None
    """Price per million tokens sent."""

    completion_price: NonNegativeFloat | None = None
    """Price per million tokens received."""

    @model_validator(mode="after")
    def _has_prices(self) -> "Budget":
        if self.max_cost is not None and self.cost(Usage()) is None:
            raise ValueError("max_cost needs prompt_price and completion_price, the prices per million tokens")
        return self

    @property
    def counts_tokens(self) -> bool:
        """Whether a limit depends on the endpoint's count of tokens."""
        return self.max_tokens is not None or self.max_cost is not None

    def cost(self, usage: Usage) -> float | None:
        """Cost of the usage at these prices; None without prices."""
        if self.prompt_price is None or self.completion_price is None:
            return None
        return (usage.prompt_tokens * self.prompt_price + usage.completion_tokens * self.completion_price) / MILLION

    def check(self, spent: Usage, judge: str) -> None:
        """JudgeError if a limit is reached, so no further call is allowed."""
        cost = self.cost(spent) or 0.0
        limits = (("max_calls", spent.calls), ("max_tokens", spent.tokens), ("max_cost", cost))
        for name, reached in limits:
            limit = getattr(self, name)
            if limit is not None and reached >= limit:
                raise JudgeError(
                    f"Judge {judge}: its budget is used up: {name} is {limit:g} and {reached:g} is spent "
                    f"({spent.calls} calls, {spent.tokens} tokens{'' if not cost else f', cost {cost:.4f}'}). Paid "
                    f"verdicts are kept: raise judge.args.budget.{name}, and the same command resumes from here."
                )


class LLMSettings(Judge):
    """The arguments of a judge that asks a language model."""

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

    @field_validator("base_url")
    @classmethod
    def _is_a_plain_address(cls, given: str | None) -> str | None:
        parts = urlsplit(given or "http://x")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("expected an address such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("the address must hold no key; put it in the variable that api_key_env names")
        return given

    @field_validator("request")
    @classmethod
    def _sets_no_reserved_key(cls, given: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"messages", "model", "n", "response_format", "stream"} & set(given)):
            raise ValueError(f"{', '.join(taken)} cannot be set here: the judge sets it itself")
        return given

    @model_validator(mode="after")
    def _engine_has_its_arguments(self) -> "LLMSettings":
        missing = [name for name in ("base_url", "model") if getattr(self, name) is None]
        if self.engine == "api" and missing:
            raise ValueError(f"set {' and '.join(missing)}: the endpoint and which of its models judges")
        if self.engine == "policy" and len(missing) < 2:
            raise ValueError("with engine: policy the policy judges itself; remove base_url and model")
        if self.local and missing != ["base_url"]:
            raise ValueError(f"with engine: {self.engine} set model (a folder, a hub id, pypi:name), and no base_url")
        if self.local and self.request:
            raise ValueError(f"request is only for an endpoint; with engine: {self.engine} use chat_template_kwargs")
        if not self.local and (self.engine_settings or self.chat_template_kwargs):
            raise ValueError("engine_settings and chat_template_kwargs need engine: vllm or transformers")
        return self

    @model_validator(mode="after")
    def _can_sample(self) -> "LLMSettings":
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
    def local(self) -> bool:
        """Whether the judge's model runs in a separate engine on this machine."""
        return self.engine in ("vllm", "transformers")
