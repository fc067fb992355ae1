"""Room judges, judge "implicit-reward": a model that was tuned by DPO is a reward model of itself.

score = beta * (log pi(y|x) - log pi_ref(y|x)): the reward that DPO's optimum implies (Eq. 5 of arXiv:2305.18290
without its term of the prompt alone, which no comparison sees). DICE (arXiv:2406.09760) labels with it, less a penalty
for each token.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from judges.contract import Group, PointwiseJudge, Prompt, Response, Verdict
from judges.handed import Measured
from judges.log_prob import Measuring


class ImplicitReward(Measuring, PointwiseJudge):
    """How much more likely a tuned model finds a response than its reference does: beta times the log-ratio."""

    version: ClassVar[str] = "1"

    model: str = "policy"
    """The tuned model: `policy` (which sampled the responses), `initial`, a folder, a hub id or `pypi:name`."""

    reference: str = "initial"
    """What it was tuned from: `initial` (the campaign's base model), `policy`, a folder, a hub id or `pypi:name`."""

    beta: PositiveFloat = Field(default=0.1, allow_inf_nan=False)
    """The beta of its tuning; it only scales the scores, and decides what `length_penalty` weighs beside them."""

    normalise: Literal["sum", "mean"] = "sum"
    """`sum` over the response's tokens, as DPO implies, or their `mean`."""

    length_penalty: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Taken off for each token (DICE's alpha); raise it until chosen and rejected responses are equally long."""

    @model_validator(mode="after")
    def _two_models(self) -> "ImplicitReward":
        if self.model == self.reference:
            raise ValueError("model and reference are the same, so every score would be 0")
        return self

    @property
    def named(self) -> tuple[str, ...]:
        return (self.model, self.reference)

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        return self([Group(prompt, (response,))])[0][0]

    def __call__(self, groups: Sequence[Group]) -> list[list[Verdict]]:
        if self.models.weights(self.model) == self.models.weights(self.reference):
            same = Verdict.abstain(f"{self.model} and {self.reference} are the same model now, so nothing can be told")
            return [[same for _ in group.responses] for group in groups]
        both = (self.measured(groups, self.model), self.measured(groups, self.reference))
        return [[self._verdict(*pair) for pair in zip(*rows, strict=True)] for rows in zip(*both, strict=True)]

    def _verdict(self, model: Measured | str, reference: Measured | str) -> Verdict:
        if isinstance(model, str) or isinstance(reference, str):
            return Verdict.error(model if isinstance(model, str) else str(reference))
        ratio = model.logp - reference.logp
        reward = self.beta * (ratio / model.tokens if self.normalise == "mean" else ratio)
        score = reward - self.length_penalty * model.tokens
        parts = {"log_ratio": ratio, "tokens": float(model.tokens)}
        return Verdict.of(score, f"{score:.6g}", parts=parts)
