"""Keep intermediate models in `work/candidates` so that one can be chosen after the round. Training is not affected."""

from typing import Any

import torch

from trainer.files import fresh_partial, publish_folder
from trainer.model import rebuild, save_candidate, trained_parameters
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
