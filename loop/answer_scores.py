"""Room loop, how likely a model finds given answers, inside the trainer's worker: a table of answers in tokens and a
model come in, a table of log-probs goes out. Log-probs are sums over the tokens of an answer, in nats; an answer that
is too long for the model has none.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from loop import tables
from loop.files import write_file
from loop.worker import Report
from trainer.data import PromptGroup, Response

LOGPS = pa.schema([("response_id", pa.string()), ("logp", pa.float64())])


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """Which tables of answers to score by which model, and where the log-probs go, file by file."""

    model: Path
    files: tuple[tuple[Path, Path], ...]


def score_answers(task: ScoreTask, report: Report) -> dict[str, float]:
    """Write the log-prob of every answer; `compute`: seconds that the model took for them."""
    from trainer.score import ResponseScorer

    scorer = ResponseScorer(task.model, precision="fp32")
    started, before = time.perf_counter(), 0
    for answers, out in task.files:
        groups = read_groups(answers)
        fitting = [fit for group in groups if (fit := _within(group, scorer.context)).responses]
        rows = scorer.score(fitting, lambda done, before=before: report(done=before + done))  # type: ignore[misc]
        names = [response.id for group in fitting for response in group.responses]
        found = dict(zip(names, (logp for row in rows for logp in row), strict=True))
        everyone = [response.id for group in groups for response in group.responses]
        table = pa.table({"response_id": everyone, "logp": [found.get(id) for id in everyone]}, schema=LOGPS)
        write_file(out, tables.table_bytes(table))
        before += len(found)
    return {"compute": time.perf_counter() - started}


def read_groups(path: Path) -> list[PromptGroup]:
    """The answers of a table, prompt by prompt."""
    groups: dict[str, tuple[list[int], list[Response]]] = {}
    for row in tables.read(path, ["prompt_id", "response_id", "prompt_token_ids", "token_ids"]).to_pylist():
        _, members = groups.setdefault(row["prompt_id"], (row["prompt_token_ids"], []))
        members.append(Response(row["response_id"], row["token_ids"]))
    return [PromptGroup(id, prompt, tuple(members)) for id, (prompt, members) in groups.items()]


def _within(group: PromptGroup, context: int | None) -> PromptGroup:
    """The group without responses that the model cannot read."""
    most = float("inf") if context is None else context - len(group.token_ids)
    fitting = tuple(r for r in group.responses if 0 < len(r.token_ids) <= most)
    return PromptGroup(group.id, group.token_ids, fitting)


def read_logps(path: Path) -> dict[str, float]:
    """Log-probs by response id; answers without one are left out."""
    table = tables.read(path)
    rows = zip(table["response_id"].to_pylist(), table["logp"].to_pylist(), strict=True)
    return {id: logp for id, logp in rows if logp is not None}
