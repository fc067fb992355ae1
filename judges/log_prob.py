"""Room judges, judge "log-prob": how likely a model finds a response. Also what every judge needs that measures with
models which the loop holds (`Handed.log_probs`)."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from judges.contract import Group, Judge, JudgeError, PointwiseJudge, Prompt, Response, Verdict
from judges.handed import LogProbs, Measured, Precision

ROLES = ("policy", "initial")
"""Models that the loop knows by their part in the campaign."""


class Measuring(Judge):
    """A judge that measures with models. Its verdicts are made anew each time: they belong to the sampled tokens, and
    two responses of the same text may have been sampled as different tokens."""

    version = "1"

    precision: Precision = "fp32"
    """`bf16-autocast` is faster on a GPU and rounds: log-probs of long responses move by tenths of a nat."""

    @property
    @abstractmethod
    def named(self) -> tuple[str, ...]:
        """The models that it measures with, as the arguments name them."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_probs"})

    @property
    def content_version(self) -> str:
        """Hashes of the models that the arguments fix; those of policy and initial model are the campaign's."""
        return "+".join(self.handed.find(name).digest for name in self.named if name not in ROLES)

    @property
    def models(self) -> LogProbs:
        """What measures. JudgeError if nothing was handed in."""
        if self.handed.log_probs is None:
            raise JudgeError(
                f"Judge {type(self).__name__} needs the trainer to measure log-probs. Use it in a campaign or with "
                f"`prefloop judge test`."
            )
        return self.handed.log_probs

    def measured(self, groups: Sequence[Group], name: str) -> list[list[Measured | str]]:
        """What the model says of every response, or why it says nothing."""
        return self.models.measure(groups, name, precision=self.precision)


class LogProb(Measuring, PointwiseJudge):
    """The log-prob (nats) that a model gives to a response: per token, or of the whole."""

    version: ClassVar[str] = "1"

    model: str = "policy"
    """`policy` (which sampled the responses), `initial` (the base model), a folder, a hub id or `pypi:name`."""

    normalise: Literal["mean", "sum"] = "mean"
    """`mean` over the response's tokens, or their `sum`, which is lower for longer responses."""

    @property
    def named(self) -> tuple[str, ...]:
        return (self.model,)

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        return self([Group(prompt, (response,))])[0][0]

    def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        return [[self._verdict(found) for found in row] for row in self.measured(groups, self.model)]

    def _verdict(self, found: Measured | str) -> Verdict:
        if isinstance(found, str):
            return Verdict.error(found)
        score = found.logp / found.tokens if self.normalise == "mean" else found.logp
        return Verdict.of(score, f"{score:.6g}", parts={"logp": found.logp, "tokens": float(found.tokens)})
