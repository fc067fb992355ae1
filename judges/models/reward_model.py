"""Judge "reward-model": a scalar reward model scores each response."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from judges.contract import BatchJudge
from judges.models.base import ModelJudge, Template
from judges.models.classification import SequenceModel
from judges.types import JudgeError, Prompt, Response, Verdict


class RewardModel(ModelJudge, BatchJudge):
    """The score of prompt and response by a reward model: sequence classification with one output."""

    version: ClassVar[str] = "1"

    template: Template = "chat"
    """How prompt and response become one text: `chat` (the template of the reward model's own tokenizer), `plain`
    (prompt text + response text) or `pair` (the tokenizer's text pair)."""

    def check(self, network: SequenceModel) -> None:
        self.check_template(self.template)
        check_one_output(network)

    def many(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return self.scored(items, partial(self.encode, self.template), reward_verdict)


def check_one_output(network: SequenceModel) -> None:
    """JudgeError unless the head has one output."""
    if len(network.labels) != 1:
        raise JudgeError(
            f"The judge's model {network.name} has {len(network.labels)} outputs ({', '.join(network.labels[:6])}), "
            f"but a reward model must have one. Use the judge classifier with one of these labels."
        )


def reward_verdict(logits: list[float]) -> Verdict:
    """The model's one output as the score. ValueError if it is not finite."""
    (reward,) = logits
    return Verdict.of(reward, f"{reward:.6g}")
