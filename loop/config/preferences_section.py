"""Configuration of preference data: where it is, and which columns hold what; docs/data.md explains the formats."""

from pydantic import model_validator

from loop.config.section import Section
from trainer.settings import LocalPath


class PairColumns(Section):
    """One pair per row. A text prompt is the user's message and the responses are answers to it; prompt and responses
    may also be lists of chat messages. Without a prompt column chosen and rejected are whole conversations with a
    common beginning: lists of messages, or transcripts of `Human:` and `Assistant:`."""

    prompt_column: str = "prompt"
    """The column with the prompt; without it, chosen and rejected must be conversations, which contain their prompt."""
    chosen_column: str = "chosen"
    """The column with the better response: a text or chat messages."""
    rejected_column: str = "rejected"
    """The column with the worse response."""
    margin_column: str | None = None
    """A column with a number: how much better the chosen response is."""


class PreferenceSource(PairColumns):
    """A file or a dataset of pairs."""

    path: LocalPath | None = None
    """A local file: .json, .jsonl, .csv or .parquet."""
    dataset: str | None = None
    """A dataset id on the Hugging Face hub, e.g. `trl-lib/ultrafeedback_binarized`."""
    subset: str | None = None
    """Configuration of the dataset."""
    split: str = "train"
    """Split of the dataset."""

    @property
    def named(self) -> str:
        """The file or the dataset."""
        return str(self.path or self.dataset)

    @model_validator(mode="after")
    def _has_one_place(self) -> "PreferenceSource":
        if (self.path is None) == (self.dataset is None):
            problem = "has neither path nor dataset" if self.path is None else "has both path and dataset"
            raise ValueError(
                f"the preference data {problem}; give path for a local file of chosen and rejected answers, or dataset "
                "for one on the hub"
            )
        return self
