"""Base class of the judges that hold a classification model: their arguments, and scoring through the cache."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import PositiveInt

from judges.context import ModelRef
from judges.contract import Judge
from judges.models.classification import Dtype, Encoded, SequenceModel
from judges.remember import Batch, key_of, once_each
from judges.types import JudgeError, Prompt, Response, Verdict, describe

Template = Literal["chat", "plain", "pair"]
"""`chat`: the chat template of the model's own tokenizer; `plain`: prompt text + response text; `pair`: both as the
tokenizer's text pair, as encoders (BERT, DeBERTa) are trained."""

Item = tuple[Prompt, *tuple[Response, ...]]
"""A prompt and the responses that the model reads together."""


class ModelJudge(Judge):
    """A judge that holds a sequence-classification model."""

    costly: ClassVar[bool] = True
    incidental: ClassVar[frozenset[str]] = frozenset({"device", "batch_tokens"})

    model: str
    """A folder, a hub id, or `pypi:name`."""

    dtype: Dtype = "auto"
    """Number format of the layers; the head is always float32. `auto`: bfloat16 on a GPU, float32 on a CPU."""

    device: str = "auto"
    """`auto` (the GPU if there is one), `cpu`, or a device such as `cuda:1`."""

    batch_tokens: PositiveInt = 8192
    """Tokens in a batch, padding included; higher is faster until memory is full. Scores do not depend on it."""

    @cached_property
    def _found(self) -> ModelRef:
        return self.context.find(self.model)

    @cached_property
    def _network(self) -> SequenceModel:
        found = self._found
        return SequenceModel(self.model, found.folder, dtype=self.dtype, device=self.device)

    @property
    def content_version(self) -> str:
        """Hash of the model's weights, settings and tokenizer: computed when first needed, never by `plan`."""
        return self._found.digest

    def ready(self) -> None:
        """Load the model, so that a wrong one is found before anything is sampled."""
        self.check(self._network)

    def check(self, network: SequenceModel) -> None:
        """JudgeError if the model does not fit this judge."""

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
        """JudgeError if the tokenizer lacks what the template needs."""
        if template == "chat" and not self._network.has_chat_template:
            raise JudgeError(
                f"The tokenizer of the judge's model {self.model} has no chat template. Set judge.args.template to "
                f"plain (prompt and response end to end) or pair (the tokenizer's text pair), whichever the model was "
                f"trained with."
            )

    def scored(
        self, items: Sequence[Item], encode: Callable[..., Encoded], verdict_of: Callable[[list[float]], Verdict]
    ) -> list[Verdict]:
        """One verdict per item, from the cache or by `verdict_of` the logits of the text that `encode` makes of it."""

        def compute(indices: list[int]) -> Iterator[Batch]:
            encoded = {index: self._encoded(encode, items[index]) for index in indices}
            if failed := {i: asdict(Verdict.error(why)) for i, why in encoded.items() if isinstance(why, str)}:
                yield failed
            texts = {index: text for index, text in encoded.items() if not isinstance(text, str)}
            where = list(texts)
            for batch in self._network.logits(list(texts.values()), self.batch_tokens):
                yield {where[i]: asdict(_safely(verdict_of, logits)) for i, logits in batch.items()}

        keys = [key_of(self, prompt, responses, columns=()) for prompt, *responses in items]
        return [Verdict(**found) for found in once_each(self, keys, compute)]

    def _encoded(self, encode: Callable[..., Encoded], item: Item) -> Encoded | str:
        """The text, or why there is none."""
        try:
            text = encode(*item)
        except Exception as error:  # noqa: BLE001  a chat template is foreign code and may raise anything
            return f"the text cannot be encoded: {describe(error)}"
        return self._network.unfit(text) or text


def _safely(verdict_of: Callable[[list[float]], Verdict], logits: list[float]) -> Verdict:
    """The verdict; an error if the score is not a finite number."""
    try:
        return verdict_of(logits)
    except ValueError as error:
        return Verdict.error(str(error))
