"""Room `trainer/`: what a user may set about one round. In: YAML values; out: a frozen `TrainSettings`. No torch
here."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LoraSettings(BaseModel):
    """Low-rank adapters (PEFT) instead of full fine-tuning; the candidate holds the merged weights."""

    model_config = FROZEN

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter; higher learns more and costs more memory."""
    alpha: int = Field(default=32, ge=1)
    """The adapter's output is multiplied by alpha / rank; higher makes every update larger."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which layers get an adapter: every linear layer but the output head, or a list of module names."""


class TrainSettings(BaseModel):
    """Everything that decides how one round of training goes, apart from models, data and seed."""

    model_config = FROZEN

    loss: Literal["dpo"] = "dpo"
    """Name of the preference loss (a row of the table in `losses.py`)."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull towards the reference; higher keeps the policy closer to it."""
    nll_weight: float = Field(default=1.0, ge=0)
    """Weight of the chosen response's mean token loss (alpha of Iterative RPO); 0 is plain DPO."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW; LoRA usually wants about ten times more."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rate after the warm-up: kept, or decayed to 0 at the end of the round."""
    warmup_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the round's steps in which the learning rate rises linearly to its peak."""
    epochs: int = Field(default=1, ge=1)
    """How often every pair is trained; later epochs repeat the same steps in another order."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps, whatever the epochs say."""
    batch_pairs: int = Field(default=16, ge=1)
    """Pairs per optimizer step; with `grouping: prompt` steps end at the prompt boundary that is nearest."""
    grouping: Literal["prompt", "shuffled"] = "prompt"
    """`prompt`: a prompt's pairs stay in one step (fastest); `shuffled`: pairs in random order, as published."""
    row_tokens: int = Field(default=2048, ge=16)
    """Tokens that one forward pass may hold; higher needs more memory. A single pair may exceed it."""
    layout: Literal["auto", "tree", "plain"] = "auto"
    """`tree`: shared prefixes are encoded once; `plain`: every sequence by itself; `auto`: trees where a probe proves
    them."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients longer than this are scaled down to it."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW; higher pulls weights towards 0."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's mean of gradients; higher smooths over more steps."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of AdamW's mean of squared gradients; higher smooths over more steps."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Added to AdamW's divisor; higher damps the updates of rarely used weights."""
    precision: Literal["auto", "fp32", "bf16-autocast", "bf16"] = "auto"
    """`fp32`; `bf16-autocast`: fp32 weights, bf16 arithmetic; `bf16`: all in bf16 (small updates are lost);
    `auto`: bf16-autocast on CUDA and on CPUs with bf16 instructions, otherwise fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: much less memory, about a third slower."""
    lora: LoraSettings | None = None
    """Train low-rank adapters instead of all weights."""
    checkpoint_every: int = Field(default=20, ge=0)
    """Optimizer steps between two checkpoints inside the round; 0 makes none."""

    @model_validator(mode="after")
    def _refuse_lora_in_bf16(self) -> "TrainSettings":
        if self.lora is not None and self.precision == "bf16":
            raise ValueError(
                "precision bf16 cannot be used with lora: merged updates would be rounded away; use bf16-autocast"
            )
        return self
