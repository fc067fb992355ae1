"""Checkpoints inside a round, from which it resumes bit for bit; one of another round (weights, data, settings, seed)
is rejected. The newest is complete before the older one is removed."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trainer.errors import TrainerError
from trainer.files import PARTIAL, fresh_partial, publish_folder, read_json, write_json
from trainer.learner import Learner
from trainer.optimizer import Optimizer
from trainer.parallel.team import ALONE, Team
from trainer.settings import Identity

REFERENCE = "reference.safetensors"


@dataclass(frozen=True, slots=True)
class Position:
    """Progress of a round: optimizer steps done, length of its step log, seconds spent so far by part."""

    steps: int
    log_bytes: int
    seconds: dict[str, float]
    slices: dict[str, Any] = field(default_factory=dict)
    """For an online round, the results of the slices so far."""


def save_checkpoint(
    work: Path,
    position: Position,
    identity: Identity,
    learner: Learner,
    optimizer: Optimizer,
    team: Team = ALONE,
) -> None:
    """Write `work/checkpoint-<steps>` with whole tensors, then remove older ones; every process must call this."""
    parameters = learner.parameters()
    weights = team.collect(parameters)
    moments = team.collect(optimizer.states())
    moving = team.collect(learner.live.state()) if learner.live is not None and learner.live.moves else None
    if not team.leads:
        return
    target = work / f"checkpoint-{position.steps:06d}"
    partial = fresh_partial(target)
    save_file(weights, partial / "weights.safetensors")
    save_file(moments, partial / "optimizer.safetensors")
    save_file({"torch": torch.get_rng_state()}, partial / "rng.safetensors")
    if moving is not None:
        save_file(moving, partial / REFERENCE)
    state = {
        "steps": position.steps,
        "log_bytes": position.log_bytes,
        "seconds": position.seconds,
        "identity": identity,
        "losses": learner.objective.state,
        "slices": position.slices,
    }
    write_json(partial / "state.json", state)
    publish_folder(partial, target)
    for older in checkpoint_folders(work):
        if older != target:
            shutil.rmtree(older)


def find_checkpoint(work: Path, identity: Identity, team: Team = ALONE) -> Path | None:
    """The newest checkpoint, if any; half-written ones are removed. TrainerError if it belongs to another round."""
    for leftover in work.glob("checkpoint-*" + PARTIAL) if team.leads else ():
        shutil.rmtree(leftover)
    folders = checkpoint_folders(work)
    if not folders:
        return None
    found = read_json(folders[-1] / "state.json")["identity"]
    different = sorted(key for key in identity if found.get(key) != identity[key])
    if different:
        raise TrainerError(
            f"The checkpoint {folders[-1]} belongs to another round: it differs in {', '.join(different)}. "
            f"Restore the settings it was made with, or remove {work} to train this round from the start."
        )
    return folders[-1]


def load_checkpoint(folder: Path, learner: Learner, optimizer: Optimizer, team: Team = ALONE) -> Position:
    """Restore weights, optimizer, moving reference, running statistics and random state; return the position."""
    weights = load_file(folder / "weights.safetensors")
    parameters = learner.parameters()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(team.part(weights[name], like=parameter))
    flat = load_file(folder / "optimizer.safetensors")
    optimizer.load({label: _part_of_moment(label, value, parameters, team) for label, value in flat.items()})
    torch.set_rng_state(load_file(folder / "rng.safetensors")["torch"])
    if learner.live is not None and learner.live.moves:
        held = learner.live.parameters
        moved = load_file(folder / REFERENCE)
        learner.live.load({name: team.part(values, like=held[name]) for name, values in moved.items()})
    state = read_json(folder / "state.json")
    learner.objective.state = state["losses"]
    return Position(state["steps"], state["log_bytes"], state["seconds"], state.get("slices", {}))


def remove_checkpoints(work: Path) -> None:
    """Remove the checkpoints of a finished round: its candidate holds everything that later rounds need."""
    for folder in work.glob("checkpoint-*"):
        shutil.rmtree(folder)


def checkpoint_folders(work: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(folder for folder in work.glob("checkpoint-*") if not folder.name.endswith(PARTIAL))


def _part_of_moment(
    label: str, value: torch.Tensor, parameters: dict[str, torch.nn.Parameter], team: Team
) -> torch.Tensor:
    """This process's part: the optimizer's tensors are sharded like its weights, its step counts are not."""
    return team.part(value, like=parameters[label.partition("|")[0]]) if value.dim() else value
