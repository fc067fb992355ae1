"""The judges "reward-model" and "classifier": the score is a model's output, or the probability of a label."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

from judges.contract import BatchJudge
from judges.models.base import ModelJudge, Template
from judges.models.classification import Encoded, SequenceModel
from judges.types import JudgeError, Prompt, Response, Verdict


class RewardModel(ModelJudge, BatchJudge):
    """The score of prompt and response by a reward model: sequence classification with one output."""

    template: Template = "chat"
    """How prompt and response become one text: `chat` (the template of the reward model's own tokenizer), `plain`
    (prompt text + response text) or `pair` (the tokenizer's text pair)."""

    def check(self, network: SequenceModel) -> None:
        self.check_template(self.template)
        check_one_output(network)

    def many(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return self.scored(items, partial(self.encode, self.template), reward_verdict)


class Classifier(ModelJudge, BatchJudge):
    """The probability (0 to 1) that a classification model assigns to a label."""

    label: str
    """The label whose probability is the score, as named in the model's config, e.g. `POSITIVE`."""

    reads: Literal["response", "both"] = "response"
    """What the model reads: the response alone, or prompt and response."""

    template: Template = "pair"
    """With `reads: both`, how they become one text: `pair` (the tokenizer's text pair), `chat` or `plain`."""

    def check(self, network: SequenceModel) -> None:
        if self.reads == "both":
            self.check_template(self.template)
        if self.label not in network.labels:
            raise JudgeError(
                f"The judge's model {self.model} has no label {self.label!r}. Its labels: {', '.join(network.labels)}; "
                f"set judge.args.label to one of them."
            )

    def many(self, items: Sequence[tuple[Prompt, Response]]) -> list[Verdict]:
        return self.scored(items, self._encode, self._verdict)

    def _encode(self, prompt: Prompt, response: Response) -> Encoded:
        if self.reads == "response":
            return self._network.encode_text(response.text)
        return self.encode(self.template, prompt, response)

    def _verdict(self, logits: list[float]) -> Verdict:
        network = self._network
        each = network.model.config.problem_type == "multi_label_classification"
        probability = probability_of(network.labels.index(self.label), logits, each=each)
        likeliest = network.labels[max(range(len(logits)), key=logits.__getitem__)]
        return Verdict.of(probability, likeliest if len(logits) > 1 else None)


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


def probability_of(label: int, logits: Sequence[float], *, each: bool) -> float:
    """Softmax over the labels, or the logistic function (one logit, or `each`); NaN if a logit is not finite."""
    if not all(map(math.isfinite, logits)):
        return math.nan
    if each or len(logits) == 1:
        return logistic(logits[label])
    highest = max(logits)
    return math.exp(logits[label] - highest) / sum(math.exp(logit - highest) for logit in logits)


def logistic(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
