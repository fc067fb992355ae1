"""One round of preference training: trains the policy and writes a candidate folder with a summary. Killed and called
again, it resumes from its last checkpoint and ends with the same weights (same threads, CPU)."""

import hashlib
import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer import prepare
from trainer.candidates import keep_candidate
from trainer.checkpoint import remove_checkpoints
from trainer.data import Pair, PreferenceData, Ranked, Relation, Single
from trainer.files import fresh_partial, publish_folder
from trainer.frozen import restore
from trainer.learner import Learner
from trainer.mix import summarise_mix
from trainer.model import rebuild, save_candidate, trained_parameters
from trainer.parallel.team import ALONE, Team
from trainer.reference import sampler_gap
from trainer.spec import Report, RoundSpec, Running
from trainer.steps import StepsJob, StepsPlan, read_steps, train_steps
from trainer.summary import MixSummary, RoundSummary, WarmStartSummary, read_summary, write_summary
from trainer.watched_pairs import ProbeSet, split_probe

WARM_START = "warm-start"
"""Folder of the supervised phase in the work folder of the whole round."""


def train_round(
    spec: RoundSpec, data: PreferenceData, *, report: Report, examples: PreferenceData | None = None, team: Team = ALONE
) -> RoundSummary:
    """Train the policy and write the candidate to `spec.out`; for a finished one, return its summary. `examples` are
    those of `settings.mix`. `report` gets `phase` (load, reference, train, save), `done`, `total` and a step's metrics.
    Raises TrainerError where it cannot continue."""
    finished = read_summary(spec.out, spec.identity)
    if finished is not None:
        return finished
    if spec.settings.processes > 1 and team.size == 1:
        return _train_together(spec, data, report, examples)
    running = prepare.start(spec, report, team)
    _run(running, data, examples)
    summary = read_summary(spec.out, spec.identity)
    assert summary is not None, "the leader has saved the candidate"
    return summary


def _run(running: Running, data: PreferenceData, examples: PreferenceData | None) -> None:
    """The steps of a round; the leader saves the candidate."""
    spec, team = running.spec, running.team
    checked = prepare.check(running, data)
    parts = split_probe(checked.data, spec.settings.probe_pairs, seed=spec.seed)
    if spec.settings.warm_start is not None:
        spec = running.spec = _warm_start(running, parts[0], examples)
    model = prepare.load(running, spec.policy, adapters=True)
    layout, gap = prepare.layout_of(running, model, checked.data)
    planned = [(part, prepare.plan(running, part, layout)) for part in parts if part is not None]
    model, references, live = prepare.score_reference(running, model, planned)
    (data, plan), reference = planned[0], references[0]
    probe = ProbeSet(*planned[1], references[1]) if len(planned) > 1 else None
    learner = prepare.learner_of(running, model, live)
    mixed, mix = prepare.mix_in(running, examples, steps=len(plan.order))
    _train(running, learner, StepsPlan(data, plan, reference, probe, mix))
    sampled_by_reference = spec.same_weights and spec.whole is None
    agreement = sampler_gap(data, plan, reference) if reference and sampled_by_reference else None
    whole = _whole_model(running, learner.model)
    if team.leads:
        pairs = sum(plan.steps[index].relations for index in sorted(set(plan.order)))
        numbers = None if mixed is None else summarise_mix(mixed, read_steps(spec.work))
        save_round(running, whole, RoundTotals(pairs, checked.dropped, layout, gap, agreement, plan.digest, numbers))
        remove_checkpoints(spec.work)
        shutil.rmtree(spec.work / WARM_START, ignore_errors=True)
    team.wait()


def _train_together(
    spec: RoundSpec, data: PreferenceData, report: Report, examples: PreferenceData | None
) -> RoundSummary:
    """Train in several processes, which share the CPU's threads."""
    from trainer.parallel.processes import run_together

    size, sharded = spec.settings.processes, spec.settings.distribute == "fsdp"
    own = replace(spec, threads=max(1, (spec.threads or torch.get_num_threads()) // size))
    work = partial(train_round, own, data, examples=examples)
    summary: RoundSummary = run_together(size, work, sharded=sharded, logs=spec.work, report=report)
    return summary


def _warm_start(running: Running, data: PreferenceData, examples: PreferenceData | None) -> RoundSpec:
    """Train on the chosen responses first; returns the spec of the round that follows. DPO's authors fit the reference
    so where it did not sample the data (section 4 of arXiv:2305.18290)."""

    def report(event: dict[str, Any]) -> None:
        running.report(event | {"phase": "warm start" if event["phase"] == "train" else event["phase"]})

    first = first_round(running.spec)
    with running.clock.part("warm start"):
        summary = train_round(first, chosen_only(data), report=report, examples=examples, team=running.team)
    name = weights_digest(first.out)
    losses = {"loss_first": summary.first["sft"], "loss_last": summary.last["sft"]}
    running.warm_start = WarmStartSummary(weights_hash=name, responses=summary.pairs, steps=summary.steps, **losses)
    models = replace(running.spec, policy=first.out, policy_hash=name, reference=first.out, reference_hash=name)
    settings = running.spec.settings.model_copy(update={"warm_start": None})
    return replace(models, settings=settings, whole=running.spec.identity)


def first_round(spec: RoundSpec) -> RoundSpec:
    """The spec of the supervised round, inside the work folder of the whole."""
    warm = spec.settings.warm_start
    assert warm is not None
    changes = {"loss": "sft", "beta": None, "nll_weight": None, "warm_start": None, "probe_pairs": 0}
    changes |= {"max_steps": None, "select": "last"}
    settings = spec.settings.model_copy(update=changes | {"epochs": warm.epochs, "learning_rate": warm.learning_rate})
    work = spec.work / WARM_START
    return replace(spec, settings=settings, work=work / "work", out=work / "model")


def chosen_only(data: PreferenceData) -> PreferenceData:
    """Every response that some relation prefers, once, as an example to imitate."""
    chosen = dict.fromkeys((relation.prompt_id, id) for relation in data.relations if (id := _best(relation)))
    return replace(data, relations=tuple(Single(prompt, response, good=True) for prompt, response in chosen))


def _best(relation: Relation) -> str | None:
    if isinstance(relation, Pair):
        return relation.chosen_id
    if isinstance(relation, Ranked):
        return relation.response_ids[0]
    return relation.response_id if relation.good else None


def weights_digest(folder: Path) -> str:
    """sha256 over the weight files of a model folder."""
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()


def _train(running: Running, learner: Learner, plan: StepsPlan) -> None:
    spec = running.spec
    identity = spec.identity | {"plan": plan.plan.digest, "precision": running.arithmetic.precision}
    if plan.mix is not None:
        identity |= {"examples": plan.mix.plan.digest}
    keep = partial(keep_candidate, running, learner.model) if spec.settings.select == "best" else None
    job = StepsJob(running, plan, identity, keep)
    if learner.live is not None and learner.live.stays(len(plan.plan.order)):
        running.notes.append(f"the reference never moved: tau is not below the round's {len(plan.plan.order)} steps")
    if started := train_steps(learner, job):
        running.notes.append(f"resumed at step {started}")


def _whole_model(running: Running, model: Any) -> Any:
    """The trained model in one piece and in fp32; from shards, the leader rebuilds it on the policy's folder."""
    if not running.team.sharded:
        if running.team.leads:
            restore(model, running.spec.policy)
        return model
    weights = running.team.collect(dict(trained_parameters(model)))
    spec = running.spec
    return rebuild(spec.policy, weights, spec.settings, seed=spec.seed) if running.team.leads else None


@dataclass(frozen=True, slots=True)
class RoundTotals:
    """Totals over the steps of a round; the fields are those of `RoundSummary`."""

    pairs: int
    dropped: dict[str, int]
    layout: str
    probe_gap: float | None
    sampler_gap: float | None
    plan_digest: str
    mix: MixSummary | None = None


def save_round(running: Running, model: Any, trained: RoundTotals) -> None:
    """Write the candidate with its summary."""
    spec = running.spec
    running.report({"phase": "save", "done": 0, "total": 1})
    with running.clock.part("save"):
        partial = fresh_partial(spec.out)
        save_candidate(model, partial, policy=spec.policy)
    steps = read_steps(spec.work)
    summary = RoundSummary(
        steps=len(steps),
        precision=running.arithmetic.precision,
        encoded_tokens=sum(step["tokens"] for step in steps),
        plain_tokens=sum(step["plain_tokens"] for step in steps),
        first=steps[0],
        last=steps[-1],
        seconds=dict(running.clock.seconds),
        notes=tuple(running.notes),
        warm_start=running.warm_start,
        **asdict(trained),
    )
    write_summary(partial, summary, spec.identity)
    with running.clock.part("save"):
        publish_folder(partial, spec.out)
    running.report({"phase": "save", "done": 1, "total": 1})
