"""User settings for training a reward model. No torch here."""

from typing import Literal

from pydantic import BaseModel, Field

from trainer.settings import FROZEN, TrainSettings


class RewardSettings(BaseModel):
    """Settings for training a reward model, apart from base model, data and seed."""

    model_config = FROZEN

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW, for the layers and the head."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rate after the warm-up: constant, or decayed to 0 at the end."""
    warmup_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises linearly to its peak."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs; reward models overfit quickly after the first."""
    max_steps: int | None = Field(default=None, ge=1)
    """Maximum number of optimizer steps, whatever the epochs."""
    batch_pairs: int = Field(default=16, ge=1)
    """Pairs per optimizer step; with `grouping: prompt` a step ends at the nearest boundary between prompts."""
    grouping: Literal["prompt", "shuffled"] = "prompt"
    """`prompt`: a prompt's pairs stay in one step (fastest); `shuffled`: pairs in random order."""
    row_tokens: int = Field(default=2048, ge=16)
    """Maximum tokens in one forward pass; higher needs more memory. A single pair may exceed it."""
    layout: Literal["auto", "tree", "plain"] = "auto"
    """`tree`: shared prefixes are encoded once; `plain`: every sequence separately; `auto`: trees if a probe shows
    that the model scores them correctly."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Maximum gradient norm; longer gradients are scaled down to it."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW; higher pulls weights towards 0."""
    precision: Literal["auto", "fp32", "bf16-autocast"] = "auto"
    """`fp32`; `bf16-autocast`: fp32 weights, bf16 arithmetic in the layers (the head stays in fp32); `auto`:
    bf16-autocast on CUDA and on CPUs with bf16 instructions, otherwise fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: much less memory, about a third slower."""
    centre: float = Field(default=0.01, ge=0)
    """Weight of `(r_chosen + r_rejected)²`, which pulls the mean reward to 0; 0 leaves the mean free."""
    head_scale: float = Field(default=0.2, ge=0)
    """Spread of the new head's weights in units of 1 / sqrt(hidden size); 0 starts from zeros."""
    held_out: float = Field(default=0.1, ge=0, le=0.5)
    """Share of the pairs, as whole prompts, that is held out of training and measured before and after it."""
    checkpoint_every: int = Field(default=20, ge=0)
    """Optimizer steps between checkpoints; 0 makes none."""

    @property
    def as_round(self) -> TrainSettings:
        """The same values as settings of a round, for what both kinds of training share."""
        shared = TrainSettings.model_fields.keys() & RewardSettings.model_fields.keys()
        return TrainSettings.model_validate({name: getattr(self, name) for name in shared})
