"""A round whose data arrive in slices, later ones sampled from weights trained on earlier ones, which are published in
between: one optimizer, one schedule, one reference. One slice gives the same weights as `train_round`. The reference
stays in memory; with adapters it is the policy with its adapters off. Killed at any moment and opened again, it resumes
from its last checkpoint, at the slice of that checkpoint."""

import copy
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from trainer import prepare
from trainer.checkpoint import Position, find_checkpoint, remove_checkpoints
from trainer.data import PreferenceData
from trainer.errors import TrainerError
from trainer.files import read_json, write_json
from trainer.layout_probe import narrowest_window
from trainer.learner import LIVE, Learner, LiveReference
from trainer.model import cast_weights
from trainer.online.publish import Format, Publisher
from trainer.optimizer import make_optimizer
from trainer.parallel.team import ALONE
from trainer.reference import Reference
from trainer.round import RoundTotals, save_round
from trainer.scorer import RowScorer
from trainer.spec import Report, RoundSpec
from trainer.steps import Slice, StepsJob, StepsPlan, read_steps, resume, run_steps
from trainer.summary import RoundSummary, read_summary
from trainer.tree.rows import Layout, Plan

LAYOUT = "layout.json"
"""In the work folder: the result of the first slice's probe, for a round that resumes."""


@dataclass(frozen=True, slots=True)
class SliceProgress:
    """Results of the slices so far; kept in checkpoints."""

    slices: int = 0
    """Finished slices."""
    before: int = 0
    """Their optimizer steps."""
    plans: str = ""
    """Digest over their plans."""
    plan: str = ""
    """In a checkpoint, digest of the current slice's plan."""
    pairs: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


class SlicedRound:
    """A round in progress: `next` is the slice to give it, `steps` the number of optimizer steps made."""

    def __init__(self, spec: RoundSpec, slices: int, *, report: Report) -> None:
        self.running, self.slices, self.seen = prepare.start(spec, report, ALONE), slices, SliceProgress()
        self.identity = spec.identity | {"precision": self.running.arithmetic.precision, "slices": slices}
        self.position = Position(0, 0, {})
        self.summary = read_summary(spec.out, spec.identity)
        self.learner: Learner | None = None
        self.publisher = Publisher()
        if self.summary is not None:
            self.seen, self.position = replace(self.seen, slices=slices), Position(self.summary.steps, 0, {})
        elif find_checkpoint(spec.work, self.identity) is not None:
            self._begin(None)

    @property
    def next(self) -> int:
        """The next or current slice; the number of slices if none is left."""
        return self.seen.slices

    @property
    def steps(self) -> int:
        """Optimizer steps made so far."""
        return self.position.steps

    @property
    def trained(self) -> int:
        """Number of slices with at least one step made."""
        return self.next + (self.summary is None and self.steps > self.seen.before)

    def train(self, data: PreferenceData) -> None:
        """Run the remaining steps of slice `next`. Raises TrainerError as `train_round` does, and for data that differ
        from those of a slice already begun."""
        assert self.next < self.slices, "every slice was given"
        checked = prepare.check(self.running, data, may_be_empty=True) if data.relations else None
        seen = self.seen
        dropped = dict(Counter(seen.dropped) + Counter(checked.dropped if checked else {}))
        if checked is not None and checked.data.relations:
            plan = self._train(checked.data)
            plans = hashlib.sha256(f"{seen.plans} {plan.digest}".encode()).hexdigest()
            pairs = seen.pairs + sum(step.relations for step in plan.steps)
            seen = replace(seen, plans=plans, pairs=pairs)
        self.seen = replace(seen, slices=seen.slices + 1, before=self.steps, dropped=dropped, plan="")

    def publish(self, folder: Path, *, number_format: Format) -> None:
        """Write the current weights for the sampler."""
        assert self.learner is not None, "before the first step the policy's own folder serves"
        spec = self.running.spec
        with self.running.clock.part("hand over"):
            self.publisher.publish(self.learner.model, folder, policy=spec.policy, number_format=number_format)

    def close(self) -> RoundSummary:
        """After the last slice, write the candidate. Raises TrainerError if no step was made."""
        assert self.next == self.slices, "slices are missing"
        if self.summary is not None:
            return self.summary
        if self.learner is None or not self.steps:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.seen.dropped.items()) or "there are none"
            raise TrainerError(f"None of the round's pairs can be trained on: {reasons}. Change sampling or pairing.")
        running, seen = self.running, self.seen
        layout, gap = self.probed["layout"], self.probed["gap"]
        trained = RoundTotals(seen.pairs, seen.dropped, layout, gap, self._sampler_gap(), seen.plans)
        save_round(running, self.learner.model, trained)
        remove_checkpoints(running.spec.work)
        self.summary = read_summary(running.spec.out, running.spec.identity)
        assert self.summary is not None, "it was just written"
        return self.summary

    def _begin(self, data: PreferenceData | None) -> None:
        """Load the models. The first data determine the layout; a checkpoint restores the progress."""
        running, path = self.running, self.running.spec.work / LAYOUT
        model = prepare.load(running, running.spec.policy, adapters=True)
        if data is not None:
            layout, gap = prepare.layout_of(running, model, data)
            write_json(path, {"layout": layout, "gap": gap})
        self.probed = read_json(path)
        self.window = narrowest_window(model)
        model = cast_weights(model, running.arithmetic)
        self.reference, live = self._load_reference(model, data)
        self.learner = prepare.learner_of(running, model, live)
        self.optimizer = make_optimizer(self.learner, running.spec.settings)
        self.position = resume(self.learner, self.optimizer, running.spec.work, self.identity, running.clock)
        if self.steps:
            self.seen = SliceProgress(**self.position.slices)
            running.notes.append(f"resumed at step {self.steps}")

    def _load_reference(self, model: Any, data: PreferenceData | None) -> tuple[Any, LiveReference | None]:
        """The reference as a separate model, and as a live one if needed; None if it is the policy without adapters."""
        running, needs = self.running, self.running.objective.needs
        lives = bool(LIVE & needs)
        if not lives and "reference" not in needs:
            return None, None
        spec = running.spec
        if not spec.same_weights:
            probed = None if data is None else (data, self.probed["layout"])
            reference = cast_weights(prepare.load_reference(running, probed), running.arithmetic)
        elif spec.settings.lora is not None and not spec.settings.lora.takes_from_base and not lives:
            return None, None
        else:
            reference = copy.deepcopy(model)
        live = LiveReference(reference, running.objective) if lives else None
        return reference.eval().requires_grad_(False), live

    def _train(self, data: PreferenceData) -> Plan:
        if self.learner is None:
            self._begin(data)
        assert self.learner is not None
        running, seen = self.running, self.seen
        spec, plan = running.spec, prepare.plan(running, data, self._layout_for(data))
        if self.steps > seen.before and plan.digest != seen.plan:
            raise TrainerError(
                f"Slice {seen.slices} of the round was begun with different data, so its samples, verdicts or pairs "
                f"were replaced. Remove {spec.work} to train this round from the start."
            )
        part = Slice(seen.slices, self.slices, seen.before, asdict(replace(seen, plan=plan.digest)))
        planned = StepsPlan(data, plan, self._score_reference(data, plan))
        job = StepsJob(running, planned, self.identity, slice=part)
        self.position = run_steps(self.learner, self.optimizer, job, self.position)
        return plan

    def _layout_for(self, data: PreferenceData) -> Layout:
        """The probed layout, or plain rows if a window that the first slice fitted is too narrow for this one."""
        needed, layout = max(data.longest, self.running.spec.settings.row_tokens), self.probed["layout"]
        return "plain" if self.window is not None and self.window < needed else layout

    def _score_reference(self, data: PreferenceData, plan: Plan) -> Reference | None:
        """The reference's log-probs of the planned rows; None if no loss needs any, or the reference moves."""
        running, live = self.running, self.learner.live if self.learner else None
        needs = running.objective.needs
        if (live is not None and live.moves) or not (LIVE | {"reference"}) & needs:
            return None
        scoring = prepare.reference_pass(running, data, plan)

        def tick(done: int, total: int) -> None:
            running.report({"phase": "reference", "done": done, "total": total})

        with running.clock.part("reference"), self._reference_model() as model, torch.no_grad():
            scored = scoring.load() or scoring.score(RowScorer(model), running.arithmetic, tick, ALONE)
        scoring.path.unlink()  # a slice that is trained again is scored again
        return scored

    @contextmanager
    def _reference_model(self) -> Iterator[Any]:
        assert self.learner is not None
        policy: Any = self.learner.model
        if self.reference is not None:
            yield self.reference
        else:
            with policy.disable_adapter():
                yield policy

    def _sampler_gap(self) -> float | None:
        """Mean over the steps made with the same weights that sampled their responses."""
        fresh = [step for step in read_steps(self.running.spec.work) if step["staleness"] == 0]
        gaps = [step["sampler_gap"] for step in fresh if "sampler_gap" in step]
        return fmean(gaps) if gaps else None
