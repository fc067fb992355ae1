"""Config section `prompts`: where prompts come from, how many there are, and which of them an iteration takes."""

import string
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from loop.config.preferences_section import PreferenceSource
from loop.config.section import Section
from trainer.settings import LocalPath

Order = Literal["random", "easy_to_hard", "hard_to_easy"]
SCHEDULED = ("per_iteration", "order", "order_by", "parts", "solve_rate_column")
"""Keys that decide which training prompts an iteration takes, not what the three sets are."""
SIZES = ("train", "gate", "test", "per_iteration", "order")
"""Keys that a mixture sets for all of its sources."""


class Example(Section):
    """One solved example, shown before every prompt as an earlier turn of the chat."""

    prompt: str
    """What the user asked."""
    response: str
    """What the assistant answered."""


class PromptsBase(Section):
    """Empty prompts and duplicates are dropped and counted. The rest is divided into three disjoint sets (test, gate
    and train) in an order that depends only on the prompts' content and the seed. A training row that equals a prompt
    of separate test data is dropped too."""

    opener: ClassVar[str]
    """`module:function` that opens the source: takes the section, the seed and the counts, returns `Source`s."""
    system: str | None = None
    """System message before every prompt; null leaves it to the model's chat template."""
    few_shot: list[Example] = []
    """Solved examples, shown before every prompt as earlier turns of the chat."""
    template: str = "{prompt}"
    """The user message, with columns in braces; `{prompt}` is the prompt column, `{{` and `}}` are plain braces."""
    train: PositiveInt | None = None
    """Number of prompts to train on in the whole campaign; null takes all that gate and test leave."""
    gate: PositiveInt = 256
    """Number of held-out prompts that decide on promotion; more narrow its confidence interval. `prefloop plan` prints
    what they can tell."""
    test: PositiveInt = 200
    """Number of held-out prompts to report on; no decision reads them."""
    per_iteration: PositiveInt | None = None
    """Number of training prompts per iteration: disjoint slices in a seeded order; null uses all prompts each time."""
    order: Order = "random"
    """Which prompts come first: any, or the easiest or hardest by solve rate, where it is known. Ordered prompts may be
    used again, in the order of the solve rates measured so far."""

    @property
    def cut(self) -> bool:
        """Whether an iteration takes a part of the training prompts."""
        return self.per_iteration is not None

    def recorded(self) -> dict[str, Any]:
        """What decides the three sets, as a manifest records it."""
        return self.model_dump(mode="json", exclude=set(SCHEDULED))

    def scheduled(self) -> dict[str, Any]:
        """What decides the slices, as a manifest records it."""
        return self.model_dump(mode="json", include=set(SCHEDULED))

    @field_validator("template")
    @classmethod
    def _names_a_column(cls, template: str) -> str:
        try:
            named = any(name is not None for _, name, _, _ in string.Formatter().parse(template))
        except ValueError:
            return template  # explained with the columns when the source is opened
        if not named:
            raise ValueError("it names no column, so every prompt would be the same; write columns in braces: {prompt}")
        return template

    @model_validator(mode="after")
    def _order_has_slices(self) -> "PromptsBase":
        if self.order != "random" and not self.cut:
            raise ValueError(
                f"order {self.order} decides which prompts come first, but every iteration takes all of them; set "
                f"{self._slicing}, or order to random"
            )
        return self

    @property
    def _slicing(self) -> str:
        return "per_iteration"


class ReasoningGymPrompts(PromptsBase):
    """Procedural tasks with exact verifiers, from the package reasoning-gym."""

    opener = "loop.prompts.sources:open_gym"
    source: Literal["reasoning-gym"]
    """Which kind of source this is."""
    task: str
    """Name of a reasoning-gym task, e.g. `chain_sum`."""
    args: dict[str, Any] = {}
    """Arguments of the task, e.g. `min_terms: 2`."""
    template: str = "{question}"
    """The user message, with the task's `question` and `metadata` in braces, e.g. `What is {metadata[expression]}?`"""
    train: PositiveInt = 512
    """Number of prompts to train on in the whole campaign."""


class Gsm8kPrompts(PromptsBase):
    """Grade-school maths: openai/gsm8k from the hub, or the same rows in local files."""

    opener = "loop.prompts.sources:open_gsm8k"
    source: Literal["gsm8k"]
    """Which kind of source this is."""
    path: LocalPath | None = None
    """Local file with the training rows (train and gate come from it); null loads openai/gsm8k."""
    test_path: LocalPath | None = None
    """Local file with the test rows; null takes the hub's test split, or a part of `path` if that is given."""
    template: str = "{question}"
    """The user message, with `question` in braces."""


class ColumnPrompts(PromptsBase):
    """Prompts from rows with columns of any name."""

    prompt_column: str = "prompt"
    """The column with the prompt: a text, or a list of chat messages (role, content) that ends with the user's."""
    target_column: str | None = None
    """The column with the known answer, for judges that compare with one."""
    solve_rate_column: str | None = None
    """A column with the share of correct responses, 0 to 1, for `order`; rates that the run has measured take
    precedence."""


class FilePrompts(ColumnPrompts):
    """Prompts from a local JSON, JSONL, CSV or Parquet file."""

    opener = "loop.prompts.sources:open_file"
    source: Literal["file"]
    """Which kind of source this is."""
    path: LocalPath
    """The file: .json, .jsonl, .csv or .parquet."""
    test_path: LocalPath | None = None
    """A second file for the test set; null takes a part of `path`."""


class HubPrompts(ColumnPrompts):
    """Prompts from a dataset on the Hugging Face hub."""

    opener = "loop.prompts.sources:open_hub"
    source: Literal["hub"]
    """Which kind of source this is."""
    dataset: str
    """Dataset id, e.g. `openai/gsm8k`."""
    subset: str | None = None
    """Configuration of the dataset, e.g. `main`."""
    split: str = "train"
    """Split for train and gate."""
    test_split: str | None = None
    """Split for the test set; null takes a part of `split`."""


SampledSources = ReasoningGymPrompts | Gsm8kPrompts | FilePrompts | HubPrompts
"""The sources that a campaign samples responses to; a new one is added here."""
SampledPrompts = Annotated[SampledSources, Field(discriminator="source")]


class MixedPrompts(Section):
    """One source of a mixture."""

    weight: PositiveFloat = 1.0
    """Its share of every set and every slice, relative to the other weights."""
    prompts: SampledPrompts
    """The source, written as the section `prompts`, without the sizes, which the mixture sets."""

    @model_validator(mode="after")
    def _leaves_the_sizes(self) -> "MixedPrompts":
        if own := [key for key in SIZES if self.prompts.changes(key)]:
            raise ValueError(
                f"{', '.join(own)} cannot be set for one source of a mixture; set prompts.{own[0]} instead"
            )
        return self


class MixturePrompts(PromptsBase):
    """Several sources of prompts with weights, which every set and every slice follow. A prompt that occurs in two
    sources belongs to the first. `system` and `few_shot` apply to sources without their own. Judges find the name of a
    prompt's source in its column `prompt_source`."""

    source: Literal["mixture"]
    """Which kind of source this is."""
    sources: list[MixedPrompts]
    """The sources with their weights."""
    train: PositiveInt
    """Number of prompts to train on in the whole campaign, over all sources."""

    @model_validator(mode="after")
    def _mixes(self) -> "MixturePrompts":
        if len(self.sources) < 2:
            raise ValueError(f"a mixture has two sources or more, and there are {len(self.sources)} in prompts.sources")
        if self.changes("template"):
            raise ValueError("template belongs to a single source of a mixture; set it in prompts.sources")
        return self


def rate_columns(prompts: PromptsBase) -> list[str]:
    """The columns with solve rates: one for each source that has one."""
    each = [mixed.prompts for mixed in prompts.sources] if isinstance(prompts, MixturePrompts) else [prompts]
    return [column for source in each if (column := getattr(source, "solve_rate_column", None)) is not None]


class PreferencePrompts(PromptsBase, PreferenceSource):
    """Pairs from a preference dataset: nothing is sampled; an iteration trains on the pairs of its prompts. The three
    sets hold different prompts, each with all of its pairs. Formats: docs/data.md."""

    opener = "loop.prompts.preferences:open_preferences"
    source: Literal["preferences"]
    """Which kind of source this is."""
    test_path: LocalPath | None = None
    """A second file for the test set; null takes a part of `path`."""
    test_split: str | None = None
    """Split of the dataset for the test set; null takes a part of `split`."""
    parts: PositiveInt | None = None
    """Divide the training prompts into this many parts, one per iteration (sDPO); null: `per_iteration`, or all."""
    order_by: Literal["model", "margin"] = "model"
    """What is easy: pairs that the base model already ranks correctly by its log-probs, or pairs with a large margin
    (`margin_column`, or `score_chosen` minus `score_rejected`)."""

    @property
    def cut(self) -> bool:
        """Whether an iteration takes a part of the training prompts."""
        return self.per_iteration is not None or self.parts is not None

    @property
    def _slicing(self) -> str:
        return "parts (or per_iteration)"

    @model_validator(mode="after")
    def _does_not_contradict_itself(self) -> "PreferencePrompts":
        if self.parts is not None and self.per_iteration is not None:
            raise ValueError(
                "parts and per_iteration both set how many prompts an iteration takes; set one of them to null"
            )
        if self.parts is not None and self.train is not None and self.parts > self.train:
            raise ValueError(f"parts is {self.parts}, but only {self.train} prompts are trained on; lower it")
        if self.test_path is not None and self.path is None:
            raise ValueError("test_path goes with path; for a dataset on the hub set test_split")
        if self.test_split is not None and self.dataset is None:
            raise ValueError("test_split goes with dataset; for a local file set test_path")
        return self


PromptsConfig = Annotated[SampledSources | MixturePrompts | PreferencePrompts, Field(discriminator="source")]
