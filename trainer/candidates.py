"""Models made during a campaign besides candidates: kept ones of a round, to choose from, and averages of two."""

from pathlib import Path
from typing import Any

import torch

from trainer.errors import TrainerError
from trainer.files import fresh_partial, publish_folder
from trainer.losses.primitives import follow
from trainer.model import Arithmetic, load_model, rebuild, save_candidate, trained_parameters
from trainer.spec import Running

FOLDER = "candidates"


def keep_candidate(running: Running, model: Any, steps: int) -> None:
    """Write `work/candidates/step-<steps>` unless it exists; every process calls this, and the leader writes."""
    spec, team = running.spec, running.team
    target = spec.work / FOLDER / f"step-{steps:06d}"
    weights = team.collect(dict(trained_parameters(model)))
    if not team.leads or target.exists():
        return
    with torch.random.fork_rng():
        whole = model
        if team.sharded or spec.settings.lora is not None:  # merging adapters would end the training
            whole = rebuild(spec.policy, weights, spec.settings, seed=spec.seed)
        partial = fresh_partial(target)
        save_candidate(whole, partial, policy=spec.policy)
    publish_folder(partial, target)


def average_models(average: Path, newest: Path, out: Path, *, decay: float) -> None:
    """Write `decay * average + (1 - decay) * newest` to `out`, if it does not exist, with the tokenizer of `newest`
    (section 3 of arXiv:1703.01780). TrainerError if names or shapes of weights differ."""
    if out.exists():
        return
    cpu = Arithmetic(torch.device("cpu"), "fp32")
    model, other = load_model(average, cpu), load_model(newest, cpu)
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    if {name: p.shape for name, p in ours.items()} != {name: p.shape for name, p in theirs.items()}:
        raise TrainerError(
            f"The models in {average} and {newest} cannot be averaged: their weights differ in names or shapes. "
            "Average only models of one architecture."
        )
    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(follow(weight, theirs[name], alpha=1 - decay))
    partial = fresh_partial(out)
    save_candidate(model, partial, policy=newest)
    publish_folder(partial, out)
