"""Room loop, the judge stage inside its worker: a Parquet file of responses comes in, one of verdicts goes out."""

import gc
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from judges.contract import Group, Prompt, Response, Verdict, judge_groups
from judges.resolve import build_judge, fingerprint
from judges.selftest import self_test
from loop import tables
from loop.config import JudgeConfig
from loop.errors import UserError
from loop.prompts import PromptRow
from loop.runfolder import write_file
from loop.worker import Report


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """One shard to judge."""

    name: str
    responses: Path
    path: Path
    prompts: tuple[PromptRow, ...]


class JudgeService:
    """Holds the judge for the whole campaign, in a process of its own: it may print, hang or exit without harm."""

    def __init__(self, settings: JudgeConfig) -> None:
        self.settings = settings
        self.judge = build_judge(settings.name, settings.args)
        self.fingerprint = fingerprint(self.judge, settings.name)

    def prepare(self, report: Report) -> dict[str, Any]:
        """Run the judge's own known examples; its fingerprint."""
        self_test(self.judge)
        return self.fingerprint

    def label(self, task: JudgeTask, report: Report) -> dict[str, Any]:
        """Judge one shard and write the verdicts; returns counts and seconds."""
        started = time.perf_counter()
        with frozen_groups(task.responses, task.prompts) as groups:
            verdicts = [verdict for row in judge_groups(self.judge, groups) for verdict in row]
        counts: Counter[str] = Counter(verdict.kind for verdict in verdicts)
        self._check_errors(verdicts, counts, task)
        table = verdict_table(groups, verdicts, self.fingerprint)
        write_file(task.path, tables.table_bytes(tables.noted(table, {"judge": self.fingerprint})), replace=False)
        return {"counts": dict(counts), "judge": time.perf_counter() - started}

    def _check_errors(self, verdicts: list[Verdict], counts: Counter[str], task: JudgeTask) -> None:
        if counts["error"] > self.settings.max_error_share * len(verdicts):
            first = next(verdict.why for verdict in verdicts if verdict.kind == "error")
            raise UserError(
                f"The judge {self.settings.name} failed on {counts['error']} of {len(verdicts)} responses of "
                f"{task.name}, more than judge.max_error_share={self.settings.max_error_share:g} allows. The first "
                f"error: {first}. No verdict of this shard was kept and the responses are safe: mend the judge (or "
                "raise the share) and run the same command."
            )


@contextmanager
def frozen_groups(responses: Path, prompts: tuple[PromptRow, ...]) -> Iterator[list[Group]]:
    """The shard's groups, hidden from Python's cycle collector: they hold no cycles, and walking through all of them
    again and again would cost as much as a fast judge."""
    gc.disable()
    try:
        groups = read_groups(responses, prompts)
        gc.freeze()
    finally:
        gc.enable()
    try:
        yield groups
    finally:
        gc.unfreeze()


def read_groups(responses: Path, prompts: tuple[PromptRow, ...]) -> list[Group]:
    """The shard's responses as the judge contract wants them, in the order of the shard."""
    by_id = {row.id: Prompt(row.id, tuple(row.messages), row.target, row.columns) for row in prompts}
    table = tables.read(responses, ["prompt_id", "response_id", "text", "finish_reason"])
    of_prompt, *rest = (table.column(name).to_pylist() for name in table.column_names)
    grouped: dict[str, list[Response]] = {}
    for prompt_id, response in zip(of_prompt, map(Response, *rest), strict=True):
        grouped.setdefault(prompt_id, []).append(response)
    return [Group(by_id[prompt_id], tuple(members)) for prompt_id, members in grouped.items()]


def verdict_table(groups: list[Group], verdicts: list[Verdict], judge: dict[str, Any]) -> pa.Table:
    """The verdicts as a table, in the order of the groups' responses; column by column, as rows of dicts are slow."""
    columns = {
        "prompt_id": [group.prompt.id for group in groups for _ in group.responses],
        "response_id": [response.id for group in groups for response in group.responses],
        "judge": pa.repeat(judge["name"], len(verdicts)),
        "version": pa.repeat(judge["version"], len(verdicts)),
        "kind": [verdict.kind for verdict in verdicts],
        "score": [verdict.score for verdict in verdicts],
        "extracted": [verdict.extracted for verdict in verdicts],
        "why": [verdict.why for verdict in verdicts],
        "well_formed": [verdict.well_formed for verdict in verdicts],
        "parts": [json.dumps(verdict.parts, sort_keys=True) if verdict.parts else "{}" for verdict in verdicts],
    }
    return pa.table(columns, schema=tables.VERDICTS)
