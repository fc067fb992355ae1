"""Config section `promote`: what an iteration starts from, its reference model, and when to promote the candidate."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from loop.config.section import Section, Share
from trainer.losses.terms import terms_of
from trainer.settings import LocalPath, TrainSettings

ReferenceRule = Literal["incumbent", "previous", "initial", "path", "ema"]
StartRule = Literal["incumbent", "previous", "initial"]
LARGEST = {
    "length": "mean tokens of a response",
    "length_ratio": "mean tokens of a response as a multiple of the incumbent's",
    "truncated": "share of responses that were cut off",
    "kl": "KL divergence to the base model in nats per response",
    "perplexity_ratio": "perplexity of promote.limits.text as a multiple of the base model's",
    "refusals": "share of harmless prompts that are refused",
}
"""What the limits that are upper bounds measure."""


class LimitSettings(Section):
    """Limits that a candidate must keep, whatever it gained; null sets none. They are measured on the gate prompts,
    never on the test prompts. A limit that cannot be measured counts as exceeded."""

    length: PositiveFloat | None = None
    """Maximum mean number of tokens in a sampled response, its thought not counted."""
    length_ratio: PositiveFloat | None = None
    """The same as a multiple of the incumbent's mean: 1.2 allows a fifth more."""
    truncated: Share | None = None
    """Maximum share of sampled responses that were cut off at max_tokens."""
    kl: PositiveFloat | None = None
    """Maximum KL divergence from the base model in nats per response, estimated at temperature 1 from one extra
    response per gate prompt."""
    shadow: str | None = None
    """A score whose mean may not fall below the incumbent's: `score` is the score of the evaluation's judge; any other
    name is that of a part of its `combine`."""
    shadow_fall: NonNegativeFloat = 0.0
    """How far the shadow score may nevertheless fall below the incumbent's."""
    perplexity_ratio: PositiveFloat | None = None
    """Maximum perplexity of `text` as a multiple of the base model's: 1.1 allows a tenth more."""
    text: LocalPath | None = None
    """A text file (UTF-8) unrelated to the task, for perplexity_ratio."""
    refusals: Share | None = None
    """Maximum share of the prompts in `benign` that are refused; docs/campaign.md lists the phrases."""
    benign: LocalPath | None = None
    """A text file (UTF-8) with one harmless prompt per line, for refusals."""

    @property
    def measures(self) -> dict[str, Any]:
        """The limits that need more responses or log-probs than the evaluation's, each with its file."""
        names = {"kl": None, "perplexity_ratio": self.text, "refusals": self.benign}
        return {name: path for name, path in names.items() if getattr(self, name) is not None}

    @model_validator(mode="after")
    def _files_belong_to_limits(self) -> "LimitSettings":
        for limit, file in (("perplexity_ratio", "text"), ("refusals", "benign")):
            if (getattr(self, limit) is None) != (getattr(self, file) is None):
                raise ValueError(f"{limit} and {file} go together; give both, or leave both out")
        return self


class RetrySettings(Section):
    """What changes when a round is trained again on the same pairs after its candidate was rejected. Factors apply to
    the previous attempt, so they accumulate."""

    learning_rate: PositiveFloat = 0.5
    """Factor of the learning rate; below 1 the candidate stays closer to its start."""
    beta: PositiveFloat = 1.0
    """Factor of `train.beta`; above 1 the candidate stays closer to its reference."""
    nll_weight: NonNegativeFloat | None = None
    """`train.nll_weight` from the second attempt on; null leaves it unchanged."""
    steps: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the optimizer steps to make; fewer keep the candidate closer to its start."""
    checkpoint: Literal["best"] | None = None
    """`best` takes the round's best checkpoint on the gate prompts, as `train.select: best` does."""


class MoreSamplesSettings(Section):
    """Further looks at the gate prompts while the decision is open (docs/campaign.md)."""

    looks: Annotated[int, Field(ge=1, le=4)] = 2
    """Maximum number of further looks."""
    samples: PositiveInt = 4
    """Further sampled responses per gate prompt in each look, of the candidate and of its incumbent."""


class PromoteConfig(Section):
    """When a candidate becomes the next policy."""

    rule: Literal["always", "better", "not_worse"] = "not_worse"
    """`better`: the whole interval of the gain is above 0; `not_worse`: the candidate is not worse by more than
    `margin` than the incumbent and than the best promoted model so far, even at the low end of the interval;
    `always`: every candidate is promoted."""
    metric: Literal[
        "sampled_accuracy", "greedy_accuracy", "accuracy_among_well_formed", "well_formed_share", "preference_accuracy"
    ] = "sampled_accuracy"
    """The metric that is compared on the gate prompts; preference_accuracy is for preference data without a judge, and
    is the default there."""
    margin: NonNegativeFloat = 0.05
    """How far below 0 `not_worse` allows the lower end of the interval to be."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of all intervals, in reports and decisions."""
    alpha_spending: Literal["none", "bonferroni", "pocock"] = "none"
    """How `better` divides the chance of a false promotion, which `confidence` sets, over the planned iterations and
    their attempts: `bonferroni` in equal parts, `pocock` larger parts to the first iterations (the spending function of
    Lan and DeMets 1983); `none` gives all of it to each decision."""
    more_samples: MoreSamplesSettings | None = None
    """Samples the gate prompts again, with new seeds, while the interval contains the rule's bound; null decides on the
    evaluation alone. The chance of an error is divided over the looks."""
    limits: LimitSettings = LimitSettings()
    """Limits that a candidate must keep, whatever the rule."""
    on_reject: Literal["continue", "stop", "retry"] = "continue"
    """After a rejected candidate: `continue` with the next iteration, `stop` the campaign, or `retry` the round with
    the changes of `retry` and continue if that is rejected too."""
    retries: PositiveInt = 1
    """Maximum number of retries of a round."""
    retry: RetrySettings = RetrySettings()
    """What a retry changes."""

    @model_validator(mode="after")
    def _spending_belongs_to_better(self) -> "PromoteConfig":
        if self.alpha_spending != "none" and self.rule != "better":
            raise ValueError(
                f"alpha_spending is {self.alpha_spending}, but the rule is {self.rule}, and only `better` spends a "
                "chance of false promotions; set rule to better, or alpha_spending to none"
            )
        return self

    @model_validator(mode="after")
    def _more_samples_can_decide(self) -> "PromoteConfig":
        if self.more_samples is None:
            return self
        if self.rule == "always":
            raise ValueError("more_samples makes a decision surer, but the rule always promotes every candidate")
        if self.metric in ("greedy_accuracy", "preference_accuracy"):
            raise ValueError(
                f"more_samples adds sampled responses, which the metric {self.metric} does not count; use a metric of "
                "sampled responses, or set more_samples to null"
            )
        return self

    @property
    def looks(self) -> int:
        """Maximum number of looks at the gate prompts, the evaluation's own included."""
        return 1 + (self.more_samples.looks if self.more_samples else 0)

    @property
    def attempts(self) -> int:
        """Maximum number of times a round is trained."""
        return 1 + self.retries if self.on_reject == "retry" else 1

    def decided_by(self, attempts: int) -> dict[str, Any]:
        """The settings that decided an iteration with this many attempts, by dotted key."""
        keys: set[str] = {"rule", "metric", "margin", "confidence"}
        keys |= {"alpha_spending"} if self.alpha_spending != "none" else set()
        keys |= {"more_samples"} if self.more_samples is not None else set()
        keys |= {"limits"} if self.limits != LimitSettings() else set()
        keys |= {"retry"} if attempts > 1 else set()
        return {f"promote.{key}": value for key, value in self.model_dump(mode="json", include=keys).items()}


def check_retry(promote: PromoteConfig, train: TrainSettings) -> None:
    """ValueError for a retry that cannot change what it names, with a remedy."""
    retry = promote.retry
    if promote.on_reject != "retry":
        return
    if retry == RetrySettings(learning_rate=1.0):
        raise ValueError(
            "promote.on_reject is retry, but promote.retry changes nothing, so it would give the same candidate again; "
            "set e.g. promote.retry.learning_rate to 0.5"
        )
    if retry.beta != 1 and beta_of(train) is None:
        raise ValueError(
            "promote.retry.beta multiplies train.beta, but the loss has no beta or names its own; give it as "
            "train.beta, or leave promote.retry.beta at 1"
        )
    if retry.nll_weight is not None:
        try:
            terms_of(train.loss, beta=train.beta, nll_weight=retry.nll_weight)
        except ValueError as error:
            raise ValueError(f"promote.retry.nll_weight cannot be used with train.loss: {error}") from error
    if retry.checkpoint == "best" and not train.checkpoint_every:
        raise ValueError(
            "promote.retry.checkpoint is best, but train.checkpoint_every is 0, so there is none to choose; raise it"
        )


def beta_of(train: TrainSettings) -> float | None:
    """The one beta that `train.beta` sets; None if it sets none."""
    trial = train.model_copy(update={"beta": 123.0})
    if {term.arguments.get("beta") for term in trial.terms if "beta" in term.arguments} != {123.0}:
        return None
    found = {float(term.arguments["beta"]) for term in train.terms if "beta" in term.arguments}
    return found.pop() if len(found) == 1 else None


def settings_of_attempt(
    train: TrainSettings, retry: RetrySettings, attempt: int, steps_before: int
) -> tuple[TrainSettings, dict[str, Any]]:
    """The settings of an attempt (from 1) and what it changes; `steps_before` are the steps of the previous attempt."""
    if attempt == 1:
        return train, {}
    times = attempt - 1
    changes: dict[str, Any] = {}
    if retry.learning_rate != 1:
        changes["learning_rate"] = train.learning_rate * retry.learning_rate**times
    if retry.beta != 1:
        beta = beta_of(train)
        assert beta is not None, "refused when the config was loaded"
        changes["beta"] = beta * retry.beta**times
    if retry.nll_weight is not None:
        changes["nll_weight"] = retry.nll_weight
    if retry.steps != 1:
        changes["max_steps"] = max(1, int(retry.steps * steps_before))
    if retry.checkpoint == "best":
        changes["select"] = "best"
    return TrainSettings.model_validate(train.model_dump() | changes), changes


def check_reference(reference: ReferenceRule, path: str | None, start: StartRule, train: TrainSettings) -> None:
    """ValueError if the reference contradicts another setting, with a remedy."""
    if (reference == "path") != (path is not None):
        raise ValueError(
            "reference path needs the model's name in reference_path, e.g. reference_path=models/anchor"
            if path is None
            else f"reference_path is {path!r}, but the reference is {reference}; set reference to path, or "
            "reference_path to null"
        )
    if train.warm_start is not None and reference != start:
        raise ValueError(
            f"reference {reference} cannot be used with train.warm_start, whose result is the reference of its round; "
            f"set reference to {start}, which training starts from, or train.warm_start to null"
        )
    known = [term for term in train.terms if not term.is_custom]  # a loss of the user's own is not imported for a check
    moving = [term.name for term in known if "moving_reference" in term.method().needs]
    if moving and train.lora is not None:
        raise ValueError(
            f"the loss {moving[0]} moves its reference inside the round and cannot be used with train.lora, as a mix "
            "of adapters is not the adapter of a mix; set train.lora to null, or take another loss"
        )
