"""User settings for one round of training. No torch here."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer.choices import OPTIMIZERS, SCHEDULES, Arguments, chosen
from trainer.losses.terms import LossTerm, terms_of

ONLY_HOW = frozenset({"checkpoint_every", "stop_at_norm_ratio", "processes", "distribute"})
"""Fields of `TrainSettings` that do not change the result (up to rounding); they may change while a round is under
way."""
OF_WHOLE_ROUNDS = {
    "max_steps": "the number of steps is not known before the last slice of prompts is judged; use "
    "prompts.per_iteration instead",
    "warm_start": "it trains on all chosen responses before the first step, but most are not sampled by then",
    "mix": "its examples are distributed over the steps, whose number is not known beforehand",
    "probe_pairs": "the pairs to watch are drawn from all pairs of the round",
    "select": "the checkpoints of an online round are not kept as models",
    "processes": "the slices are trained in one process",
}
"""Fields of `TrainSettings` that need the pairs of the whole round before its first step, and why; not for
`sync_every`."""
ADDED_LATER = frozenset({"optimizer"})
"""Fields that are not part of a round's identity at their defaults: rounds from before they existed keep theirs."""
Identity = dict[str, Any]
"""What decides the weights of a training, by name; trainings whose identities are equal have the same result."""
FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def absolute(path: str) -> str:
    """The path from the root, `~` filled in."""
    return os.path.abspath(os.path.expanduser(path))


@dataclass(frozen=True, slots=True)
class IsPath:
    """Marks a setting that can hold a local path; `absolute` gives its value with that path made absolute."""

    absolute: Callable[[Any], Any]


def _absolute_loss(loss: Any) -> Any:
    """A loss of a file with the file's absolute path; any other loss as it is."""
    if isinstance(loss, str):
        file, colon, function = loss.rpartition(":")
        return f"{absolute(file)}{colon}{function}" if file.endswith(".py") else loss
    if isinstance(loss, dict):
        return loss | {"name": _absolute_loss(loss["name"])} if isinstance(loss.get("name"), str) else loss
    return type(loss)(map(_absolute_loss, loss)) if isinstance(loss, list | tuple) else loss


LocalPath = Annotated[str, IsPath(absolute)]
"""A local file or folder; relative paths start at the current directory."""


class LoraSettings(BaseModel):
    """Low-rank adapters (PEFT) instead of full fine-tuning; the candidate holds the merged weights."""

    model_config = FROZEN

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter; higher learns more and costs more memory."""
    alpha: int = Field(default=32, ge=1)
    """The adapter's output is multiplied by alpha / rank; higher makes every update larger."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which layers get an adapter: `all-linear` for every linear layer but the output head, a name or a list of module
    names (embeddings and output head only in models that do not tie them), or a regular expression over whole names."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that a training step leaves out; higher regularises more."""
    use_rslora: bool = False
    """Multiply by alpha / √rank instead of alpha / rank, so that high ranks learn as fast as low ones (rsLoRA)."""
    use_dora: bool = False
    """Train the length of every output's weights apart from their direction (DoRA); slower."""
    init_lora_weights: bool | str = True
    """First weights of the adapters: true, `gaussian` or `orthogonal`; `olora`, `pissa` or `pissa_niter_N` take them
    from the weights of the layer, which keeps the rest."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules that are trained as a whole besides, such as `lm_head` in models that do not tie it."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Other ranks for layers by the ends of their names or regular expressions: `{q_proj: 64}`."""
    alpha_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Other values of alpha, in the same way."""

    @property
    def takes_from_base(self) -> bool:
        """Whether new adapters take something out of the layers' weights, so that these differ without adapters."""
        return self.init_lora_weights not in (True, "gaussian", "orthogonal")

    @property
    def deciding(self) -> Identity:
        """Its part of a round's identity: fields that were added later only where they are set."""
        fields, values = type(self).model_fields, self.model_dump(mode="json")
        first = ("rank", "alpha", "target_modules")
        return {name: value for name, value in values.items() if name in first or value != _json(fields[name].default)}

    @model_validator(mode="after")
    def _refuse_impossible(self) -> "LoraSettings":
        known = (True, "gaussian", "orthogonal", "olora", "pissa")
        given = self.init_lora_weights
        if given not in known and not re.fullmatch(r"pissa_niter_\d+", str(given)):
            raise ValueError(
                f"init_lora_weights {given!r} cannot be used: choose true, gaussian, orthogonal, olora, pissa or "
                "pissa_niter_N (others read data or a quantised model, or change the model before its first step)"
            )
        return self


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class WarmStart(BaseModel):
    """A supervised phase on the chosen responses before the round itself."""

    model_config = FROZEN

    epochs: int = Field(default=1, ge=1)
    """Passes over the chosen responses; more brings the model closer to them, and to repeating them verbatim."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of this phase."""


class MixSettings(BaseModel):
    """Supervised examples from another source in every step, against forgetting."""

    model_config = FROZEN

    path: LocalPath
    """A .jsonl, .json, .csv or .parquet file with the columns `prompt` and `response`, or with `messages` that end with
    an assistant message."""
    weight: float = Field(default=0.1, gt=0)
    """Weight of their mean NLL per token in the loss; higher keeps the policy closer to them."""
    per_step: int = Field(default=4, ge=1)
    """Maximum number of examples in each optimizer step; all are used once before any is repeated."""


class TrainSettings(BaseModel):
    """Settings of one round of training, apart from models, data and seed."""

    model_config = FROZEN

    loss: Annotated[str | dict[str, Any] | tuple[str | dict[str, Any], ...], IsPath(_absolute_loss)] = "dpo_nll"
    """A method of docs/methods.md by name; with arguments `{name: simpo, beta: 2.5}`; a weighted sum
    `[{name: dpo}, {name: nll, weight: 0.2}]`; or a custom loss, `path/to/file.py:function` or
    `package.module:function`."""
    beta: float | None = Field(default=None, gt=0)
    """Shorthand: the `beta` of every loss that has one (null: the method's own default, 0.1 for DPO)."""
    nll_weight: float | None = Field(default=None, ge=0)
    """Shorthand: weight of the chosen response's mean token loss, added to `loss` (null: 1 with `dpo_nll`, else 0)."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate; LoRA usually wants about ten times more."""
    optimizer: str | dict[str, Any] = "adamw"
    """`adamw`, `adamw_8bit`, `muon`, `sgd` or `adafactor` (docs/training.md); with arguments
    `{name: sgd, momentum: 0.9}`."""
    schedule: str | dict[str, Any] = "linear"
    """Learning rate after the warm-up, by the names of transformers: `constant`, `linear`, `cosine`,
    `cosine_with_restarts`, `cosine_with_min_lr`, `polynomial`, `inverse_sqrt` or `warmup_stable_decay`; with arguments
    `{name: cosine_with_restarts, num_cycles: 3}`."""
    warmup_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the round's steps in which the learning rate rises linearly to its peak."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs; later epochs repeat the same steps in another order."""
    max_steps: int | None = Field(default=None, ge=1)
    """Maximum number of optimizer steps, whatever the epochs."""
    batch_pairs: int = Field(default=16, ge=1)
    """Pairs per optimizer step; with `grouping: prompt` a step ends at the nearest boundary between prompts."""
    grouping: Literal["prompt", "shuffled"] = "prompt"
    """`prompt`: a prompt's pairs stay in one step (fastest); `shuffled`: pairs in random order, as published."""
    row_tokens: int = Field(default=2048, ge=16)
    """Maximum tokens in one forward pass; higher needs more memory. A single pair may exceed it."""
    layout: Literal["auto", "tree", "plain"] = "auto"
    """`tree`: shared prefixes are encoded once; `plain`: every sequence separately; `auto`: trees if a probe shows
    that the model scores them correctly."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Maximum gradient norm; longer gradients are scaled down to it."""
    stop_at_norm_ratio: float | None = Field(default=1000.0, gt=1)
    """Stop the round and save the batch if the gradient norm exceeds both `max_grad_norm` and this many times the
    median of the last 64 steps (from the ninth step on); higher tolerates more, null never stops."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay, decoupled but for sgd; higher pulls weights towards 0."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's mean of gradients; higher smooths over more steps."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of AdamW's mean of squared gradients; higher smooths over more steps."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Added to AdamW's denominator; higher damps the updates of rarely used weights."""
    precision: Literal["auto", "fp32", "bf16-autocast", "bf16"] = "auto"
    """`fp32`; `bf16-autocast`: fp32 weights, bf16 arithmetic; `bf16`: everything in bf16 (small updates are lost);
    `auto`: bf16-autocast on CUDA and on CPUs with bf16 instructions, otherwise fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: much less memory, about a third slower."""
    lora: LoraSettings | None = None
    """Train low-rank adapters instead of all weights."""
    warm_start: WarmStart | None = None
    """First train on the chosen responses alone; the resulting model is both start and reference of the round. For
    pairs that the reference did not sample."""
    mix: MixSettings | None = None
    """Supervised examples from another source, added to every step against forgetting."""
    sync_every: Annotated[int, Field(ge=1)] | Literal["round"] = "round"
    """Maximum number of optimizer steps before the sampler gets new weights: 1 is online training, `round` samples
    everything before the first step (docs/online.md)."""
    probe_pairs: int = Field(default=0, ge=0)
    """Minimum number of pairs (of whole prompts) to hold out of training and measure before, during and after it; 0
    holds out none."""
    probe_every: int = Field(default=10, ge=1)
    """Optimizer steps between two measurements of the probe pairs."""
    checkpoint_every: int = Field(default=20, ge=0)
    """Optimizer steps between checkpoints inside the round; 0 makes none."""
    select: Literal["last", "best"] = "last"
    """The candidate: the model after the `last` step, or the `best` of this and of one model per checkpoint on the gate
    prompts, by `promote.metric`; all of these models are on the disk until one is chosen."""
    processes: int = Field(default=1, ge=1)
    """Number of training processes on this machine, one per GPU, or sharing a CPU's threads. They split the rows of
    each step, so the result is that of one process up to rounding; more processes than rows in a step gain nothing."""
    distribute: Literal["ddp", "fsdp"] = "ddp"
    """With several processes, `ddp`: each holds the whole model; `fsdp`: each holds a part of weights, gradients and
    optimizer state, for models that do not fit on one GPU."""

    @property
    def terms(self) -> tuple[LossTerm, ...]:
        """The loss as a weighted sum, with every argument filled in."""
        return terms_of(self.loss, beta=self.beta, nll_weight=self.nll_weight)

    @property
    def chosen_optimizer(self) -> tuple[str, Arguments]:
        """Its name, and every argument."""
        return chosen(self.optimizer, OPTIMIZERS, "optimizer")

    @property
    def chosen_schedule(self) -> tuple[str, Arguments]:
        """Its name, and every argument."""
        return chosen(self.schedule, SCHEDULES, "schedule")

    @property
    def online(self) -> bool:
        """Whether the sampler gets new weights inside the round."""
        return self.sync_every != "round"

    @property
    def deciding(self) -> Identity:
        """What decides the candidate's weights, as plain values."""
        values = self.model_dump(mode="json", exclude={*ONLY_HOW, "select"})
        if self.lora is not None:
            values["lora"] = self.lora.deciding
        for name in ADDED_LATER:
            if values[name] == type(self).model_fields[name].default:
                del values[name]
        chosen = {"select": self.select, "checkpoint_every": self.checkpoint_every}
        return values if self.select == "last" else values | chosen

    @model_validator(mode="after")
    def _refuse_impossible(self) -> "TrainSettings":
        """ValueError for an unknown loss, and for combinations that cannot be trained."""
        assert self.terms
        (optimizer, _), (_, schedule) = self.chosen_optimizer, self.chosen_schedule
        if schedule.get("lr_end", 0) >= self.learning_rate:
            raise ValueError(
                f"the schedule ends at lr_end {schedule['lr_end']:g}, which is not below the learning_rate of "
                f"{self.learning_rate:g}; set a lower lr_end"
            )
        if self.distribute == "fsdp" and not OPTIMIZERS[optimizer].sharded:
            raise ValueError(
                f"the optimizer {optimizer} cannot be used with distribute fsdp, which would split the matrices that "
                "it updates as a whole; use adamw or sgd, or distribute ddp"
            )
        if self.select == "best" and not self.checkpoint_every:
            raise ValueError("select is best, but checkpoint_every is 0, so there is nothing to choose from; raise it")
        given = [name for name in OF_WHOLE_ROUNDS if getattr(self, name) != type(self).model_fields[name].default]
        if self.online and given:
            raise ValueError(
                f"{given[0]} cannot be used with sync_every {self.sync_every}: {OF_WHOLE_ROUNDS[given[0]]}; unset it, "
                "or set sync_every to round"
            )
        if self.lora is not None and self.precision == "bf16":
            raise ValueError(
                "precision bf16 cannot be used with lora: merging would round the updates away; use bf16-autocast"
            )
        if self.lora is not None and self.lora.takes_from_base and (self.distribute == "fsdp" or self.select == "best"):
            raise ValueError(
                f"init_lora_weights {self.lora.init_lora_weights} cannot be used with distribute fsdp or select best, "
                "which put the model together again from its policy: use true, gaussian or orthogonal"
            )
        if self.distribute == "fsdp" and self.precision == "bf16":
            raise ValueError(
                "precision bf16 cannot be used with distribute fsdp: sharded weights cannot change their format after "
                "the layout probe; use bf16-autocast, or distribute ddp"
            )
        return self
