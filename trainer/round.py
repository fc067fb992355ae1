"""Room `trainer/`, one round of preference training from start to end. In: policy and reference folders with their
hashes, preference data, settings, a seed; out: a candidate model folder and a summary. Killed at any moment and
called again, it goes on from its last checkpoint and ends with the same weights (same threads, CPU)."""

from collections.abc import Sequence
from dataclasses import dataclass
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
from trainer.mix import MixPlan, mix_in_numbers, plan_mix
from trainer.model import (
    Arithmetic,
    cast_weights,
    choose_arithmetic,
    load_model,
    make_trainable,
    read_limits,
    save_candidate,
)
from trainer.objective import Objective, check_needs
from trainer.probe import MOST_GAP, probe_trees
from trainer.probe_set import ProbeSet, split_probe
from trainer.reference import Reference, ReferencePass, reference_key, reference_path, sampler_gap
from trainer.rows import Layout, Plan, plan_rows
from trainer.scorer import RowScorer
from trainer.settings import TrainSettings
from trainer.summary import Clock, RoundSummary, read_summary, write_summary
from trainer.training import Report, StepsJob, StepsPlan, read_steps, train_steps
from trainer.value import ValueNetwork
from trainer.warm_start import chosen_only, described, first_round, remove_warm_start, second_round


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
    whole: dict[str, Any] | None = None
    """After a warm start: the identity of warm start and round together."""

    @property
    def same_weights(self) -> bool:
        """Is the reference the policy itself, as it is before the first step?"""
        return self.policy_hash == self.reference_hash

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the candidate's weights, apart from the data (checkpoints only change when work is saved)."""
        if self.whole is not None:
            return self.whole
        settings = self.settings.model_dump(mode="json", exclude={"checkpoint_every"})
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
    warm_start: dict[str, Any] | None = None
    """What the supervised phase came to."""


def train_round(
    spec: RoundSpec, data: PreferenceData, *, report: Report, examples: PreferenceData | None = None
) -> RoundSummary:
    """Train the policy on the relations and write the candidate to `spec.out`; a finished one is returned as it is.
    `examples` are the supervised ones of `settings.mix`, as single responses that are good.

    `report` is called with `phase` (load, reference, train, save), `done`, `total` and, after a step, the step's
    metrics. Raises TrainerError for data, folders or numbers with which the round cannot go on."""
    finished = read_summary(spec.out, spec.identity)
    if finished is not None:
        return finished
    running = _start(spec, report)
    checked = _check(running, data)
    parts = split_probe(checked.data, spec.settings.probe_pairs, seed=spec.seed)
    if spec.settings.warm_start is not None:
        spec = running.spec = _warm_start(running, parts[0], examples)
    model = _load(running, spec.policy)
    layout, gap = _choose_layout(running, model, checked.data)
    planned = [(part, _plan(running, part, layout)) for part in parts if part is not None]
    model, references, live = _score_reference(running, model, planned)
    (data, plan), reference = planned[0], references[0]
    probe = ProbeSet(*planned[1], references[1]) if len(planned) > 1 else None
    learner = _learner(running, model, live)
    mixed, mix = _mix(running, examples, steps=len(plan.order))
    _train(running, learner, StepsPlan(data, plan, reference, probe, mix))
    sampled_by_reference = spec.same_weights and spec.whole is None
    agreement = sampler_gap(data, plan, reference) if reference and sampled_by_reference else None
    summary = _save(running, learner.model, checked, plan, gap, agreement, mixed)
    remove_checkpoints(spec.work)
    remove_warm_start(spec.work)
    return summary


def _start(spec: RoundSpec, report: Report) -> _Running:
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    use_huge_pages()
    torch.manual_seed(spec.seed)
    spec.work.mkdir(parents=True, exist_ok=True)
    return _Running(spec, report, choose_arithmetic(spec.settings), Objective(spec.settings.terms), Clock(), [])


def _check(running: _Running, data: PreferenceData) -> CheckedData:
    """The data in the kind that the losses are written over, without what cannot be trained."""
    spec, objective = running.spec, running.objective
    vocabulary, context = read_limits(spec.policy)
    if not spec.same_weights and read_limits(spec.reference)[0] != vocabulary:
        raise TrainerError(
            f"The policy {spec.policy} has a vocabulary of {vocabulary} ids, the reference {spec.reference} one of "
            f"{read_limits(spec.reference)[0]}. Both must read the same tokens: choose another reference."
        )
    data = as_kind(data, objective.kind)
    if "mismatched" in objective.needs:
        data = with_mismatched(data)
    checked = check_data(data, vocabulary=vocabulary, context=context)
    check_needs(objective, checked.data)
    return checked


def _mix(
    running: _Running, examples: PreferenceData | None, *, steps: int
) -> tuple[CheckedData | None, MixPlan | None]:
    """The supervised examples that can be trained on, and which of them go into which step."""
    spec = running.spec
    if examples is None:
        if spec.settings.mix is not None:
            raise TrainerError(
                f"train.mix names {spec.settings.mix.path}, but its examples were not handed to the round."
            )
        return None, None
    vocabulary, context = read_limits(spec.policy)
    checked = check_data(examples, vocabulary=vocabulary, context=context)
    with running.clock.part("plan"):
        return checked, plan_mix(checked.data, spec.settings, steps=steps, seed=spec.seed)


def _warm_start(running: _Running, data: PreferenceData, examples: PreferenceData | None) -> RoundSpec:
    """Train on the chosen responses first; returns the spec of the round that goes on from the result."""

    def report(said: dict[str, Any]) -> None:
        running.report(said | {"phase": "warm start" if said["phase"] == "train" else said["phase"]})

    first = first_round(running.spec)
    with running.clock.part("warm start"):
        summary = train_round(first, chosen_only(data), report=report, examples=examples)
    second = second_round(running.spec, first)
    running.warm_start = described(summary, second.policy_hash)
    return second


def _load(running: _Running, folder: Path) -> Any:
    running.report({"phase": "load", "done": 0, "total": 1})
    with running.clock.part("load"):
        model = load_model(folder, running.arithmetic)
    running.report({"phase": "load", "done": 1, "total": 1})
    return model


def _choose_layout(running: _Running, model: Any, data: PreferenceData) -> tuple[Layout, float | None]:
    """Trees if the probe proves them for this model."""
    wanted = running.spec.settings.layout
    if wanted == "plain":
        return "plain", None
    with running.clock.part("plan"):
        gap = probe_trees(RowScorer(model), data, device=running.arithmetic.device, seed=running.spec.seed)
    if gap <= MOST_GAP:
        return "tree", gap
    if wanted == "tree":
        raise TrainerError(
            f"layout: tree was asked for, but this model scores tree rows wrongly: up to {gap:.2g} nat per token away "
            f"from plain rows ({MOST_GAP:g} is allowed). Use layout: auto or plain."
        )
    running.notes.append(f"plain rows: tree rows differ by up to {gap:.2g} nat per token on this model")
    return "plain", gap


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
    model = cast_weights(model, arithmetic)

    def tick(done: int, total: int) -> None:
        running.report({"phase": "reference", "done": done, "total": total})

    with running.clock.part("reference"):
        scored = [
            known or scoring.score(RowScorer(model), arithmetic, tick)
            for known, scoring in zip(scored, passes, strict=True)
        ]
    live = LiveReference.of(model, running.objective)
    if not spec.same_weights:
        del model
        model = cast_weights(_load(running, spec.policy), arithmetic)
    return model, list(scored), live


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
    model = make_trainable(model, spec.settings, seed=spec.seed)
    value = ValueNetwork.load(spec.policy, running.arithmetic) if "value" in running.objective.needs else None
    return Learner(model, running.objective, live, value)


def _train(running: _Running, learner: Learner, plan: StepsPlan) -> None:
    spec = running.spec
    identity = spec.identity | {"plan": plan.plan.digest, "precision": running.arithmetic.precision}
    if plan.mix is not None:
        identity |= {"examples": plan.mix.plan.digest}
    job = StepsJob(spec.work, plan, spec.settings, spec.seed, running.arithmetic, identity, spec.same_weights)
    started = train_steps(learner, job, clock=running.clock, report=running.report)
    if started:
        running.notes.append(f"resumed at step {started}")


def _save(
    running: _Running,
    model: Any,
    checked: CheckedData,
    plan: Plan,
    gap: float | None,
    agreement: float | None,
    mixed: CheckedData | None,
) -> RoundSummary:
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
        warm_start=running.warm_start,
        mix=None if mixed is None else mix_in_numbers(mixed, steps),
    )
    write_summary(partial, summary, spec.identity)
    with running.clock.part("save"):
        publish_folder(partial, spec.out)
    running.report({"phase": "save", "done": 1, "total": 1})
    return summary
