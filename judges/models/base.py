"""Base class of the judges with a classification model of their own: their arguments, and scoring with the cache."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from judges.context import ModelRef
from judges.contract import Judge
from judges.models.classification import Dtype, Encoded, SequenceModel
from judges.remember import Words, once_each
from judges.types import JudgeError, Prompt, Response, Verdict, describe

Template = Literal["chat", "plain", "pair"]
"""`chat`: the chat template of the model's own tokenizer; `plain`: prompt text + response text; `pair`: both as the
tokenizer's text pair, as encoders (BERT, DeBERTa) are trained."""


class ModelJudge(Judge):
    """A judge that holds a sequence-classification model."""

    version = "1"
    costly: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset({"device", "batch_tokens"})

    model: str
    """A folder, a hub id, or `pypi:name`."""

    dtype: Dtype = "auto"
    """Of the layers; the head is always float32. `auto`: bfloat16 on a GPU, float32 on a CPU."""

    device: str = "auto"
    """`auto` is the GPU if there is one; or `cpu`, `cuda:1`."""

    batch_tokens: PositiveInt = 8192
    """Tokens in a batch, padding included; higher is faster until memory is full. It changes no score."""

    @cached_property
    def _found(self) -> ModelRef:
        return self.context.find(self.model)

    @cached_property
    def _network(self) -> SequenceModel:
        found = self._found
        return SequenceModel(self.model, found.folder, dtype=self.dtype, device=self.device)

    @property
    def content_version(self) -> str:
        """Hash of the model's weights, settings and tokenizer: read when it is first needed, never by `plan`."""
        return self._found.digest

    def ready(self) -> None:
        """Loads the model, so that a wrong one is known before anything was sampled."""
        self.check(self._network)

    def check(self, network: SequenceModel) -> None:
        """JudgeError if the model is none for this judge."""

    def rest(self) -> None:
        if "_network" in self.__dict__:
            self._network.rest()

    def encode(self, template: Template, prompt: Prompt, response: Response) -> Encoded:
        """Prompt and response as the model reads them."""
        network = self._network
        if template == "chat":
            return network.encode_chat([*prompt.messages, {"role": "assistant", "content": response.text}])
        asked = "\n".join(message["content"] for message in prompt.messages)
        if template == "pair":
            return network.encode_text(asked, response.text)
        return network.encode_text(asked + response.text)

    def check_template(self, template: Template) -> None:
        """JudgeError if the tokenizer cannot do it."""
        if template == "chat" and not self._network.has_chat_template:
            raise JudgeError(
                f"The tokenizer of the judge's model {self.model} has no chat template. Set judge.args.template to "
                f"plain (prompt and response end to end) or pair (the tokenizer's text pair), whichever the model was "
                f"trained with."
            )

    def scored(
        self, keys: Sequence[str], encode: Callable[[int], Encoded], word: Callable[[list[float]], Verdict]
    ) -> list[Verdict]:
        """One verdict per key: remembered, or what `word` makes of the logits of what `encode` gives for its place.

        A text that cannot be encoded, is too long or gets NaN is an error of its own.
        """

        def give(places: list[int]) -> Iterator[Words]:
            texts: dict[int, Encoded] = {}
            failed: dict[int, dict[str, Any]] = {}
            for place in places:
                text, why = self._encoded(encode, place)
                if text is None:
                    failed[place] = asdict(Verdict.error(why))
                else:
                    texts[place] = text
            if failed:
                yield failed
            where = list(texts)
            for batch in self._network.logits(list(texts.values()), self.batch_tokens):
                yield {where[i]: asdict(_safely(word, logits)) for i, logits in batch.items()}

        return [Verdict(**word) for word in once_each(self, keys, give)]

    def _encoded(self, encode: Callable[[int], Encoded], place: int) -> tuple[Encoded | None, str]:
        """The text, or why there is none."""
        try:
            text = encode(place)
        except Exception as error:  # noqa: BLE001  the boundary to the model's own template
            return None, f"the text cannot be encoded: {describe(error)}"
        why = self._network.unfit(text)
        return (None, why) if why else (text, "")


def _safely(word: Callable[[list[float]], Verdict], logits: list[float]) -> Verdict:
    """A score that is not a finite number is an error."""
    try:
        return word(logits)
    except ValueError as error:
        return Verdict.error(str(error))
