"""Judge "preference-model": P(first is better), by a reward model as sigmoid((r1 - r2) / temperature) (Eq. 1 of
arXiv:2305.18290), or by a model that reads both responses in one text (arXiv:2306.02561)."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat, model_validator

from judges.models.base import ModelJudge, Template
from judges.models.classification import Encoded, SequenceModel
from judges.models.scores import check_one_output, logistic, probability_of, reward_verdict
from judges.pairwise import Game, PairwiseJudge, Preference
from judges.types import JudgeError, Prompt, Response, Verdict

SLOTS = ("question", "first", "second")


class PreferenceModel(ModelJudge, PairwiseJudge):
    """The probability that one response is better than another; a response's score is its win rate in the group."""

    of: Literal["scores", "texts"] = "scores"
    """`scores`: the model is a reward model, and its scores become probabilities (Bradley-Terry); `texts`: it reads
    both responses in one text and gives the probability that the first is better."""

    template: Template = "chat"
    """With `of: scores`, how prompt and response become one text: `chat`, `plain` or `pair`."""

    temperature: PositiveFloat = 1.0
    """With `of: scores`, the divisor of the difference of two scores; higher is less certain."""

    text: str | None = None
    """With `of: texts`, the text with the slots {question}, {first} and {second}, or the path of a file with it."""

    @model_validator(mode="after")
    def _has_its_text(self) -> "PreferenceModel":
        if (self.of == "texts") != (self.text is not None):
            raise ValueError("of: texts needs text, and of: scores takes none")
        if self.of == "texts":
            missing = [slot for slot in SLOTS if f"{{{slot}}}" not in self._text]
            if missing:
                raise ValueError(f"text lacks {', '.join(f'{{{slot}}}' for slot in missing)}")
        return self

    @cached_property
    def _text(self) -> str:
        """The text with its slots. ValueError if its file cannot be read."""
        given = self.text or ""
        if "{" in given:
            return given
        try:
            return Path(given).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"text has no slots and is not a readable file ({error})") from None

    @property
    def content_version(self) -> str:
        text = hashlib.sha256(self._text.encode("utf-8")).hexdigest() if self.of == "texts" else ""
        return "+".join(filter(None, (super().content_version, text)))

    def check(self, network: SequenceModel) -> None:
        if self.of == "scores":
            self.check_template(self.template)
            check_one_output(network)
        elif len(network.labels) > 2:
            raise JudgeError(
                f"The judge's model {self.model} has {len(network.labels)} outputs. With of: texts it must have "
                f"one (the logit that the first is better) or two (first, second)."
            )

    def compare_all(self, games: Sequence[Game]) -> list[Preference]:
        games = [game.of_answers for game in games]
        if self.of == "texts":
            pairs = [(game.prompt, game.first, game.second) for game in games]
            return [_preference(verdict) for verdict in self.scored(pairs, self._pair, first_is_better)]
        sides = [(game.prompt, response) for game in games for response in (game.first, game.second)]
        rewards = self.scored(sides, partial(self.encode, self.template), reward_verdict)
        return [self._bradley_terry(*rewards[2 * i : 2 * i + 2]) for i in range(len(games))]

    def _pair(self, prompt: Prompt, first: Response, second: Response) -> Encoded:
        """Both responses in one text, inserted verbatim."""
        asked = "\n".join(message["content"] for message in prompt.messages)
        values = dict(zip(SLOTS, (asked, first.text, second.text), strict=True))
        return self._network.encode_text(re.sub(r"\{(question|first|second)\}", lambda m: values[m[1]], self._text))

    def _bradley_terry(self, first: Verdict, second: Verdict) -> Preference:
        if first.score is None or second.score is None:
            return Preference.error(first.why if first.score is None else second.why)
        return Preference.of(
            logistic((first.score - second.score) / self.temperature), f"{first.score:.4g} against {second.score:.4g}"
        )


def first_is_better(logits: list[float]) -> Verdict:
    """Probability that the first is better, from label 0 of two or the one logit. ValueError if it is not finite."""
    return Verdict.of(probability_of(0, logits, each=False))


def _preference(verdict: Verdict) -> Preference:
    return Preference.error(verdict.why) if verdict.score is None else Preference.of(verdict.score)
