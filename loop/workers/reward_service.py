"""Train a reward model on the preference data that the config's `data` section names. Pairs of a campaign keep the
sampled token ids; pairs from a file are tokenised here."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from loop.config.reward_settings import FilePairs, HubPairs, RewardConfig, RunPairs
from loop.config.types import did_you_mean
from loop.errors import UserError
from loop.prompts.chat_template import ChatFormat, Renderer
from loop.prompts.data_files import read_rows
from loop.prompts.preferences import Conversations, PairReader
from loop.prompts.sources import read_hub, unused
from loop.store.model_folder import check_folder, resolve_base, weights_hash
from loop.store.run_folder import RunFolder
from loop.store.run_state import PairCounts
from loop.workers.entry import Report
from loop.workers.train_service import read_preferences
from trainer.data import Pair, PreferenceData, PromptGroup, Response
from trainer.model_folder import check_model, load_tokenizer
from trainer.reward.summary import RewardSummary

Tick = Callable[[int, int], None]
"""Called with the number of rows done and the total."""

TICK_EVERY = 500


def run_of(data: RunPairs) -> RunFolder:
    """The run with the pairs. UserError if there is none."""
    run = RunFolder(Path(data.run))
    if not run.exists():
        known = RunFolder.names_in(run.root.parent)
        there = f"The runs in {run.root.parent}: {', '.join(known) or 'none'}"
        raise UserError(
            f"data.run: there is no run in {run}{did_you_mean(run.name, known) or '.'} {there}. `prefloop run "
            f"{run.name}` starts one of that name."
        )
    run.check_format()
    return run


def base_of(run: RunFolder) -> Path:
    """The model that the run started from. UserError if there is none yet, or the model is gone."""
    record = run.promotion(0)
    if not record.exists():
        raise UserError(f"data.run: {run} has no base model yet; continue it with `prefloop run {run}`.")
    folder = run.root / run.base().policy.path
    if not folder.is_dir():
        raise UserError(f"The base model of {run} is no longer in {folder}. Put it back, or set base.")
    return folder


def read_run(data: RunPairs) -> PreferenceData:
    """The pairs of the run's iterations, with their responses. UserError if there are none."""
    run = run_of(data)
    finished = {k: m for k in run.iterations() if (m := run.stage(k, "pair").manifest())}
    wanted = list(finished) if data.iterations is None else sorted(set(data.iterations))
    if missing := [k for k in wanted if k not in finished]:
        raise UserError(
            f"data.iterations: {run} has no finished pairs of iteration {', '.join(map(str, missing))}; it has those "
            f"of: {', '.join(map(str, finished)) or 'none'}."
        )
    if not wanted:
        raise UserError(f"data.run: {run} has no finished pairs yet; continue it with `prefloop run {run}`.")
    parts = []
    for k in wanted:
        folder = run.stage(k, "pair")
        folder.check(finished[k], verify=False)
        if (made := finished[k].counted(PairCounts).kind) != "pairs":
            raise UserError(
                f"data.iterations: iteration {k} of {run} made {made}, and a reward model learns from pairs. Name "
                "iterations that made pairs."
            )
        own, others = run.response_files(k)
        again = [other for other in wanted if other != k]  # replayed pairs count once
        parts.append(read_preferences(own, folder.pairs, others, leave_out=again))
    return _joined(parts)


def _joined(parts: Sequence[PreferenceData]) -> PreferenceData:
    """The parts together, with one group per prompt."""
    groups: dict[str, PromptGroup] = {}
    for group in (group for part in parts for group in part.groups):
        before = groups.get(group.id)
        known = {response.id: response for response in (*(before.responses if before else ()), *group.responses)}
        responses = tuple(known.values())  # every iteration repeats a gold answer
        groups[group.id] = PromptGroup(group.id, group.token_ids, responses)
    return PreferenceData(tuple(groups.values()), tuple(pair for part in parts for pair in part.relations))


class ReadPairs(NamedTuple):
    """The pairs of a file or data set."""

    data: PreferenceData
    notes: tuple[str, ...]
    """What is worth knowing about them: what is not used, dropped, repeated or changed by the template."""


def read_pairs(data: FilePairs | HubPairs, renderer: Renderer, tick: Tick) -> ReadPairs:
    """One pair per row; rows with the same prompt share a group. UserError names the row that cannot be read."""
    if isinstance(data, FilePairs):
        name, rows = read_rows(data.path, "data.path")
    else:
        otherwise = "give a local copy with data.source=file"
        name, rows = read_hub(data.dataset, data.subset, data.split, section="data", otherwise=otherwise)
    reader = PairReader(data, "data", data.chat)
    reader.check(name, rows.column_names)
    made = _PairSet(renderer)
    for number, row in enumerate(rows, start=1):
        where = f"{name}, row {number}"
        made.add(f"row {number}", where, reader.conversations(row, where), reader.margin(row, where))
        if number % TICK_EVERY == 0:
            tick(number, len(rows))
    used = {data.prompt_column, data.chosen_column, data.rejected_column}
    changed = filter(None, [renderer.note()])
    return ReadPairs(made.data, (*unused(name, rows, used), *changed, *made.notes))


@dataclass(slots=True)
class _PairSet:
    """Groups and pairs collected so far."""

    renderer: Renderer
    groups: dict[tuple[int, ...], tuple[str, dict[tuple[int, ...], str]]] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    seen: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, id: str, where: str, talk: Conversations, margin: float | None) -> None:
        """Add a row's pair; the trainer drops and counts empty ones."""
        prompt = tuple(self.renderer.prompt(talk.prompt, where)) if talk.prompt else ()
        group, responses = self.groups.setdefault(prompt, (id, {}))
        ids = [
            tuple(self.renderer.answer(talk.prompt, turns, where))
            if talk.prompt and turns and turns[-1]["role"] == "assistant"
            else ()
            for turns in (talk.chosen, talk.rejected)
        ]
        sides = zip(ids, ("chosen", "rejected"), strict=True)
        chosen, rejected = (responses.setdefault(tokens, f"{id}, {side}") for tokens, side in sides)
        self.found["end with a turn of another role and count as empty"] += talk.fault == "pairs_with_other_turns"
        self.found["are repeated"] += (group, chosen, rejected) in self.seen
        self.found["are given in both directions"] += (group, rejected, chosen) in self.seen and chosen != rejected
        self.seen.add((group, chosen, rejected))
        self.pairs.append(Pair(group, chosen, rejected, margin=margin))

    @property
    def notes(self) -> list[str]:
        """Counts of pairs that are probably not meant."""
        return [f"{count} pairs {what}" for what, count in self.found.items() if count]

    @property
    def data(self) -> PreferenceData:
        """The collected data."""
        groups = (
            PromptGroup(id, prompt, tuple(Response(name, ids) for ids, name in responses.items()))
            for prompt, (id, responses) in self.groups.items()
        )
        return PreferenceData(tuple(groups), tuple(self.pairs))


PAD = "<|pad|>"
"""Pad token for a tokenizer that has none, or only its end token."""


class RewardService:
    """Trains one reward model."""

    def train(self, config: RewardConfig, work: Path, report: Report) -> RewardSummary:
        """Train the model, or resume."""
        from trainer.reward.round import RewardSpec, train_reward

        base = find_base(config)
        tokenizer = load_tokenizer(base)
        data, notes = self._read(config, tokenizer, report)
        folder = set_padding(tokenizer, data, base=base, own=work / "tokenizer")
        spec = RewardSpec(
            base=base,
            base_hash=weights_hash(base),
            tokenizer=folder,
            pad_id=tokenizer.pad_token_id,
            work=work,
            out=Path(config.out),
            settings=config.train,
            seed=config.seed,
            threads=config.threads,
            source=source_of(config.data),
            described=described(config),
            notes=notes,
        )
        return train_reward(spec, data, report=lambda progress: report(**progress))

    def _read(self, config: RewardConfig, tokenizer: Any, report: Report) -> ReadPairs:
        report(phase="read", done=0, total=0)
        if isinstance(config.data, RunPairs):
            _check_same_tokens(tokenizer, base_of(run_of(config.data)), config)
            return ReadPairs(read_run(config.data), ())
        chat = ChatFormat(config.chat_template_kwargs, config.special_tokens, config.on_template_change)
        renderer = Renderer(tokenizer, chat, config.data.chat)
        return read_pairs(config.data, renderer, lambda done, total: report(phase="read", done=done, total=total))


def find_base(config: RewardConfig) -> Path:
    """The folder of the model whose layers the reward model starts from. UserError if it cannot be loaded."""
    if config.base is not None:
        folder = resolve_base(config.base)
    else:
        assert isinstance(config.data, RunPairs), "the config was loaded without a base"
        folder = base_of(run_of(config.data))
        check_folder(folder)
    check_model(folder)
    return folder


def _check_same_tokens(tokenizer: Any, sampled_by: Path, config: RewardConfig) -> None:
    """UserError if the reward model's base has another tokenizer than the run's."""
    if config.base is None:
        return
    if load_tokenizer(sampled_by).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"base: {config.base} has another tokenizer than {sampled_by}, whose token ids the run holds, so it would "
            "read other texts than were sampled. Leave base out, or name a model of the same family."
        )


def set_padding(tokenizer: Any, data: PreferenceData, *, base: Path, own: Path) -> Path:
    """Give the tokenizer a pad token that ends no response, on the right; the folder of its files: the base model's, or
    `own` if it had to be changed."""
    shutil.rmtree(own, ignore_errors=True)
    ends = {response.token_ids[-1] for group in data.groups for response in group.responses if response.token_ids}
    usable = tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in {*ends, tokenizer.eos_token_id}
    if usable and tokenizer.padding_side == "right":
        return base
    if not usable:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(own)
    return own


def source_of(data: RunPairs | FilePairs | HubPairs) -> str:
    """Where the pairs are from."""
    if isinstance(data, RunPairs):
        return data.run
    return data.path if isinstance(data, FilePairs) else data.dataset


def described(config: RewardConfig) -> str:
    """Base model and data, for the model card."""
    data = config.data
    if isinstance(data, RunPairs):
        of = f"iterations {', '.join(map(str, data.iterations))}" if data.iterations else "all iterations"
        return f"Base model: {config.base or 'that of the run'}. Pairs: the run {Path(data.run).name}, {of}."
    pairs = data.path if data.source == "file" else f"{data.dataset}, split {data.split}"
    return f"Base model: {config.base}. Pairs: {pairs}."
