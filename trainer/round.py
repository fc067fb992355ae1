"""Room `trainer/`, one round of preference training from start to end. In: policy and reference folders with their
hashes, preference data, settings, a seed; out: a candidate model folder and a summary. Killed at any moment and
called again, it goes on from its last checkpoint and ends with the same weights (same threads, CPU). With `processes`
above 1 the call starts them; each runs the same list of steps with its place in the `Team`."""

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import remove_checkpoints
from trainer.convert import as_kind, with_mismatched
from trainer.data import CheckedData, PreferenceData, check_data
from trainer.errors import TrainerError
from trainer.files import fresh_partial, publish_folder
from trainer.learner import Learner
from trainer.live import LIVE, LiveReference
from trainer.memory import use_huge_pages
from trainer.model import (
    Arithmetic,
    cast_weights,
    choose_arithmetic,
    load_model,
    make_trainable,
    read_limits,
    rebuild,
    save_candidate,
    trained_parameters,
)
from trainer.objective import Objective, check_needs
from trainer.probe import Gaps, choose_layout, how_wrong, probe_rows
from trainer.probe_set import ProbeSet, split_probe
from trainer.reference import Reference, ReferencePass, reference_key, reference_path, sampler_gap
from trainer.rows import Layout, Plan, plan_rows
from trainer.scorer import RowScorer
from trainer.settings import ONLY_HOW, TrainSettings
from trainer.summary import Clock, RoundSummary, read_summary, write_summary
from trainer.team import ALONE, Team
from trainer.training import Report, StepsJob, StepsPlan, read_steps, train_steps
from trainer.value import ValueNetwork


@dataclass(frozen=True, slots=True)
class RoundSpec:
    """Which weights are trained, against which reference, where. Hashes name the weights; paths only say where they
    lie."""

    policy: Path
    policy_hash: str
    reference: Path
    reference_hash: str
    work: Path
    """Checkpoints, reference log-probs and the step log of this round; nobody else writes here."""
    out: Path
    """The candidate folder; exists only when it is complete."""
    settings: TrainSettings
    seed: int
    threads: int | None

    @property
    def same_weights(self) -> bool:
        """Is the reference the policy itself, as it is before the first step?"""
        return self.policy_hash == self.reference_hash

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the candidate's weights, apart from the data."""
        settings = self.settings.model_dump(mode="json", exclude=set(ONLY_HOW))
        return {"policy": self.policy_hash, "reference": self.reference_hash, "seed": self.seed} | settings


@dataclass(slots=True)
class _Running:
    """What the parts of a running round share."""

    spec: RoundSpec
    report: Report
    arithmetic: Arithmetic
    objective: Objective
    clock: Clock
    notes: list[str]
    team: Team


def train_round(spec: RoundSpec, data: PreferenceData, *, report: Report, team: Team = ALONE) -> RoundSummary:
    """Train the policy on the relations and write the candidate to `spec.out`; a finished one is returned as it is.

    `report` is called with `phase` (load, reference, train, save), `done`, `total` and, after a step, the step's
    metrics. Raises TrainerError for data, folders or numbers with which the round cannot go on."""
    finished = read_summary(spec.out, spec.identity)
    if finished is not None:
        return finished
    if spec.settings.processes > 1 and team.size == 1:
        return _train_together(spec, data, report)
    running = _start(spec, report, team)
    checked = _check(running, data)
    model = _load(running, spec.policy, adapters=True)
    layout, gap = _choose_layout(running, model, checked.data)
    parts = split_probe(checked.data, spec.settings.probe_pairs, seed=spec.seed)
    planned = [(part, _plan(running, part, layout)) for part in parts if part is not None]
    model, references, live = _score_reference(running, model, planned)
    (data, plan), reference = planned[0], references[0]
    probe = ProbeSet(*planned[1], references[1]) if len(planned) > 1 else None
    learner = _learner(running, model, live)
    _train(running, learner, StepsPlan(data, plan, reference, probe))
    agreement = sampler_gap(data, plan, reference) if reference and spec.same_weights else None
    whole = _whole_model(running, learner.model)
    if team.leads:
        _save(running, whole, checked, plan, gap, agreement)
        remove_checkpoints(spec.work)
    team.wait()
    summary = read_summary(spec.out, spec.identity)
    assert summary is not None, "the leader has saved the candidate"
    return summary


def _train_together(spec: RoundSpec, data: PreferenceData, report: Report) -> RoundSummary:
    """The same in several processes, which share the CPU's threads."""
    from trainer.processes import run_together

    size, sharded = spec.settings.processes, spec.settings.distribute == "fsdp"
    own = replace(spec, threads=max(1, (spec.threads or torch.get_num_threads()) // size))
    work = partial(train_round, own, data)
    summary: RoundSummary = run_together(size, work, sharded=sharded, logs=spec.work, report=report)
    return summary


def _start(spec: RoundSpec, report: Report, team: Team) -> _Running:
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    use_huge_pages()
    torch.manual_seed(spec.seed)
    spec.work.mkdir(parents=True, exist_ok=True)
    arithmetic = replace(choose_arithmetic(spec.settings), keep_casts=not team.sharded)
    notes = [f"{team.size} processes, {spec.settings.distribute}"] if team.size > 1 else []
    return _Running(spec, report, arithmetic, Objective(spec.settings.terms), Clock(), notes, team)


def _check(running: _Running, data: PreferenceData) -> CheckedData:
    """The data in the kind that the losses are written over, without what cannot be trained."""
    spec, objective = running.spec, running.objective
    vocabulary, context = read_limits(spec.policy)
    if not spec.same_weights and read_limits(spec.reference)[0] != vocabulary:
        raise TrainerError(
            f"The policy {spec.policy} has a vocabulary of {vocabulary} ids, the reference {spec.reference} one of "
            f"{read_limits(spec.reference)[0]}. Both must read the same tokens: choose another reference."
        )
    checked = check_data(as_kind(data, objective.kind), vocabulary=vocabulary, context=context)
    if "mismatched" in objective.needs:  # partners come from what can be trained, and must fit themselves
        partnered = check_data(with_mismatched(checked.data), vocabulary=vocabulary, context=context)
        checked = CheckedData(partnered.data, dict(Counter(checked.dropped) + Counter(partnered.dropped)))
    check_needs(objective, checked.data)
    return checked


def _load(running: _Running, folder: Path, *, adapters: bool = False) -> Any:
    """A model as this team holds it; with `adapters` in the form that is trained, which weights must have before they
    are sharded and which changes no output."""
    spec, team = running.spec, running.team
    running.report({"phase": "load", "done": 0, "total": 1})
    with running.clock.part("load"):
        model = load_model(folder, running.arithmetic, whole=not team.sharded)
        model = team.place(make_trainable(model, spec.settings, seed=spec.seed) if adapters else model)
    running.report({"phase": "load", "done": 1, "total": 1})
    return model


def _choose_layout(running: _Running, model: Any, data: PreferenceData) -> tuple[Layout, float | None]:
    """Trees if the probe proves them for this model."""
    wanted, gaps = running.spec.settings.layout, _probe(running, model, data)
    layout = choose_layout(gaps, wanted, folder=running.spec.policy)
    if layout != wanted and layout == "plain":
        running.notes.append(f"plain rows, as tree rows are wrong on this model: {how_wrong(gaps)}")
    return layout, gaps.tree if math.isfinite(gaps.tree) else None


def _probe(running: _Running, model: Any, data: PreferenceData) -> Gaps:
    spec, device = running.spec, running.arithmetic.device
    with running.clock.part("plan"):
        return probe_rows(RowScorer(model), data, device=device, seed=spec.seed, row_tokens=spec.settings.row_tokens)


def _plan(running: _Running, data: PreferenceData, layout: Layout) -> Plan:
    with running.clock.part("plan"):
        return plan_rows(data, running.spec.settings, seed=running.spec.seed, layout=layout)


def _score_reference(
    running: _Running, model: Any, planned: Sequence[tuple[PreferenceData, Plan]]
) -> tuple[Any, list[Reference | None], LiveReference | None]:
    """The policy in the round's number format, and the reference log-probs of each plan. Policy and reference are never
    in memory together, unless a loss needs the reference itself."""
    spec, arithmetic, needs = running.spec, running.arithmetic, running.objective.needs
    if "reference" not in needs and not LIVE & needs:
        return cast_weights(model, arithmetic), [None] * len(planned), None
    passes = [_reference_pass(running, data, plan) for data, plan in planned]
    scored = [scoring.load() for scoring in passes]
    if all(scored) and not LIVE & needs:
        return cast_weights(model, arithmetic), list(scored), None
    if not spec.same_weights:
        del model
        model = _load(running, spec.reference)
        data, plan = planned[0]  # the probe of the policy says nothing of another architecture
        choose_layout(_probe(running, model, data), plan.layout, folder=spec.reference)
    model = cast_weights(model, arithmetic)

    def tick(done: int, total: int) -> None:
        running.report({"phase": "reference", "done": done, "total": total})

    with running.clock.part("reference"):
        scored = [
            known or scoring.score(RowScorer(model), arithmetic, tick, running.team)
            for known, scoring in zip(scored, passes, strict=True)
        ]
    live = _live(running, model) if LIVE & needs else None
    if not spec.same_weights:
        del model
        model = cast_weights(_load(running, spec.policy, adapters=True), arithmetic)
    return model, list(scored), live


def _live(running: _Running, reference: Any) -> LiveReference:
    """A reference that stays, beside the policy; sharded weights cannot be copied."""
    own = _load(running, running.spec.reference) if running.team.sharded else copy.deepcopy(reference)
    return LiveReference.of(own, running.objective)


def _reference_pass(running: _Running, data: PreferenceData, plan: Plan) -> ReferencePass:
    tokens = "tokens" in running.objective.needs
    key = reference_key(
        reference_hash=running.spec.reference_hash, plan=plan, arithmetic=running.arithmetic, tokens=tokens
    )
    return ReferencePass(data, plan, reference_path(running.spec.work, key), tokens=tokens)


def _learner(running: _Running, model: Any, live: LiveReference | None) -> Learner:
    spec = running.spec
    if live is not None and live.moves and spec.settings.lora is not None:
        raise TrainerError(
            "A reference that follows the policy inside the round cannot be used with lora: a mix of adapters is not "
            "the adapter of a mix. Train all weights, or use another loss."
        )
    value = None
    if "value" in running.objective.needs:
        value = running.team.place(ValueNetwork.load(spec.policy, running.arithmetic))
    return Learner(model, running.objective, live, value)


def _train(running: _Running, learner: Learner, plan: StepsPlan) -> None:
    spec, arithmetic, team = running.spec, running.arithmetic, running.team
    identity = spec.identity | {"plan": plan.plan.digest, "precision": arithmetic.precision}
    job = StepsJob(spec.work, plan, spec.settings, spec.seed, arithmetic, identity, spec.same_weights, team)
    if learner.live is not None and learner.live.stays(len(plan.plan.order)):
        running.notes.append(f"the reference never moved: tau is not below the round's {len(plan.plan.order)} steps")
    started = train_steps(learner, job, clock=running.clock, report=running.report)
    if started:
        running.notes.append(f"resumed at step {started}")


def _whole_model(running: _Running, model: Any) -> Any:
    """The trained model in one piece; of shards the leader makes one, from the policy's folder and what was trained."""
    if not running.team.sharded:
        return model
    weights = running.team.collect(dict(trained_parameters(model)))
    spec = running.spec
    return rebuild(spec.policy, weights, spec.settings, seed=spec.seed) if running.team.leads else None


def _save(
    running: _Running, model: Any, checked: CheckedData, plan: Plan, gap: float | None, agreement: float | None
) -> None:
    spec = running.spec
    running.report({"phase": "save", "done": 0, "total": 1})
    with running.clock.part("save"):
        partial = fresh_partial(spec.out)
        save_candidate(model, partial, policy=spec.policy)
    steps = read_steps(spec.work)
    summary = RoundSummary(
        steps=len(steps),
        pairs=sum(plan.steps[index].relations for index in sorted(set(plan.order))),
        dropped=checked.dropped,
        layout=plan.layout,
        probe_gap=gap,
        sampler_gap=agreement,
        precision=running.arithmetic.precision,
        encoded_tokens=sum(step["tokens"] for step in steps),
        plain_tokens=sum(step["plain_tokens"] for step in steps),
        first=steps[0],
        last=steps[-1],
        seconds=dict(running.clock.seconds),
        plan_digest=plan.digest,
        notes=tuple(running.notes),
    )
    write_summary(partial, summary, spec.identity)
    with running.clock.part("save"):
        publish_folder(partial, spec.out)
    running.report({"phase": "save", "done": 1, "total": 1})
