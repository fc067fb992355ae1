"""Prepare a round for its first step: check data, load models, plan rows they read correctly, score the reference."""

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainer.adapters import try_adapters
from trainer.data import CheckedData, PreferenceData, PromptGroup, Response, Single, as_kind, check_data
from trainer.errors import TrainerError
from trainer.frozen import halve, halves
from trainer.layout_probe import Gaps, choose_layout, how_wrong
from trainer.layout_proof import proven_gaps
from trainer.learner import LIVE, Learner, LiveReference, ValueNetwork
from trainer.memory import use_huge_pages
from trainer.mix import MixPlan, plan_mix
from trainer.model import cast_weights, choose_arithmetic, load_model, make_trainable, read_limits
from trainer.objective import Objective, check_needs
from trainer.parallel.team import Team
from trainer.reference import Reference, ReferencePass, reference_key, reference_path
from trainer.scorer import RowScorer
from trainer.spec import Report, RoundSpec, Running
from trainer.summary import Clock
from trainer.tree.rows import Layout, Plan, plan_rows


def start(spec: RoundSpec, report: Report, team: Team) -> Running:
    """Set threads, number format and loss; make the work folder."""
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    use_huge_pages()
    torch.manual_seed(spec.seed)
    spec.work.mkdir(parents=True, exist_ok=True)
    arithmetic = replace(choose_arithmetic(spec.settings), keep_casts=not team.sharded)
    notes = [f"{team.size} processes, {spec.settings.distribute}"] if team.size > 1 else []
    return Running(spec, report, arithmetic, Objective(spec.settings.terms), Clock(), notes, team)


def check(running: Running, data: PreferenceData, *, may_be_empty: bool = False) -> CheckedData:
    """The data in the kind that the losses need, checked; TrainerError if nothing is left, unless `may_be_empty`."""
    spec, objective = running.spec, running.objective
    vocabulary, context = read_limits(spec.policy)
    if not spec.same_weights and read_limits(spec.reference)[0] != vocabulary:
        raise TrainerError(
            f"The policy {spec.policy} has a vocabulary of {vocabulary} ids, the reference {spec.reference} one of "
            f"{read_limits(spec.reference)[0]}. Both must use the same tokens: choose another reference."
        )
    checked = check_data(
        as_kind(data, objective.kind), vocabulary=vocabulary, context=context, may_be_empty=may_be_empty
    )
    if "mismatched" in objective.needs:  # partners are trainable responses, and must fit after this prompt
        partnered = check_data(with_mismatched(checked.data), vocabulary=vocabulary, context=context)
        checked = CheckedData(partnered.data, dict(Counter(checked.dropped) + Counter(partnered.dropped)))
    check_needs(objective, checked.data)
    return checked


def with_mismatched(data: PreferenceData) -> PreferenceData:
    """Give every single response the next prompt's response as its mismatched partner (KTO's reference point)."""
    singles = [relation for relation in data.relations if isinstance(relation, Single)]
    texts = {group.id: {response.id: response for response in group.responses} for group in data.groups}
    added: dict[str, dict[str, Response]] = {}
    paired = []
    for at, single in enumerate(singles):
        other = next((s for s in singles[at + 1 :] + singles[:at] if s.prompt_id != single.prompt_id), None)
        if other is None:
            raise TrainerError(
                "The loss compares responses with those of other prompts, but all responses belong to one prompt. "
                "Train on more prompts."
            )
        id = f"{other.prompt_id}/{other.response_id}"
        ids = texts[other.prompt_id][other.response_id].token_ids
        added.setdefault(single.prompt_id, {})[id] = Response(id, ids)
        paired.append(replace(single, mismatched_id=id))
    groups = tuple(
        PromptGroup(group.id, group.token_ids, (*group.responses, *added.get(group.id, {}).values()))
        for group in data.groups
    )
    return PreferenceData(groups, tuple(paired))


def mix_in(
    running: Running, examples: PreferenceData | None, *, steps: int
) -> tuple[CheckedData | None, MixPlan | None]:
    """The supervised examples that can be trained on, and which of them go into which step."""
    spec = running.spec
    if examples is None:
        if spec.settings.mix is not None:
            raise TrainerError(
                f"train.mix names {spec.settings.mix.path}, but the round got no examples. Give it those of this file."
            )
        return None, None
    vocabulary, context = read_limits(spec.policy)
    source = spec.settings.mix.path if spec.settings.mix is not None else ""
    checked = check_data(examples, vocabulary=vocabulary, context=context, source=source)
    with running.clock.part("plan"):
        return checked, plan_mix(checked.data, spec.settings, steps=steps, seed=spec.seed)


def load(running: Running, folder: Path, *, adapters: bool = False) -> Any:
    """Load a model in this team's form; `adapters` must be added before sharding, and change no output."""
    spec, team = running.spec, running.team
    running.report({"phase": "load", "done": 0, "total": 1})
    with running.clock.part("load"):
        model = load_model(folder, running.arithmetic, whole=not team.sharded)
        if adapters:
            model = make_trainable(model, spec.settings, seed=spec.seed)
            if spec.settings.lora is not None:
                try_adapters(model)
        model = team.place(model)
    running.report({"phase": "load", "done": 1, "total": 1})
    return model


def layout_of(running: Running, model: Any, data: PreferenceData) -> tuple[Layout, float | None]:
    """Trees if the probe shows them to be correct."""
    wanted, gaps = running.spec.settings.layout, _probe(running, model, data)
    layout = choose_layout(gaps, wanted, folder=running.spec.policy)
    if layout != wanted and layout == "plain":
        running.notes.append(f"plain rows, because tree rows are wrong on this model: {how_wrong(gaps)}")
    return layout, gaps.tree if math.isfinite(gaps.tree) else None


def _probe(running: Running, model: Any, data: PreferenceData) -> Gaps:
    spec, device = running.spec, running.arithmetic.device
    with running.clock.part("plan"):
        rows = spec.settings.row_tokens
        return proven_gaps(RowScorer(model), data, device=device, seed=spec.seed, row_tokens=rows, team=running.team)


def plan(running: Running, data: PreferenceData, layout: Layout) -> Plan:
    """Every row of every step."""
    with running.clock.part("plan"):
        return plan_rows(data, running.spec.settings, seed=running.spec.seed, layout=layout)


def score_reference(
    running: Running, model: Any, planned: Sequence[tuple[PreferenceData, Plan]]
) -> tuple[Any, list[Reference | None], LiveReference | None]:
    """The policy, and the reference log-probs of each plan; never both models in memory unless a loss needs it."""
    spec, arithmetic, needs = running.spec, running.arithmetic, running.objective.needs
    if "reference" not in needs and not LIVE & needs:
        return _in_format(running, model), [None] * len(planned), None
    passes = [reference_pass(running, data, plan) for data, plan in planned]
    scored = [scoring.load() for scoring in passes]
    if all(scored) and not LIVE & needs:
        return _in_format(running, model), list(scored), None
    if not spec.same_weights:
        del model
        data, first = planned[0]
        model = load_reference(running, (data, first.layout))
    model = _in_format(running, model)

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
        model = _in_format(running, load(running, spec.policy, adapters=True))
    return model, list(scored), live


def _in_format(running: Running, model: Any) -> Any:
    """The model with its weights in the round's number format, frozen ones in bf16 where that changes no number."""
    arithmetic, settings = running.arithmetic, running.spec.settings
    adapted = hasattr(model, "get_base_model")
    if adapted and halves(settings, arithmetic, sharded=running.team.sharded) and not halve(model, arithmetic):
        running.notes.append("the frozen weights stay in fp32, because in bf16 this model has other logits")
    return cast_weights(model, arithmetic)


def load_reference(running: Running, probed: tuple[PreferenceData, Layout] | None) -> Any:
    """The reference, unless it is the policy. TrainerError if it misreads rows of this layout (None: it was probed)."""
    model = load(running, running.spec.reference)
    if probed is not None:
        data, layout = probed
        choose_layout(_probe(running, model, data), layout, folder=running.spec.reference)
    return model


def _live(running: Running, reference: Any) -> LiveReference:
    """A reference kept with the policy; sharded weights cannot be copied."""
    own = load(running, running.spec.reference) if running.team.sharded else copy.deepcopy(reference)
    return LiveReference(own, running.objective)


def reference_pass(running: Running, data: PreferenceData, plan: Plan) -> ReferencePass:
    """The reference pass over one plan."""
    tokens = "tokens" in running.objective.needs
    key = reference_key(
        reference_hash=running.spec.reference_hash, plan=plan, arithmetic=running.arithmetic, tokens=tokens
    )
    return ReferencePass(data, plan, reference_path(running.spec.work, key), tokens=tokens)


def learner_of(running: Running, model: Any, live: LiveReference | None) -> Learner:
    """Everything that changes in the round. TrainerError for a moving reference with adapters."""
    spec = running.spec
    if live is not None and live.moves and spec.settings.lora is not None:
        raise TrainerError(
            "A reference that follows the policy inside the round cannot be used with lora: an average of adapters is "
            "not the adapter of the average. Train all weights, or use another loss."
        )
    value = None
    if "value" in running.objective.needs:
        value = running.team.place(ValueNetwork(spec.policy, running.arithmetic.device))
    return Learner(model, running.objective, live, value)
