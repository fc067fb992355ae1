"""Judge stage inside its worker: read a Parquet file of responses, write one of verdicts."""

import gc
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path

import pyarrow as pa

from judges.context import Generate, JudgeContext, LocalModel, Usage
from judges.contract import Judge
from judges.resolve import build_judge
from judges.run import judge_groups
from judges.trial.selftest import agree_with, self_test
from judges.types import USUAL, Group, JudgeError, Prompt, Response, Thinking, Verdict
from judges.versions import fingerprint
from loop.config.settings import JudgeConfig, ModelConfig
from loop.engines.judge_engine import asked_for
from loop.errors import UserError
from loop.prompts.row import PromptRow
from loop.prompts.thinking import find_thinking
from loop.redact import redacted
from loop.store import tables
from loop.store.files import write_file
from loop.store.findings import Findings
from loop.store.model_folder import find_model
from loop.store.run_records import Json
from loop.store.thoughts import recorded
from loop.store.verdict_cache import VerdictCache
from loop.workers.entry import Report
from loop.workers.log_prob_service import LogProbScorer, Roles
from loop.workers.process import HANGING


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """One shard to judge."""

    name: str
    responses: Path
    path: Path
    prompts: tuple[PromptRow, ...]


@dataclass(frozen=True, slots=True)
class JudgedShard:
    """A judged shard."""

    counts: dict[str, int]
    """Verdicts by kind."""
    seconds: float
    remembered: int
    """Calls that the verdict cache saved."""


@dataclass(frozen=True, slots=True)
class PreparedJudge:
    """A judge that has passed its tests."""

    fingerprint: Json
    needs: tuple[str, ...]
    """What the loop must give it."""
    compares: bool
    """Whether it judges a prompt's responses against each other."""
    local_model: LocalModel | None
    """The model that it wants in an engine."""


class Meter:
    """Usage of one shard's verdicts; every note is a heartbeat."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.used = Usage()
        self.remembered = 0

    def note(self, usage: Usage, remembered: bool) -> None:
        """Count one verdict's usage; `remembered` if the cache had it."""
        self.used += usage
        self.remembered += usage.calls if remembered else 0
        self.report(calls=self.used.calls)


class JudgeService:
    """Holds the judge for the whole campaign, in a process of its own: it may print, hang or exit. `model` is the one
    whose responses it judges, and `base` where that was found."""

    def __init__(
        self,
        settings: JudgeConfig,
        cache: Path,
        parents: tuple[Path, ...] = (),
        model: ModelConfig | None = None,
        base: Path | None = None,
    ) -> None:
        self.settings = settings
        self.judge = build_judge(settings.name, settings.args)
        self.store = VerdictCache(cache, parents)
        self.judge.bind(JudgeContext(self.store, find=find_model))
        self.thinking = USUAL if model is None else find_thinking(settings.thinking, model, base)
        self.fingerprint = fingerprint(self.judge, settings.name) | recorded(self.thinking)
        self.scoring = LogProbScorer()

    def prepare(self, report: Report, correct_at: float) -> PreparedJudge:
        """Test the judge on its own examples and the user's labelled ones; the latter wait if it wants a model in an
        engine."""
        self._bind(Meter(report))
        self_test(self.judge)
        model = asked_for(self.judge)
        if model is None:
            try_examples(self.judge, self.settings, correct_at, self.thinking)
        return PreparedJudge(self.fingerprint, tuple(sorted(self.judge.needs)), self.judge.compares, model)

    def check_prompts(self, report: Report, prompts: Sequence[PromptRow]) -> Findings:
        """The prompts that the judge cannot judge, such as those without a target; every prompt is tried."""
        return check_prompts(self.judge, prompts)

    def try_examples(self, report: Report, correct_at: float, generate: Generate, weights: str) -> int:
        """Test the judge, with a model that answers, on the user's labelled examples; their number."""
        self._bind(Meter(report), generate, weights)
        return try_examples(self.judge, self.settings, correct_at, self.thinking)

    def label(
        self,
        task: JudgeTask,
        report: Report,
        generate: Generate | None = None,
        weights: str = "",
        roles: Roles | None = None,
    ) -> JudgedShard:
        """Judge one shard and write the verdicts. `generate` asks a model whose hash is `weights`; `roles` are the
        models that measure log-probs."""
        started = time.perf_counter()
        meter = Meter(report)
        self.scoring.begin(task.responses, roles, report)
        self._bind(meter, generate, weights)
        with frozen_groups(task.responses, task.prompts, self.thinking) as groups:
            verdicts = [verdict for row in judge_groups(self.judge, groups) for verdict in row]
        counts: Counter[str] = Counter(verdict.kind for verdict in verdicts)
        self._check_errors(verdicts, counts, task)
        notes = {"judge": self.fingerprint, **self._used(meter)}
        write_verdicts(task.path, groups, verdicts, notes)
        return JudgedShard(dict(counts), time.perf_counter() - started, meter.remembered)

    def rest(self, report: Report) -> None:
        """Leave the device's memory to the trainer, until the next shard."""
        self.judge.rest()
        if "log_probs" in self.judge.needs:
            self.scoring.rest()

    def _bind(self, meter: Meter, generate: Generate | None = None, weights: str = "") -> None:
        def begin(item: str) -> None:
            meter.report(item=item, limit=self.settings.seconds_per_response)

        self.judge.bind(JudgeContext(self.store, generate, weights, find_model, self.scoring, meter.note, begin))

    def _used(self, meter: Meter) -> dict[str, dict[str, float]]:
        """Usage of the shard's verdicts, now or before a kill, and its price; empty for a rule judge."""
        if not meter.used.calls:
            return {}
        cost = self.judge.cost(meter.used)
        return {"used": asdict(meter.used) | ({} if cost is None else {"cost": cost})}

    def _check_errors(self, verdicts: list[Verdict], counts: Counter[str], task: JudgeTask) -> None:
        if counts["error"] > self.settings.max_error_share * len(verdicts):
            first = next(verdict.why for verdict in verdicts if verdict.kind == "error")
            raise UserError(
                f"The judge {self.settings.name} failed on {counts['error']} of {len(verdicts)} responses of "
                f"{task.name}, more than judge.max_error_share={self.settings.max_error_share:g} allows. The first "
                f"error: {first}. No verdict file of this shard was written and the responses are safe: fix the "
                "judge (or raise the share) and run the same command; no verdict is paid for twice."
            )


def check_prompts(judge: Judge, prompts: Sequence[PromptRow]) -> Findings:
    """Try the judge on every prompt before anything is sampled; of the problems the first stands for all."""
    found, first = Findings(), ""
    for row in prompts:
        prompt = as_prompt(row)
        found.look(judge.check_prompt, prompt)
        first = first or (f" The prompt begins with {prompt.text[:60]!r}." if found.problems else "")
    if (count := len(found.problems)) > 1:
        first += f" {count - 1} other prompts have the same kind of problem."
    found.problems = [f"{problem}{first}" for problem in found.problems[:1]]
    return found


def as_prompt(row: PromptRow) -> Prompt:
    """A prompt as judges get it."""
    return Prompt(row.id, tuple(row.messages), row.target, row.columns)


def timer(seconds: float) -> Callable[[str], None]:
    """An `on_item` for judging in the main process, which nobody watches: a signal raises JudgeError in an item that
    takes longer."""
    doing = ""

    def late(*_: object) -> None:
        raise JudgeError(f"The judge was still at {doing} after {seconds:g} s. {HANGING}")

    def begin(item: str) -> None:
        nonlocal doing
        doing = item
        signal.setitimer(signal.ITIMER_REAL, seconds if item else 0.0, 1.0)

    if threading.current_thread() is not threading.main_thread():
        return lambda item: None
    signal.signal(signal.SIGALRM, late)
    return begin


def try_examples(judge: Judge, settings: JudgeConfig, correct_at: float, thinking: Thinking | None) -> int:
    """Test the judge on the user's labelled examples, if there are any; their number. JudgeError if it disagrees."""
    if settings.examples is None:
        return 0
    agreement = settings.examples_agreement
    return agree_with(judge, Path(settings.examples), agreement=agreement, correct_at=correct_at, thinking=thinking)


@contextmanager
def frozen_groups(responses: Path, prompts: tuple[PromptRow, ...], thinking: Thinking | None) -> Iterator[list[Group]]:
    """The shard's groups, hidden from Python's cycle collector: they hold no cycles, and collecting them would take as
    long as a fast judge."""
    gc.disable()
    try:
        groups = read_groups(responses, prompts, thinking)
        gc.freeze()
    finally:
        gc.enable()
    try:
        yield groups
    finally:
        gc.unfreeze()


def read_groups(responses: Path, prompts: tuple[PromptRow, ...], thinking: Thinking | None = USUAL) -> list[Group]:
    """The shard's responses as groups for a judge, in the order of the shard."""
    by_id = {row.id: as_prompt(row) for row in prompts}
    table = tables.read(responses, ["prompt_id", "response_id", "text", "finish_reason"])
    of_prompt, *rest = (table.column(name).to_pylist() for name in table.column_names)
    grouped: dict[str, list[Response]] = {}
    for prompt_id, response in zip(of_prompt, map(Response, *rest, repeat(thinking)), strict=True):
        grouped.setdefault(prompt_id, []).append(response)
    return [Group(by_id[prompt_id], tuple(members)) for prompt_id, members in grouped.items()]


def write_verdicts(
    path: Path, groups: list[Group], verdicts: list[Verdict], notes: Json, *, replace: bool = False
) -> None:
    """Write the verdicts in the order of the groups' responses; `notes` holds the judge's fingerprint."""
    table = verdict_table(groups, verdicts, notes["judge"])
    write_file(path, tables.table_bytes(tables.noted(table, redacted(notes))), replace=replace)


def verdict_table(groups: list[Group], verdicts: list[Verdict], judge: Json) -> pa.Table:
    """The verdicts as a table, in the order of the groups' responses; by column, as rows of dicts are slow."""
    columns = {
        "prompt_id": [group.prompt.id for group in groups for _ in group.responses],
        "response_id": [response.id for group in groups for response in group.responses],
        "judge": pa.repeat(judge["name"], len(verdicts)),
        "version": pa.repeat(judge["version"], len(verdicts)),
        "kind": [verdict.kind for verdict in verdicts],
        "score": [verdict.score for verdict in verdicts],
        "extracted": [verdict.extracted for verdict in verdicts],
        "why": [redacted(verdict.why) if verdict.kind == "error" else verdict.why for verdict in verdicts],
        "well_formed": [verdict.well_formed for verdict in verdicts],
        "parts": [json.dumps(verdict.parts, sort_keys=True) if verdict.parts else "{}" for verdict in verdicts],
    }
    return pa.table(columns, schema=tables.VERDICTS)
