"""Room loop, the configuration of what an iteration starts from, is anchored to, and when its candidate is promoted.

In: YAML values; out: the section `promote`, and the rules for `start` and `reference` with what contradicts them.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, NonNegativeFloat

from trainer.settings import FROZEN, TrainSettings

ReferenceRule = Literal["incumbent", "previous", "initial", "path", "ema"]
StartRule = Literal["incumbent", "previous", "initial"]


class PromoteConfig(BaseModel):
    """When a candidate becomes the next policy."""

    model_config = FROZEN

    rule: Literal["always", "better", "not_worse"] = "not_worse"
    """`better`: the gain's interval lies above 0; `not_worse`: it lies above -margin; `always` asks nothing."""
    metric: Literal["sampled_accuracy", "greedy_accuracy", "accuracy_among_well_formed", "well_formed_share"] = (
        "sampled_accuracy"
    )
    """What is compared on the gate prompts."""
    margin: NonNegativeFloat = 0.05
    """How much worse `not_worse` allows the lower end of the interval to be."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence of all intervals that are reported and decided on."""


def check_reference(reference: ReferenceRule, path: str | None, start: StartRule, train: TrainSettings) -> None:
    """ValueError where the reference contradicts another setting, with the way out."""
    if (reference == "path") != (path is not None):
        raise ValueError(
            "reference path needs the model's name in reference_path, e.g. reference_path=models/anchor"
            if path is None
            else f"reference_path is {path!r}, but the reference is {reference}; set reference to path, or "
            "reference_path to null"
        )
    if train.warm_start is not None and reference != start:
        raise ValueError(
            f"reference {reference} cannot be used with train.warm_start, whose result is the reference of its round; "
            f"set reference to {start}, which training starts from, or train.warm_start to null"
        )
    moving = [term.name for term in train.terms if "moving_reference" in term.method().needs]
    if moving and train.lora is not None:
        raise ValueError(
            f"the loss {moving[0]} moves its reference inside the round and cannot be used with train.lora, as a mix "
            "of adapters is not the adapter of a mix; set train.lora to null, or take another loss"
        )
