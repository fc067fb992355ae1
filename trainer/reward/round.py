"""Train a reward model from start to end: a folder that transformers can load, with results on held-out pairs. Killed
and called again, it resumes from its last checkpoint and ends with the same weights (same threads, CPU)."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import remove_checkpoints
from trainer.data import CheckedData, PreferenceData, PromptGroup, check_data
from trainer.errors import TrainerError
from trainer.files import fresh_partial, publish_folder, write_json
from trainer.layout_probe import MOST_GAP, sample_trees
from trainer.memory import use_huge_pages
from trainer.model import Arithmetic, choose_arithmetic, make_trainable, read_limits
from trainer.reward.model import RewardScorer, check_padding, load_reward_model, padded_rewards, save_reward_model
from trainer.reward.settings import RewardSettings
from trainer.reward.steps import RewardContext, RewardJob, measure_rewards, train_reward_steps
from trainer.reward.summary import SUMMARY, RewardMetrics, RewardSummary, write_card
from trainer.scorer import to_batch
from trainer.settings import Identity
from trainer.spec import Report
from trainer.steps import read_steps
from trainer.summary import Clock, read_record
from trainer.tree.encode import encode_plain_row, encode_tree_row
from trainer.tree.rows import Layout, Plan, plan_rows, row_trees

AFTER_END = 0
"""Placeholder token id after a response; the model never reads it."""
MOST_DISAGREEMENT = 1e-3
"""Largest allowed difference between transformers' padded rewards and the trainer's, relative to their size."""


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """Identifies the training of a reward model. The hash identifies the weights; the path only says where they are."""

    base: Path
    base_hash: str
    tokenizer: Path
    """Folder with the tokenizer files for the result; they set the pad token `pad_id`."""
    pad_id: int
    work: Path
    """Checkpoints and the step log of this training alone."""
    out: Path
    """Folder of the result; exists only when it is complete."""
    settings: RewardSettings
    seed: int
    threads: int | None
    source: str = ""
    """The file, data set or run with the pairs, for messages."""
    described: str = ""
    """Base model and data in a few words, for the model card."""
    notes: tuple[str, ...] = ()
    """What is worth knowing about the data, for the summary."""

    @property
    def identity(self) -> Identity:
        """What decides the result's weights, apart from the data (checkpoints only change when work is saved)."""
        settings = self.settings.model_dump(mode="json", exclude={"checkpoint_every"})
        return {"base": self.base_hash, "pad_id": self.pad_id, "seed": self.seed} | settings


@dataclass(slots=True)
class _Running:
    """What the parts share."""

    spec: RewardSpec
    report: Report
    arithmetic: Arithmetic
    clock: Clock
    notes: list[str]


def train_reward(spec: RewardSpec, data: PreferenceData, *, report: Report) -> RewardSummary:
    """Train on the pairs and write `spec.out`; a finished one is returned as it is. `report` gets `phase` (load,
    measure, train, save), `done`, `total` and a step's metrics. Raises TrainerError where it cannot continue."""
    finished = read_record(spec.out / SUMMARY, RewardSummary, spec.identity | {"data": data_digest(data)})
    if finished is not None:
        return finished
    running = _start(spec, report)
    checked = _check(spec, data)
    readable = with_end(checked.data)
    trained, held_out = hold_out(readable, spec.settings.held_out, seed=spec.seed, source=spec.source)
    model = _load(running)
    layout, gap = _choose_layout(running, model, readable)
    plan, measured = _plans(running, trained, held_out, layout)
    context = RewardContext(RewardScorer(model), trained, running.arithmetic, layout, spec.settings.centre)
    before = _measure(running, context, held_out, measured)
    _train(running, context, plan)
    after = _measure(running, context, held_out, measured)
    padding_gap = _compare_with_transformers(model, context, plan)
    steps = read_steps(spec.work)
    summary = RewardSummary(
        steps=len(steps),
        pairs=sum(plan.steps[index].relations for index in sorted(set(plan.order))),
        held_out=0 if held_out is None else len(held_out.relations),
        dropped=checked.dropped,
        layout=plan.layout,
        layout_gap=gap,
        padding_gap=padding_gap,
        precision=running.arithmetic.precision,
        tokens=sum(step["tokens"] for step in steps),
        before=before,
        after=after,
        first=steps[0],
        last=steps[-1],
        seconds=dict(running.clock.seconds),
        notes=tuple(running.notes),
    )
    _save(running, model, summary, data_digest(data))
    return summary


def with_end(data: PreferenceData) -> PreferenceData:
    """Every response with a placeholder appended. Rows read all tokens of a response except its last (a policy only
    predicts it), so now its own last token is read, and the placeholder marks where the reward is."""

    def ended(group: PromptGroup) -> PromptGroup:
        responses = (replace(response, token_ids=[*response.token_ids, AFTER_END]) for response in group.responses)
        return replace(group, responses=tuple(responses))

    return replace(data, groups=tuple(map(ended, data.groups)))


def hold_out(
    data: PreferenceData, share: float, *, seed: int, source: str = ""
) -> tuple[PreferenceData, PreferenceData | None]:
    """Training data, and whole prompts with at least this share of pairs (None for 0). TrainerError names the `source`
    of the pairs if none would train."""
    if share == 0:
        return data, None
    trained, measured = data.split(share * len(data.relations), seed=f"held out {seed}")
    if not trained.relations:
        prompts = len({pair.prompt_id for pair in data.relations})
        raise TrainerError(
            f"Holding out a share of {share:g} of the {len(data.relations)} pairs{source and f' in {source}'} as whole "
            f"prompts leaves nothing to train on: they belong to {prompts} prompt{'s' * (prompts > 1)}. Give pairs of "
            "more prompts, or set held_out to 0."
        )
    return trained, measured


def data_digest(data: PreferenceData) -> str:
    """Hash of prompts, responses and pairs."""
    sha = hashlib.sha256()
    for group in data.groups:
        sha.update(repr((group.id, list(group.token_ids))).encode())
        for response in group.responses:
            sha.update(repr((response.id, list(response.token_ids))).encode())
    sha.update(repr(data.relations).encode())
    return sha.hexdigest()


def _start(spec: RewardSpec, report: Report) -> _Running:
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    use_huge_pages()
    torch.manual_seed(spec.seed)
    spec.work.mkdir(parents=True, exist_ok=True)
    return _Running(spec, report, choose_arithmetic(spec.settings.as_round), Clock(), [*spec.notes])


def _check(spec: RewardSpec, data: PreferenceData) -> CheckedData:
    if data.kind != "pairs":
        raise TrainerError(f"A reward model is trained on pairs, but the data are {data.kind}.")
    vocabulary, context = read_limits(spec.base)
    checked = check_data(data, vocabulary=vocabulary, context=context, source=spec.source)
    check_padding(checked.data, spec.pad_id)
    return checked


def _load(running: _Running) -> Any:
    spec, settings = running.spec, running.spec.settings
    running.report({"phase": "load", "done": 0, "total": 1})
    with running.clock.part("load"):
        model = load_reward_model(
            spec.base, running.arithmetic, pad_id=spec.pad_id, head_scale=settings.head_scale, seed=spec.seed
        )
        model = make_trainable(model, settings.as_round, seed=spec.seed)
    running.report({"phase": "load", "done": 1, "total": 1})
    return model


def _choose_layout(running: _Running, model: Any, data: PreferenceData) -> tuple[Layout, float | None]:
    """Trees if a probe shows them to be correct. It compares hidden states, because a new head may be 0."""
    wanted = running.spec.settings.layout
    if wanted == "plain":
        return "plain", None
    trees, device = sample_trees(data, running.spec.seed), running.arithmetic.device
    scorer = RewardScorer(model)
    with running.clock.part("plan"), torch.no_grad():
        rows = (encode_tree_row(trees), encode_plain_row(trees))
        tree, plain = (scorer.last_hidden(to_batch(row, device=device, mask_dtype=torch.float32)) for row in rows)
    gap = float(((tree - plain).abs().max() / plain.abs().max()).nan_to_num(torch.inf))
    if gap <= MOST_GAP:
        return "tree", gap
    if wanted == "tree":
        raise TrainerError(
            f"layout: tree cannot be used, because this model reads tree rows wrongly: hidden states differ from those "
            f"of plain rows by up to {gap:.2g} of their size ({MOST_GAP:g} is allowed). Use layout: auto or plain."
        )
    running.notes.append(f"plain rows: tree rows differ by up to {gap:.2g} of the hidden states' size on this model")
    return "plain", gap


def _plans(
    running: _Running, trained: PreferenceData, held_out: PreferenceData | None, layout: Layout
) -> tuple[Plan, Plan | None]:
    settings, seed = running.spec.settings.as_round, running.spec.seed
    once = settings.model_copy(update={"epochs": 1, "max_steps": None})
    with running.clock.part("plan"):
        plan = plan_rows(trained, settings, seed=seed, layout=layout)
        return plan, None if held_out is None else plan_rows(held_out, once, seed=seed, layout=layout)


def _measure(
    running: _Running, context: RewardContext, held_out: PreferenceData | None, plan: Plan | None
) -> RewardMetrics | None:
    if held_out is None or plan is None:
        return None

    def tick(done: int, total: int) -> None:
        running.report({"phase": "measure", "done": done, "total": total})

    with running.clock.part("measure"):
        return measure_rewards(replace(context, data=held_out), plan, tick)


def _train(running: _Running, context: RewardContext, plan: Plan) -> None:
    spec = running.spec
    identity = spec.identity | {"plan": plan.digest, "precision": running.arithmetic.precision}
    job = RewardJob(spec.work, context, plan, spec.settings.as_round, identity)
    if started := train_reward_steps(job, clock=running.clock, report=running.report):
        running.notes.append(f"resumed at step {started}")


@torch.no_grad()
def _compare_with_transformers(model: Any, context: RewardContext, plan: Plan) -> float:
    """Score a step's shortest and longest response here and by transformers; TrainerError if they differ."""
    trees = [tree for row in plan.steps[0].rows for tree in row_trees(context.data, row)]
    responses = sorted(((len(p) + len(r), p, r) for p, rs in trees for r in rs), key=lambda found: found[0])
    chosen = [(prompt, ids) for _, prompt, ids in (responses[0], responses[-1])]
    row = encode_plain_row([(prompt, [ids]) for prompt, ids in chosen])
    ours = context.scorer(to_batch(row, device=context.arithmetic.device, mask_dtype=torch.float32))
    theirs = padded_rewards(model, [[*prompt, *ids[:-1]] for prompt, ids in chosen])
    gap = float(((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-3)).nan_to_num(torch.inf))
    if gap > MOST_DISAGREEMENT:
        raise TrainerError(
            f"transformers give this reward model other rewards ({theirs.tolist()}) than those it was trained with "
            f"({ours.tolist()}), so the folder would be wrong. Its architecture does not read the reward at the last "
            "token: choose another base model."
        )
    return gap


def _save(running: _Running, model: Any, summary: RewardSummary, digest: str) -> None:
    spec = running.spec
    running.report({"phase": "save", "done": 0, "total": 1})
    partial = fresh_partial(spec.out)
    save_reward_model(model, partial, tokenizer=spec.tokenizer)
    write_card(partial, spec.described, summary)
    write_json(partial / SUMMARY, {"identity": spec.identity | {"data": digest}} | summary.model_dump())
    publish_folder(partial, spec.out)
    remove_checkpoints(spec.work)
    running.report({"phase": "save", "done": 1, "total": 1})
