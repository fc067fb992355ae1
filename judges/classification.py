"""Room judges, sequence-classification models: a folder and texts come in, the logits of each text go out.

A score must not depend on its neighbours in a batch. Batches are therefore padded on the right and masked, and where a
model reads its score at the last token that is not the pad token (what transformers do for decoders), that is the same
token as in a batch of one. Nothing is ever cut: a text longer than the model's window has no score.

torch and transformers are imported when a model is loaded. Shapes: `B` texts, `T` tokens, `C` outputs of the head.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from judges.contract import JudgeError, describe
from judges.handed import Messages

Dtype = Literal["auto", "float32", "bfloat16"]
HEADS = ("score", "classifier", "classification_head", "logits_proj")
"""What transformers call the layer that makes the score."""
NO_WINDOW = 10**9
"""Tokenizers without a known limit name a larger number."""


class Encoded(NamedTuple):
    """One text as the model reads it; `kinds` tell the parts of a text pair apart (BERT), None where there are none."""

    ids: list[int]
    kinds: list[int] | None = None


class SequenceModel:
    """The model of one folder. It is loaded into the host's memory; `wake` brings it to its device.

    Raises JudgeError if the folder holds no whole classification model.
    """

    def __init__(self, name: str, folder: Path, *, dtype: Dtype, device: str) -> None:
        import torch

        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.name, self.device = name, _device(chosen)
        half = dtype == "bfloat16" or (dtype == "auto" and self.device.type == "cuda")
        self.tokenizer, self.model = _load(name, folder, half=half)
        config = self.model.config.get_text_config()
        self.window = _window(self.model, self.tokenizer)
        self.pad_id: int | None = config.pad_token_id
        self.labels = [str(self.model.config.id2label[i]) for i in range(self.model.config.num_labels)]

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer says how a chat becomes text."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode_chat(self, messages: Messages) -> Encoded:
        """A whole conversation, by the chat template of the model's own tokenizer."""
        return Encoded([int(i) for i in self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)])

    def encode_text(self, text: str, second: str | None = None) -> Encoded:
        """A text, or a pair of texts, with the special tokens that the tokenizer puts around them."""
        found = self.tokenizer(text, second, truncation=False, verbose=False)
        return Encoded(list(found["input_ids"]), found.get("token_type_ids"))

    def unfit(self, encoded: Encoded) -> str | None:
        """Why a text has no score; None if it may have one."""
        if not encoded.ids:
            return "the text has no tokens"
        if self.window is not None and len(encoded.ids) > self.window:
            return f"{len(encoded.ids)} tokens are more than the {self.window} that the model can read"
        return None

    def logits(self, texts: Sequence[Encoded], batch_tokens: int) -> Iterator[dict[int, list[float]]]:
        """The [C] logits of every text by its place, batch after batch, the longest texts first.

        A batch holds at most `batch_tokens` tokens, padding included; a longer text goes alone.
        """
        import torch

        self.wake()
        for places in batches([len(text.ids) for text in texts], batch_tokens):
            try:
                rows = self._forward([texts[place] for place in places])
            except torch.OutOfMemoryError:
                raise JudgeError(
                    f"The judge's model {self.name} ran out of memory on {self.device} with {len(places)} texts of at "
                    f"most {len(texts[places[0]].ids)} tokens. Lower judge.args.batch_tokens ({batch_tokens}) or "
                    f"engine.gpu_memory_share, or set judge.args.device=cpu."
                ) from None
            yield dict(zip(places, rows, strict=True))

    def _forward(self, batch: Sequence[Encoded]) -> list[list[float]]:
        import torch

        longest = max(len(text.ids) for text in batch)
        pad = self.pad_id if self.pad_id is not None else _no_last_token(batch)
        self.model.config.get_text_config().pad_token_id = pad
        inputs = {
            "input_ids": [[*text.ids, *[pad] * (longest - len(text.ids))] for text in batch],
            "attention_mask": [[1] * len(text.ids) + [0] * (longest - len(text.ids)) for text in batch],
        }
        if batch[0].kinds is not None:
            inputs["token_type_ids"] = [[*(t.kinds or ()), *[0] * (longest - len(t.ids))] for t in batch]
        with torch.inference_mode():
            tensors = {name: torch.tensor(rows, device=self.device) for name, rows in inputs.items()}
            logits_BC = self.model(**tensors).logits
        return [list(map(float, row)) for row in logits_BC.float().tolist()]

    def wake(self) -> None:
        """Bring the weights to the device."""
        self.model.to(self.device)

    def rest(self) -> None:
        """Give the device's memory back."""
        import torch

        if self.device.type == "cuda":
            self.model.to("cpu")
            torch.cuda.empty_cache()


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places in batches of similar lengths, longest first; size times longest is at most `batch_tokens`."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _no_last_token(batch: Sequence[Encoded]) -> int:
    """A token id with which no text ends, to pad with where the model names none: then each text's last token is
    seen to be its last."""
    last = {text.ids[-1] for text in batch}
    return next(i for i in range(len(last) + 1) if i not in last)


def _device(name: str) -> Any:
    import torch

    try:
        return torch.device(name)
    except RuntimeError:
        raise JudgeError(f"judge.args.device={name!r} is no device: give auto, cpu, cuda or cuda:1.") from None


def _load(name: str, folder: Path, *, half: bool) -> tuple[Any, Any]:
    """Tokenizer and model, whole and ready to score. bf16 holds the layers; a head rounded to it would tie scores."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it would print a table of what is missing; we say it in words
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype="auto" if half else torch.float32, output_loading_info=True
        )
    except Exception as error:  # the boundary to foreign parsers; they raise whatever comes
        raise JudgeError(
            f"The judge's model {name} cannot be loaded as a sequence-classification model: {describe(error)}. Give a "
            f"model that transformers load with AutoModelForSequenceClassification."
        ) from error
    finally:
        logging.set_verbosity(before)
    if missing := sorted(found["missing_keys"]):
        raise JudgeError(
            f"The judge's model {name} has no weights for {', '.join(missing[:3])}"
            f"{' and more' if len(missing) > 3 else ''}: it is no trained classification model (its type is "
            f"{type(model).__name__}), and a new random head would give random scores. Give a reward model or a "
            f"classifier, not the model it was made from."
        )
    return tokenizer, (_halve(model) if half else model).eval()


def _halve(model: Any) -> Any:
    import torch

    for name, layer in model.named_children():
        if name in HEADS:
            layer.float().register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))
        else:
            layer.to(torch.bfloat16)
    return model


def _window(model: Any, tokenizer: Any) -> int | None:
    """The longest text in tokens; None: not known. Some models count positions from the pad token's id on."""
    import torch

    config = model.config.get_text_config()
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < NO_WINDOW else []
    if (places := getattr(config, "max_position_embeddings", None)) is not None and places > 0:
        tables = [m for n, m in model.named_modules() if n.endswith("position_embeddings")]
        shifted = [t.padding_idx for t in tables if isinstance(t, torch.nn.Embedding) and t.padding_idx is not None]
        limits.append(places - (max(shifted) + 1 if shifted else 0))
    return min(limits, default=None)
