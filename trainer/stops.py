"""Stop a round whose loss, gradient or weights are not finite or explode; its batch is saved, checkpoints are kept."""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from trainer.checkpoint import checkpoint_folders
from trainer.data import PreferenceData
from trainer.errors import TrainerError
from trainer.files import PARTIAL, publish_file, write_json
from trainer.tree.rows import Row, Step

FEWEST, MOST = 8, 64
"""Minimum and maximum number of earlier steps in the median of gradient norms."""
NAMED = 8
"""Maximum number of prompts named in a message; the file has all of them."""


class BadStep(TrainerError):
    """Raised inside a step that cannot be trained on. `rows` caused it; empty: all rows of the step."""

    def __init__(self, number: int, problem: str, prompts: Sequence[str], rows: Sequence[Row] = ()) -> None:
        names = ", ".join(prompts[:NAMED]) + (f" and {len(prompts) - NAMED} more" if len(prompts) > NAMED else "")
        super().__init__(f"Training stopped at step {number}: {problem}, with the prompts {names}.")
        self.rows = tuple(rows)


class NormWatch:
    """Tracks recent gradient norms and stops a round whose gradients explode."""

    def __init__(self, ratio: float | None, clipped_at: float, norms: Iterable[float]) -> None:
        self.ratio, self.clipped_at = ratio, clipped_at
        self.norms = deque(norms, maxlen=MOST)

    def check(self, norm: float, *, number: int, prompts: Sequence[str]) -> None:
        """Raise BadStep for a norm above `ratio` times the recent median, unless it is not even clipped."""
        usual = median(self.norms) if len(self.norms) >= FEWEST else 0.0
        if self.ratio is not None and usual > 0 and norm > max(self.ratio * usual, self.clipped_at):
            raise BadStep(
                number,
                f"the gradient norm is {norm:.4g}, {norm / usual:.3g} times the median of the {len(self.norms)} steps "
                f"before (train.stop_at_norm_ratio allows {self.ratio:g}; with a higher value, or null, the same "
                "command continues)",
                prompts,
            )
        self.norms.append(norm)


@torch.no_grad()
def check_weights(parameters: dict[str, nn.Parameter], *, number: int, prompts: Sequence[str]) -> None:
    """Raise BadStep if the update made a weight non-finite: neither a checkpoint nor a candidate may contain it."""
    for name, parameter in parameters.items():
        mine = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # this process's part
        if not torch.isfinite(mine).all():
            raise BadStep(number, f"its update left NaN or infinity in {name}", prompts)


@contextmanager
def keep_batch(work: Path, data: PreferenceData, step: Step, number: int) -> Iterator[dict[str, float]]:
    """If the step inside raises BadStep, save its batch and the yielded numbers; raise TrainerError."""
    known: dict[str, float] = {}
    try:
        yield known
    except BadStep as error:
        path = work / f"stopped-at-step-{number}.json"
        partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")  # several processes may stop at the same step
        batch = _batch(data, error.rows or step.rows)
        write_json(partial, {"step": number, "why": str(error), "numbers": _plain(known)} | batch)
        publish_file(partial, path)
        raise TrainerError(f"{error} {_how_to_continue(work, path)}") from None


def _batch(data: PreferenceData, rows: Sequence[Row]) -> dict[str, Any]:
    """Prompts with the responses that the rows hold, and the relations over them."""
    held: dict[int, set[int]] = {}
    for tree in (tree for row in rows for tree in row.trees):
        held.setdefault(tree.group, set()).update(tree.responses)
    prompts = [
        {
            "id": data.groups[group].id,
            "token_ids": list(map(int, data.groups[group].token_ids)),
            "responses": [
                {"id": response.id, "token_ids": list(map(int, response.token_ids))}
                for response in (data.groups[group].responses[index] for index in sorted(members))
            ],
        }
        for group, members in sorted(held.items())
    ]
    relations = [data.relations[relation.index] for row in rows for relation in row.relations]
    return {"kind": data.kind, "prompts": prompts, "relations": [asdict(relation) for relation in relations]}


def _plain(numbers: dict[str, float]) -> dict[str, float | str]:
    """NaN and infinity as strings, since JSON has neither."""
    return {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}


def _how_to_continue(work: Path, path: Path) -> str:
    kept = ", ".join(folder.name for folder in checkpoint_folders(work))
    state = f"Its checkpoints are kept ({kept})." if kept else "There is no checkpoint yet."
    return (
        f"The batch is saved in {path}: look at its responses. {state} To train this round again, with a lower "
        f"learning rate or other data, remove {work}."
    )
