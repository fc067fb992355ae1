"""Train stage inside its worker: train a candidate model folder on the pairs and responses of a run."""

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from loop.config.settings import Config
from loop.engines.base import take_threads, threads_here
from loop.errors import UserError
from loop.pairing.data_answers import AnswerText, Tokenised, render_answers
from loop.prompts.chat_template import ChatFormat, Renderer
from loop.prompts.row import PromptRow
from loop.prompts.supervised import read_mix
from loop.store import tables
from loop.store.files import write_file
from loop.store.findings import Findings
from loop.store.model_folder import resolve_base, weights_hash
from loop.store.run_records import Json
from loop.workers.entry import Report
from loop.workers.log_prob_service import vocabulary
from loop.workers.measure_service import measure_limits, score_answers
from loop.workers.named import check_named
from trainer.data import Pair, PreferenceData, PromptGroup, Ranked, Relation, Response, Single
from trainer.model_folder import check_model, check_numbers, load_tokenizer
from trainer.spec import RoundSpec
from trainer.summary import RoundSummary


@dataclass(frozen=True, slots=True)
class TrainTask:
    """One round and the tables that it trains on."""

    name: str
    spec: RoundSpec
    sampled_by: str
    """Hash of the model that sampled the responses."""
    responses: tuple[Path, ...]
    pairs: Path
    """Pairs, singles or groups: the table says which."""
    steps: Path
    chat: ChatFormat = field(default_factory=ChatFormat)
    """For the supervised examples of `train.mix`."""
    others: tuple[Path, ...] = ()
    """Responses that this iteration has not sampled: answers from the data, and replayed ones."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained round."""

    summary: RoundSummary
    weights_hash: str
    """Hash of the candidate's weights."""
    threads: int
    """CPU threads that trained it."""


@dataclass(frozen=True, slots=True)
class FoundBase:
    """The base model, and what a worker takes of this machine by itself."""

    folder: Path
    hash: str
    threads: int


@dataclass(frozen=True, slots=True)
class AverageTask:
    """One update of the moving average that `reference: ema` uses."""

    average: Path
    average_hash: str
    newest: Path
    newest_hash: str
    decay: float
    out: Path


class TrainService:
    """Trains all rounds of a campaign in one process; also finds, hashes and averages models, which needs torch.
    `threads` are those of the run's first start."""

    def __init__(self, threads: int | None = None) -> None:
        take_threads(threads)

    def base(self, base: str, longest: int | None, report: Report) -> FoundBase:
        """The model that `base` names, checked as a model for sequences of `longest` tokens."""
        folder = resolve_base(base)
        check_model(folder, longest=longest)
        check_numbers(folder)
        return FoundBase(folder, weights_hash(folder), threads_here())

    def answers(
        self, report: Report, policy: Path, texts: Sequence[AnswerText], chat: ChatFormat, path: Path
    ) -> Tokenised:
        """Write answers from the prompts' data in the policy's tokens, without those that are dropped."""
        renderer = Renderer(load_tokenizer(policy), chat)
        table = render_answers(texts, renderer)
        write_file(path, tables.table_bytes(table))
        kept = frozenset(table["response_id"].to_pylist())
        dropped = frozenset(one.response_id for one in texts if one.response_id not in kept)
        return Tokenised(dropped, len(renderer.changed), renderer.note())

    def named(
        self, report: Report, policy: Path, configs: Sequence[Config], prompts: dict[str, list[PromptRow]]
    ) -> Findings:
        """What of the config's names cannot be used."""
        return check_named(policy, configs, prompts)

    def reference(self, named: str, base: Path, report: Report) -> tuple[Path, str]:
        """Folder and hash of the model that `reference_path` names. UserError if it reads other tokens than `base`."""
        try:
            folder = resolve_base(named)
        except UserError as error:
            raise UserError(str(error).replace("model.base", "reference_path")) from error
        check_model(folder)
        check_numbers(folder)
        if vocabulary(folder) != vocabulary(base):
            raise UserError(
                f"reference_path: the tokenizer in {folder} has another vocabulary than the base model's in {base}, so "
                "it would read other tokens than were sampled. Name a model of the same family."
            )
        return folder, weights_hash(folder)

    def average(self, task: AverageTask, report: Report) -> str:
        """Make the moving average `decay * average + (1 - decay) * newest`; the hash of the folder it is in."""
        from trainer.candidates import average_models

        check_identity(task.average, task.average_hash, "reference")
        check_identity(task.newest, task.newest_hash, "policy")
        average_models(task.average, task.newest, task.out, decay=task.decay)
        return weights_hash(task.out)

    score = staticmethod(score_answers)
    measure = staticmethod(measure_limits)

    def train(self, task: TrainTask, report: Report) -> TrainResult:
        """Run the round, or resume it."""
        from trainer.round import train_round

        spec = task.spec
        check_models(spec)
        own = task.sampled_by == spec.policy_hash
        data = read_preferences(task.responses, task.pairs, task.others, own=own)
        examples = read_examples(task)
        summary = train_round(spec, data, report=lambda progress: report(**progress), examples=examples)
        return finished_round(spec, summary, task.steps)


def finished_round(spec: RoundSpec, summary: RoundSummary, steps: Path) -> TrainResult:
    """Copy the step log of a finished round to `steps`; its summary, with the candidate's hash."""
    if (spec.work / "steps.jsonl").exists():
        shutil.copyfile(spec.work / "steps.jsonl", steps)
    return TrainResult(summary, weights_hash(spec.out), threads_here())


def read_examples(task: TrainTask) -> PreferenceData | None:
    """The supervised examples of `train.mix` in the policy's tokens; None without any."""
    mix = task.spec.settings.mix
    if mix is None:
        return None
    return read_mix(mix.path, Renderer(load_tokenizer(task.spec.policy), task.chat))


def check_models(spec: RoundSpec) -> None:
    """UserError unless policy and reference are the models that the spec names by their hashes."""
    check_identity(spec.policy, spec.policy_hash, "policy")
    if not spec.same_weights:
        check_identity(spec.reference, spec.reference_hash, "reference")


def check_identity(folder: Path, expected: str, role: str) -> None:
    """UserError unless the folder holds the weights of that hash."""
    actual = weights_hash(folder) if folder.exists() else "missing"
    if actual != expected:
        raise UserError(
            f"The {role} in {folder} is not the model this run was made with (its hash is {actual[:12]}, the "
            f"promotion named {expected[:12]}). Put the original folder back, or start a new run with --name."
        )


def read_preferences(
    responses: Sequence[Path],
    pairs: Path,
    others: Sequence[Path] = (),
    *,
    own: bool = True,
    leave_out: Collection[int] = (),
) -> PreferenceData:
    """The pairs, singles or groups and the responses that they name, in the order of the shards, without relations from
    the source iterations in `leave_out`. Of a response in several files the first is used. The `responses` have the
    sampler's log-probs if the trained model sampled them (`own`); only then can they be compared with the trainer's."""
    rows = [row for row in tables.read(pairs).to_pylist() if row["source_iteration"] not in leave_out]
    relations = tuple(map(_relation, rows))
    wanted = pa.array(sorted({id for one in relations for id in one.responses}), pa.string())
    groups: dict[str, tuple[list[int], dict[str, Response]]] = {}
    for path in (*responses, *others):
        sampled = ["logprobs"] if own and path in responses else []
        table = tables.read(path, ["prompt_id", "response_id", "prompt_token_ids", "token_ids", *sampled])
        for row in table.filter(pc.is_in(table["response_id"], value_set=wanted)).to_pylist():
            _, members = groups.setdefault(row["prompt_id"], (row["prompt_token_ids"], {}))
            logp, id = sum(row["logprobs"]) if sampled else None, row["response_id"]
            members.setdefault(id, Response(id, row["token_ids"], logp))
    return PreferenceData(
        groups=tuple(PromptGroup(id, ids, tuple(members.values())) for id, (ids, members) in groups.items()),
        relations=relations,
    )


def _relation(row: Json) -> Relation:
    """A row of the table as the trainer's relation; the columns have its names."""
    row = {name: value for name, value in row.items() if name not in ("rule", "source_iteration")}
    if "chosen_id" in row:
        return Pair(**row)
    if "response_ids" in row:
        lists = {name: None if row[name] is None else tuple(row[name]) for name in ("response_ids", "scores")}
        return Ranked(**{**row, **lists})
    return Single(**row)
