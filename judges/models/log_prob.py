"""Judge "log-prob": how likely a response is under a model; and the base class of judges that use log-probs."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from judges.context import LogProbs, Measured, Precision
from judges.contract import PointwiseJudge
from judges.types import Group, JudgeError, Prompt, Response, Verdict

ROLES = ("policy", "initial")
"""Models that are named by their role in the campaign."""


class LogProbJudge(PointwiseJudge):
    """A judge that uses log-probs. Its verdicts are not cached: they belong to the sampled tokens, and two responses
    with the same text may have been sampled as different tokens."""

    precision: Precision = "fp32"
    """`bf16-autocast` is faster on a GPU but rounds: log-probs of long responses change by tenths of a nat."""

    @property
    @abstractmethod
    def named(self) -> tuple[str, ...]:
        """The models that it uses, as named in the arguments."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_probs"})

    @property
    def content_version(self) -> str:
        """Hashes of the models in the arguments; the policy and the initial model belong to the campaign."""
        return "+".join(self.context.find(name).digest for name in self.named if name not in ROLES)

    @property
    def models(self) -> LogProbs:
        """The loop's log-probs; JudgeError if it provides none."""
        if self.context.log_probs is None:
            raise JudgeError(
                f"Judge {type(self).__name__} needs the trainer to compute log-probs. Use it in a campaign or with "
                f"`prefloop judge test`."
            )
        return self.context.log_probs

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        return self([Group(prompt, (response,))])[0][0]

    def measured(self, groups: Sequence[Group], name: str) -> list[list[Measured | str]]:
        """The log-prob of every response under the model, or why there is none."""
        return self.models.measure(groups, name, precision=self.precision)


class LogProb(LogProbJudge):
    """The log-prob (nats) of a response under a model: per token or in total."""

    model: str = "policy"
    """`policy` (which sampled the responses), `initial` (the base model), a folder, a hub id or `pypi:name`."""

    normalise: Literal["mean", "sum"] = "mean"
    """`mean` over the response's tokens, or their `sum`, which is lower for longer responses."""

    @property
    def named(self) -> tuple[str, ...]:
        return (self.model,)

    def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        return [[self._verdict(found) for found in row] for row in self.measured(groups, self.model)]

    def _verdict(self, found: Measured | str) -> Verdict:
        if isinstance(found, str):
            return Verdict.error(found)
        score = found.logp / found.tokens if self.normalise == "mean" else found.logp
        return Verdict.of(score, f"{score:.6g}", parts={"logp": found.logp, "tokens": float(found.tokens)})


class ImplicitReward(LogProbJudge):
    """Beta times the log-ratio of a response under a tuned model and its reference."""

    model: str = "policy"
    """The tuned model: `policy` (which sampled the responses), `initial`, a folder, a hub id or `pypi:name`."""

    reference: str = "initial"
    """The model it was tuned from: `initial` (the campaign's base model), `policy`, a folder, a hub id or
    `pypi:name`."""

    beta: PositiveFloat = Field(default=0.1, allow_inf_nan=False)
    """The beta used in tuning; it only scales the scores, and thus their weight against `length_penalty`."""

    normalise: Literal["sum", "mean"] = "sum"
    """`sum` over the response's tokens, as in DPO, or their `mean`."""

    length_penalty: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Penalty per token (DICE's alpha); raise it until chosen and rejected responses are equally long."""

    @model_validator(mode="after")
    def _two_models(self) -> "ImplicitReward":
        if self.model == self.reference:
            raise ValueError("model and reference are the same, so every score would be 0")
        return self

    @property
    def named(self) -> tuple[str, ...]:
        return (self.model, self.reference)

    def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        if self.models.weights(self.model) == self.models.weights(self.reference):
            same = Verdict.abstain(f"{self.model} and {self.reference} are currently the same model")
            return [[same for _ in group.responses] for group in groups]
        both = (self.measured(groups, self.model), self.measured(groups, self.reference))
        return [[self._verdict(*pair) for pair in zip(*rows, strict=True)] for rows in zip(*both, strict=True)]

    def _verdict(self, model: Measured | str, reference: Measured | str) -> Verdict:
        if isinstance(model, str) or isinstance(reference, str):
            return Verdict.error(model if isinstance(model, str) else str(reference))
        ratio = model.logp - reference.logp
        reward = self.beta * (ratio / model.tokens if self.normalise == "mean" else ratio)
        score = reward - self.length_penalty * model.tokens
        return Verdict.of(score, f"{score:.6g}", parts={"log_ratio": ratio, "tokens": float(model.tokens)})
