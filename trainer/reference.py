"""Reference pass: log-prob sums per response of the planned rows, and per token where needed, kept in the work folder.
It uses the rows, kernels and number format of training: only then is the margin at step 0 exactly 0."""

import hashlib
import json
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainer.data import PreferenceData
from trainer.errors import TrainerError
from trainer.files import PARTIAL, publish_file
from trainer.model import Arithmetic
from trainer.parallel.team import Team
from trainer.scorer import RowScorer, to_batch
from trainer.tree.rows import Plan, Row, encode_row

SAVE_SECONDS = 20.0


class RowReference(NamedTuple):
    """The reference's numbers for one row's responses, on CPU."""

    sum_R: Tensor
    tokens_RL: Tensor | None


Reference = list[list[RowReference]]
"""[step][row]."""


def reference_key(*, reference_hash: str, plan: Plan, arithmetic: Arithmetic, tokens: bool) -> str:
    """Changes with everything that could change a bit of the reference log-probs."""
    parts = (
        reference_hash,
        plan.digest,
        arithmetic.precision,
        str(arithmetic.device),
        torch.get_num_threads(),
        torch.__version__,
        tokens,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def reference_path(work: Path, key: str) -> Path:
    """The file of this key's log-probs."""
    return work / f"reference-{key[:16]}.safetensors"


class ReferencePass:
    """The pass over one plan; `tokens` keeps the log-probs of single tokens too."""

    def __init__(self, data: PreferenceData, plan: Plan, path: Path, *, tokens: bool) -> None:
        self.data, self.plan, self.path, self.tokens = data, plan, path, tokens
        self.rows = [row for step in plan.steps for row in step.rows]
        self.lengths = [response_lengths(data, row) for row in self.rows]

    def load(self) -> Reference | None:
        """The finished log-probs, or None if the pass is not complete."""
        done = _read(self.path)
        sizes = [self._size(lengths) for lengths in self.lengths]
        if len(done) < sum(sizes):
            return None
        rows = iter(zip(done.split(sizes), self.lengths, strict=True))
        return [[self._unpack(*next(rows)) for _ in step.rows] for step in self.plan.steps]

    def score(
        self, scorer: RowScorer, arithmetic: Arithmetic, tick: Callable[[int, int], None], team: Team
    ) -> Reference:
        """Score the rows that the file lacks, saving every `SAVE_SECONDS`; `tick(done, total)` per turn of the team."""
        done = _read(self.path)
        first = bisect_right(list(accumulate(map(self._size, self.lengths))), len(done))
        parts, saved, rows = [done], time.monotonic(), self.rows[first:]
        with torch.no_grad(), arithmetic.autocast():
            for turn in team.turns(len(rows)):
                mine = self._score(scorer, rows[turn.row], arithmetic)
                parts += [scored for scored, idle in team.gather((mine, turn.idle)) if not idle]
                if team.leads and time.monotonic() - saved > SAVE_SECONDS:
                    _save(self.path, torch.cat(parts))
                    saved = time.monotonic()
                tick(first + len(parts) - 1, len(self.rows))
        if team.leads:
            _save(self.path, torch.cat(parts))
        team.wait()
        scored = self.load()
        assert scored is not None, "every planned row was scored"
        return scored

    def _score(self, scorer: RowScorer, row: Row, arithmetic: Arithmetic) -> Tensor:
        encoded = encode_row(self.data, row, self.plan.layout)
        scores = scorer(to_batch(encoded, device=arithmetic.device, mask_dtype=arithmetic.mask_dtype))
        if not torch.isfinite(scores.sum_R).all():
            names = ", ".join(sorted({self.data.groups[tree.group].id for tree in row.trees}))
            raise TrainerError(
                f"The reference model gives a log-prob that is not finite for the prompts {names}. Its weights contain "
                "NaN or infinity, or overflow in this precision: check the folder, or try precision fp32."
            )
        if not self.tokens:
            return scores.sum_R.cpu()
        paths = torch.from_numpy(encoded.path_RL[encoded.path_RL >= 0]).to(scores.token_K.device)
        return torch.cat([scores.sum_R, scores.token_K[paths]]).cpu()

    def _size(self, lengths: Sequence[int]) -> int:
        return len(lengths) + (sum(lengths) if self.tokens else 0)

    def _unpack(self, flat: Tensor, lengths: Sequence[int]) -> RowReference:
        if not self.tokens:
            return RowReference(flat, None)
        pieces = flat[len(lengths) :].split(list(lengths))
        return RowReference(flat[: len(lengths)], pad_sequence(list(pieces), batch_first=True))


def response_lengths(data: PreferenceData, row: Row) -> list[int]:
    """Tokens of each response of a row."""
    return [len(data.groups[tree.group].responses[index].token_ids) for tree in row.trees for index in tree.responses]


def sampler_gap(data: PreferenceData, plan: Plan, reference: Reference) -> float | None:
    """Mean absolute difference (nats per token) between the sampler's and the reference's log-probs; None if
    unknown."""
    gaps, tokens = 0.0, 0
    for step, rows in zip(plan.steps, reference, strict=True):
        for row, scored_row in zip(step.rows, rows, strict=True):
            responses = [data.groups[tree.group].responses[index] for tree in row.trees for index in tree.responses]
            for response, scored in zip(responses, scored_row.sum_R.tolist(), strict=True):
                if response.sampled_logp is not None:
                    gaps += abs(response.sampled_logp - scored)
                    tokens += len(response.token_ids)
    return gaps / tokens if tokens else None


def _read(path: Path) -> torch.Tensor:
    if not path.exists():
        return torch.zeros(0)
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("sums")


def _save(path: Path, sums: torch.Tensor) -> None:
    partial = path.with_name(path.name + PARTIAL)
    save_file({"sums": sums}, partial)
    publish_file(partial, path)
