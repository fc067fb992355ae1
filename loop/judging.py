"""Room loop, the judge stage inside its worker: a Parquet file of responses comes in, one of verdicts goes out.

Verdicts that cost money or minutes go through the run's verdict cache, which this process alone writes.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from judges.contract import Group, Judge, Prompt, Response, Verdict, judge_groups
from judges.handed import Generate, Handed, Usage
from judges.resolve import build_judge, fingerprint
from judges.selftest import agree_with, self_test
from loop import tables
from loop.config import JudgeConfig
from loop.errors import UserError
from loop.prompts import PromptRow
from loop.runfolder import write_file
from loop.verdict_cache import VerdictCache
from loop.worker import Report


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """One shard to judge."""

    name: str
    responses: Path
    path: Path
    prompts: tuple[PromptRow, ...]


class Meter:
    """What one shard's verdicts cost; every note is a sign of life."""

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
    """Holds the judge for the whole campaign, in a process of its own: it may print, hang or exit without harm."""

    def __init__(self, settings: JudgeConfig, cache: Path, parents: tuple[Path, ...] = ()) -> None:
        self.settings = settings
        self.judge = build_judge(settings.name, settings.args)
        self.fingerprint = fingerprint(self.judge, settings.name)
        self.store = VerdictCache(cache, parents)

    def prepare(self, report: Report, correct_at: float) -> dict[str, Any]:
        """Run the judge's own known examples and the user's labelled ones; its fingerprint, and what the loop must
        hand to it."""
        self.judge.take(Handed(self.store, told=Meter(report).note))
        self_test(self.judge)
        test_with_examples(self.judge, self.settings, correct_at)
        return {"fingerprint": self.fingerprint, "needs": sorted(self.judge.needs)}

    def label(
        self, task: JudgeTask, report: Report, generate: Generate | None = None, weights: str = ""
    ) -> dict[str, Any]:
        """Judge one shard and write the verdicts; returns counts, seconds and how many calls the cache saved."""
        started = time.perf_counter()
        groups = read_groups(task.responses, task.prompts)
        meter = Meter(report)
        self.judge.take(Handed(self.store, generate, weights, meter.note))
        verdicts = judge_groups(self.judge, groups)
        rows = verdict_rows(groups, verdicts, self.fingerprint)
        counts = Counter(row["kind"] for row in rows)
        self._check_errors(rows, counts, task)
        notes = {"judge": self.fingerprint, **self._used(meter)}
        write_file(task.path, tables.to_bytes(rows, tables.VERDICTS, notes), replace=False)
        return {"counts": dict(counts), "judge": time.perf_counter() - started, "remembered": meter.remembered}

    def _used(self, meter: Meter) -> dict[str, dict[str, float]]:
        """What the shard's verdicts cost, whether they were paid for now or before a kill; nothing for a rule judge."""
        if not meter.used.calls:
            return {}
        cost = self.judge.cost(meter.used)
        return {"used": asdict(meter.used) | ({} if cost is None else {"cost": cost})}

    def _check_errors(self, rows: list[dict[str, Any]], counts: Counter[str], task: JudgeTask) -> None:
        if counts["error"] > self.settings.max_error_share * len(rows):
            first = next(row["why"] for row in rows if row["kind"] == "error")
            raise UserError(
                f"The judge {self.settings.name} failed on {counts['error']} of {len(rows)} responses of {task.name}, "
                f"more than judge.max_error_share={self.settings.max_error_share:g} allows. The first error: {first}. "
                "No verdict file of this shard was written and the responses are safe: mend the judge (or raise the "
                "share) and run the same command; what was paid for is not paid for again."
            )


def test_with_examples(judge: Judge, settings: JudgeConfig, correct_at: float) -> int:
    """Have the judge agree with the user's labelled examples, if there are any; how many there were. JudgeError."""
    if settings.examples is None:
        return 0
    return agree_with(judge, Path(settings.examples), agreement=settings.examples_agreement, correct_at=correct_at)


def verdict_rows(
    groups: Sequence[Group], verdicts: Sequence[Sequence[Verdict]], judge: dict[str, Any]
) -> list[dict[str, Any]]:
    """The verdicts as rows of their table, in the order of the responses."""
    return [
        _row(group.prompt.id, response.id, verdict, judge)
        for group, row in zip(groups, verdicts, strict=True)
        for response, verdict in zip(group.responses, row, strict=True)
    ]


def read_groups(responses: Path, prompts: tuple[PromptRow, ...]) -> list[Group]:
    """The shard's responses as the judge contract wants them, in the order of the shard."""
    by_id = {row.id: Prompt(row.id, tuple(row.messages), row.target, row.columns) for row in prompts}
    grouped: dict[str, list[Response]] = {}
    for row in tables.read(responses, ["prompt_id", "response_id", "text", "finish_reason"]).to_pylist():
        grouped.setdefault(row["prompt_id"], []).append(Response(row["response_id"], row["text"], row["finish_reason"]))
    return [Group(by_id[prompt_id], tuple(members)) for prompt_id, members in grouped.items()]


def _row(prompt_id: str, response_id: str, verdict: Verdict, judge: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "response_id": response_id,
        "judge": judge["name"],
        "version": judge["version"],
        "kind": verdict.kind,
        "score": verdict.score,
        "extracted": verdict.extracted,
        "why": verdict.why,
        "well_formed": verdict.well_formed,
        "parts": json.dumps(verdict.parts, sort_keys=True),
    }
