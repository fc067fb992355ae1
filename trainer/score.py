"""Score responses outside a round: log-prob sums under a model, with the rows, kernels and tree probe of training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from trainer.data import PreferenceData, PromptGroup, Single
from trainer.layout_probe import choose_layout
from trainer.layout_proof import proven_gaps
from trainer.model import choose_arithmetic, load_model, read_limits
from trainer.scorer import RowScorer, to_batch
from trainer.settings import TrainSettings
from trainer.tree.rows import Layout, Row, encode_row, plan_rows

ScorePrecision = Literal["fp32", "bf16-autocast"]


class ResponseScorer:
    """The model of a folder, ready to score. Raises TrainerError if the folder holds none."""

    def __init__(self, folder: Path, *, precision: ScorePrecision, row_tokens: int = 4096) -> None:
        self.folder, self.settings = folder, TrainSettings(precision=precision, row_tokens=row_tokens)
        self.arithmetic = choose_arithmetic(self.settings)
        self.scorer = RowScorer(load_model(folder, self.arithmetic))
        self.vocabulary, self.context = read_limits(folder)
        self._layout: Layout = "plain"
        self._probed = 0

    def score(self, groups: Sequence[PromptGroup], tick: Callable[[int], None]) -> list[list[float]]:
        """Log-prob sums in nats by group and response (NaN: the model gives none). No sequence may exceed `context`."""
        singles = tuple(Single(group.id, response.id) for group in groups for response in group.responses)
        if not singles:
            return [[] for _ in groups]
        data = PreferenceData(tuple(groups), singles)
        settings = self.settings.model_copy(update={"batch_pairs": len(singles)})
        plan = plan_rows(data, settings, seed=0, layout=self._chosen_layout(data))
        sums = [[float("nan")] * len(group.responses) for group in groups]
        done = 0
        for row in (row for step in plan.steps for row in step.rows):
            places = [(tree.group, response) for tree in row.trees for response in tree.responses]
            for (group, response), value in zip(places, self._sums(data, row, plan.layout), strict=True):
                sums[group][response] = value
            done += row.responses
            tick(done)
        return sums

    def _sums(self, data: PreferenceData, row: Row, layout: Layout) -> list[float]:
        encoded = encode_row(data, row, layout)
        batch = to_batch(encoded, device=self.arithmetic.device, mask_dtype=self.arithmetic.mask_dtype)
        with torch.no_grad(), self.arithmetic.autocast():
            sums: list[float] = self.scorer(batch).sum_R.tolist()
        return sums

    def _chosen_layout(self, data: PreferenceData) -> Layout:
        """Trees if a probe shows them to be correct for this model at this sequence length, where windows matter."""
        if data.longest > self._probed:
            device, row_tokens = self.arithmetic.device, self.settings.row_tokens
            gaps = proven_gaps(self.scorer, data, device=device, seed=0, row_tokens=row_tokens)
            self._layout, self._probed = choose_layout(gaps, "auto", folder=self.folder), data.longest
        return self._layout
