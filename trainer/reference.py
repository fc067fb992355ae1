"""Room `trainer/`, the reference pass. In: the reference model and the round's plan; out: one log-prob sum per
response of every row. It walks exactly the planned rows, with the kernels and number format of training: only then is
the margin at step 0 exactly 0. Kept in the work folder, so that a restart goes on where it was; the model is not
needed afterwards."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trainer.data import PreferenceData
from trainer.errors import TrainerError
from trainer.files import PARTIAL, publish_file
from trainer.model import Arithmetic
from trainer.rows import Plan, Row, encode_row
from trainer.scorer import RowScorer, to_batch

SAVE_SECONDS = 20.0

Sums = list[list[torch.Tensor]]
"""[step][row] -> the row's sums, shape [R], on the CPU."""


def reference_key(*, reference_hash: str, plan: Plan, arithmetic: Arithmetic) -> str:
    """Changes with everything that could change a bit of the reference log-probs."""
    parts = (
        reference_hash,
        plan.digest,
        arithmetic.precision,
        str(arithmetic.device),
        torch.get_num_threads(),
        torch.__version__,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def reference_path(work: Path, key: str) -> Path:
    """Where the log-probs of this key lie."""
    return work / f"reference-{key[:16]}.safetensors"


def load_reference(path: Path, plan: Plan) -> Sums | None:
    """The finished log-probs, or None if the pass has not been made or not to its end."""
    done = _read(path)
    sizes = [row.responses for step in plan.steps for row in step.rows]
    if len(done) < sum(sizes):
        return None
    rows = iter(done.split(sizes))
    return [[next(rows) for _ in step.rows] for step in plan.steps]


def score_reference(
    scorer: RowScorer,
    data: PreferenceData,
    plan: Plan,
    path: Path,
    *,
    arithmetic: Arithmetic,
    tick: Callable[[int, int], None],
) -> Sums:
    """Score the rows that `path` does not hold yet; saved every `SAVE_SECONDS` and at the end. `tick(done, total)`
    per row."""
    rows = [row for step in plan.steps for row in step.rows]
    done = _read(path)
    skip = _rows_in(done, rows)
    sums, saved = [done], time.monotonic()
    with torch.no_grad(), arithmetic.autocast():
        for at, row in enumerate(rows):
            if at >= skip:
                sums.append(_score(scorer, data, row, plan, arithmetic))
            if time.monotonic() - saved > SAVE_SECONDS:
                _save(path, torch.cat(sums))
                saved = time.monotonic()
            tick(at + 1, len(rows))
    _save(path, torch.cat(sums))
    scored = load_reference(path, plan)
    assert scored is not None, "every planned row was scored"
    return scored


def sampler_gap(data: PreferenceData, plan: Plan, sums: Sums) -> float | None:
    """Mean absolute difference, in nats per token, between the sampler's log-probs of the responses and `sums`.

    Means something when the reference is the model that sampled them. None if the sampler's log-probs are not known.
    """
    gaps, tokens = 0.0, 0
    for step, step_sums in zip(plan.steps, sums, strict=True):
        for row, sums_R in zip(step.rows, step_sums, strict=True):
            responses = [data.groups[tree.group].responses[index] for tree in row.trees for index in tree.responses]
            for response, scored in zip(responses, sums_R.tolist(), strict=True):
                if response.sampled_logp is not None:
                    gaps += abs(response.sampled_logp - scored)
                    tokens += len(response.token_ids)
    return gaps / tokens if tokens else None


def _score(scorer: RowScorer, data: PreferenceData, row: Row, plan: Plan, arithmetic: Arithmetic) -> torch.Tensor:
    batch = to_batch(encode_row(data, row, plan.layout), device=arithmetic.device, mask_dtype=arithmetic.mask_dtype)
    sums_R = scorer(batch).sum_R.cpu()
    if not torch.isfinite(sums_R).all():
        names = ", ".join(sorted({data.groups[tree.group].id for tree in row.trees}))
        raise TrainerError(
            f"The reference model gives a log-prob that is not a number for the prompts {names}. "
            "Its weights hold NaN or infinity, or overflow in this precision: check the folder, or try precision fp32."
        )
    return sums_R


def _rows_in(done: torch.Tensor, rows: list[Row]) -> int:
    return sum(end <= len(done) for end in _ends(rows))


def _ends(rows: list[Row]) -> Iterator[int]:
    end = 0
    for row in rows:
        end += row.responses
        yield end


def _read(path: Path) -> torch.Tensor:
    if not path.exists():
        return torch.zeros(0)
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("sums")


def _save(path: Path, sums: torch.Tensor) -> None:
    partial = path.with_name(path.name + PARTIAL)
    save_file({"sums": sums}, partial)
    publish_file(partial, path)
