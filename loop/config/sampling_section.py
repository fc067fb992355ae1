"""Config section `sampling`: how responses are sampled. docs/signal.md explains `adaptive` and `widen`, and
docs/sampling.md the options that change which tokens are sampled."""

from typing import Annotated, Any

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from loop.config.section import Section, Share


class DecodingOptions(Section):
    """Which tokens may be sampled, and where a response ends. Log-probs are recorded without any of it: they are the
    model's own."""

    top_k: NonNegativeInt = 0
    """Sample from this many most likely tokens only; 0 allows all."""
    min_p: Share = 0.0
    """Sample from tokens with at least this share of the most likely token's probability; 0 allows all."""
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Above 1, tokens that the prompt or the response already has become less likely; below 1 more likely."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtracted once from the logit of every token that the response already has."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtracted from a token's logit for each time that the response already has it."""
    min_tokens: NonNegativeInt = 0
    """A response ends after at least this many tokens."""
    stop_token_ids: list[NonNegativeInt] = []
    """Tokens that end a response, in addition to the model's own end tokens. They stay in its tokens, not in its
    text."""
    logit_bias: dict[NonNegativeInt, Annotated[float, Field(ge=-100, le=100)]] = {}
    """Added to the logits of tokens, by token id; -100 all but rules a token out."""
    bad_words: list[Annotated[str, Field(pattern=r"\S")]] = []
    """Words that no response may contain, as the tokenizer splits them."""
    extra: dict[str, Any] = {}
    """Further vLLM SamplingParams by name, e.g. `{allowed_token_ids: [5, 6]}`; only for the vllm engine."""

    @property
    def decoding(self) -> "DecodingOptions":
        """These options alone."""
        return DecodingOptions(**{name: getattr(self, name) for name in DecodingOptions.model_fields})

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults, as JSON has them: the only ones that a shard or a manifest
        records."""
        values = self.model_dump(mode="json", include=set(DecodingOptions.model_fields))
        return {name: value for name, value in values.items() if DecodingOptions.changes(self, name)}

    def describe(self) -> str:
        """The options that differ from their defaults, for a plan: ", top_k 40"; empty if none does."""
        return "".join(f", {name} {value}" for name, value in self.given().items())


PLAIN = DecodingOptions()
"""Nothing is changed."""


class AdaptiveSettings(Section):
    """Every prompt first gets a few responses, which are judged. More go to the prompts where they are expected to give
    the most pairs per token, until about as many pairs are expected as from `n` responses to every prompt."""

    probe: Annotated[int, Field(ge=2)] = 4
    """Responses that every prompt gets first; more choose better and save less."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Sampling ends at this share of the pairs expected from `n` responses to every prompt; higher samples more."""
    different: PositiveInt | None = None
    """A prompt has enough responses when they make this many different pairs; null is as many as `pairs.rule` can use.
    Fewer saves tokens, but rules such as correct_vs_wrong then repeat pairs."""
    budget: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Maximum number of responses of both phases together, as a share of `n` per prompt."""

    def wanted(self, at_most: int | None) -> int:
        """Number of different pairs that count; `at_most` is how many the rule makes of a prompt."""
        usable = at_most or 1
        return min(usable, self.different or usable)


class WidenSettings(Section):
    """After an iteration in which too few prompts had both right and wrong responses, all later iterations sample more
    widely, and once more after each further such iteration."""

    below: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of prompts with both outcomes below which sampling is widened; higher acts earlier."""
    temperature: NonNegativeFloat = 0.2
    """Added to the temperature each time."""
    n: Annotated[float, Field(ge=1)] = 1.0
    """The number of responses per prompt is multiplied by this each time."""
    temperature_at_most: PositiveFloat = 1.3
    """The temperature is not raised beyond this."""
    n_at_most: PositiveInt = 64
    """The number of responses is not raised beyond this."""

    @model_validator(mode="after")
    def _changes_something(self) -> "WidenSettings":
        if not self.temperature and self.n == 1:
            raise ValueError("widen changes nothing with temperature 0 and n 1; raise one of them, or leave widen out")
        return self


class SamplingConfig(DecodingOptions):
    """How responses are sampled from the policy."""

    n: PositiveInt = 8
    """Responses per prompt; more find more pairs and cost proportionally more time."""
    temperature: NonNegativeFloat = 0.8
    """Higher is more varied; raise it when few prompts have both right and wrong responses."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that together have this probability; 1 allows all."""
    max_tokens: PositiveInt = 512
    """Longest response in tokens; longer ones are cut off and count as truncated."""
    from_reference: bool = False
    """Sample the second half of each prompt's responses from the reference, for the rule xpo."""
    shard_prompts: PositiveInt | None = None
    """Prompts per shard, the unit of work and of resume; null makes shards of about four engine batches."""
    exact: bool = True
    """Refuse to add samples that were made with other engine threads, batch, device or version than the run's first
    ones, where the same seeds may give other responses; false accepts them, and records the stage as mixed."""
    adaptive: AdaptiveSettings | None = None
    """Sample a few responses first, then more where they pay off; null samples `n` responses to every prompt."""
    widen: WidenSettings | None = None
    """Raise the temperature or `n` when few prompts have both right and wrong responses; null leaves them unchanged."""

    def widened(self, times: int) -> "SamplingConfig":
        """The settings after this many iterations with too few mixed prompts; a value above the maximum of `widen`
        stays."""
        if self.widen is None or not times:
            return self
        warmer = min(self.temperature + times * self.widen.temperature, self.widen.temperature_at_most)
        more = min(int(self.n * self.widen.n**times), self.widen.n_at_most)
        return self.model_copy(update={"temperature": round(max(self.temperature, warmer), 6), "n": max(self.n, more)})

    def recorded(self) -> dict[str, Any]:
        """What decides the samples, by dotted key, as a manifest records it; `widen` is recorded by the values it
        gave."""
        deciding = (
            self.model_dump(mode="json", exclude={"widen", "exact", *DecodingOptions.model_fields}) | self.given()
        )
        return {f"sampling.{key}": value for key, value in deciding.items()}

    @model_validator(mode="after")
    def _leaves_something_to_add(self) -> "SamplingConfig":
        if self.adaptive is None:
            return self
        if self.adaptive.probe >= self.n:
            raise ValueError(
                f"sampling.adaptive.probe ({self.adaptive.probe}) leaves nothing of sampling.n ({self.n}) to add; "
                "lower probe, raise n, or set sampling.adaptive to null"
            )
        if self.adaptive.budget * self.n < self.adaptive.probe:
            raise ValueError(
                f"sampling.adaptive.budget ({self.adaptive.budget:g} of n={self.n}) does not pay for the probe of "
                f"{self.adaptive.probe} responses; raise budget or lower probe"
            )
        return self
