"""Runs a sequence-classification model on texts, padded on the right, masked and never truncated, and returns their
logits. Shapes: `B` texts, `C` outputs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from judges.context import Messages
from judges.models.chat_text import ids_of
from judges.types import JudgeError, describe

Dtype = Literal["auto", "float32", "bfloat16"]
HEADS = ("score", "classifier", "classification_head", "logits_proj")
"""Names that transformers uses for the scoring head."""
NO_WINDOW = 10**9
"""Tokenizers without a known limit report a larger number."""


class Encoded(NamedTuple):
    """A tokenised text; `kinds` are its token type ids (BERT), None if the model has none."""

    ids: list[int]
    kinds: list[int] | None = None


class SequenceModel:
    """The model of a folder, in host memory until it is used. JudgeError if the folder is incomplete."""

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
        """Whether the tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode_chat(self, messages: Messages) -> Encoded:
        """Encode a conversation with the model's own chat template. ValueError if that changes the answer."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        answer = messages[-1]["content"].strip()
        ids = ids_of(self.tokenizer, text, [message["content"] for message in messages])
        if ids is None or answer not in text:
            raise ValueError(
                f"the chat template of the judge's model {self.name} changes the response (it would read "
                f"{text[-80:]!r}), so another text would be judged"
            )
        return Encoded(ids)

    def encode_text(self, text: str, second: str | None = None) -> Encoded:
        """Encode a text or a pair of texts, with the tokenizer's special tokens."""
        found = self.tokenizer(text, second, truncation=False, verbose=False, split_special_tokens=True)
        return Encoded(list(found["input_ids"]), found.get("token_type_ids"))

    def unfit(self, encoded: Encoded) -> str | None:
        """Why a text cannot be scored; None if it can."""
        if not encoded.ids:
            return "the text has no tokens"
        if self.window is not None and len(encoded.ids) > self.window:
            return f"{len(encoded.ids)} tokens are more than the model's window of {self.window}"
        return None

    def logits(self, texts: Sequence[Encoded], batch_tokens: int) -> Iterator[dict[int, list[float]]]:
        """Yield the [C] logits of every text by its index, longest first, in batches of `batch_tokens` with padding."""
        import torch

        self.model.to(self.device)
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

    def rest(self) -> None:
        """Free the device's memory."""
        import torch

        if self.device.type == "cuda":
            self.model.to("cpu")
            torch.cuda.empty_cache()


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Batch indices by similar length, longest first; batch size times longest is at most `batch_tokens`."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _no_last_token(batch: Sequence[Encoded]) -> int:
    """A token id that ends no text, to pad with if the model has no pad token: the last non-pad token stays right."""
    last = {text.ids[-1] for text in batch}
    return next(i for i in range(len(last) + 1) if i not in last)


def _device(name: str) -> Any:
    import torch

    try:
        return torch.device(name)
    except RuntimeError:
        raise JudgeError(f"judge.args.device={name!r} is not a device: use auto, cpu, cuda or cuda:1.") from None


def _load(name: str, folder: Path, *, half: bool) -> tuple[Any, Any]:
    """Load tokenizer and model. With `half` the layers are bf16 but not the head: rounding it would tie scores."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it would print a table of missing keys; ours is the message below
    logging.disable_progress_bar()
    try:
        plain = {"trust_remote_code": False}  # not even a question at the terminal
        tokenizer = AutoTokenizer.from_pretrained(folder, **plain)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype="auto" if half else torch.float32, output_loading_info=True, **plain
        )
    except Exception as error:  # the boundary to foreign parsers, which raise anything
        own_code = "trust_remote_code" in str(error) or "custom code" in str(error)
        why = "it needs code of its own (auto_map), which prefloop does not run" if own_code else describe(error)
        raise JudgeError(
            f"The judge's model {name} cannot be loaded as a sequence-classification model: {why}. Use a model that "
            f"transformers can load with AutoModelForSequenceClassification."
        ) from error
    finally:
        logging.set_verbosity(before)
    if missing := sorted(found["missing_keys"]):
        raise JudgeError(
            f"The judge's model {name} has no weights for {', '.join(missing[:3])}"
            f"{' and more' if len(missing) > 3 else ''}: it is not a trained classification model (its type is "
            f"{type(model).__name__}), and a new random head would give random scores. Use a reward model or a "
            f"classifier, not its base model."
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
    """The longest text in tokens; None if unknown. Some models count positions from the pad token's id."""
    import torch

    config = model.config.get_text_config()
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < NO_WINDOW else []
    if (places := getattr(config, "max_position_embeddings", None)) is not None and places > 0:
        tables = [m for n, m in model.named_modules() if n.endswith("position_embeddings")]
        shifted = [t.padding_idx for t in tables if isinstance(t, torch.nn.Embedding) and t.padding_idx is not None]
        limits.append(places - (max(shifted) + 1 if shifted else 0))
    return min(limits, default=None)
