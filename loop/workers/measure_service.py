"""Measure the gate's log-prob limits in the trainer's worker: KL divergence on responses, perplexity on a text file.

KL is the k1 estimate: the mean over responses y ~ policy (temperature 1, nothing cut from its distribution) of
log policy(y) - log base(y), sums over tokens. It is unbiased, may be negative and costs one forward pass of each
model. Both are scored by the trainer's scorer, as the sampler's log-probs are rounded.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from loop.store import tables
from loop.store.files import write_file
from loop.store.run_records import Numbers
from loop.workers.entry import Report
from loop.workers.log_prob_service import sampled_ids, tokenizer_of
from trainer.data import PromptGroup, Response

if TYPE_CHECKING:
    from trainer.score import ResponseScorer

WINDOW = 512
"""Tokens of a text that are read at once; all but the first of them are scored."""


@dataclass(frozen=True, slots=True)
class MeasureTask:
    """What to measure of `policy` against `initial`."""

    policy: Path
    initial: Path
    drift: tuple[Path, ...]
    """Shards of responses for the KL divergence; none asks for none."""
    text: Path | None
    """The file for perplexities; None asks for none."""


def measure_limits(task: MeasureTask, report: Report) -> Numbers:
    """`kl` with its standard error, `responses` behind it, and `perplexity` of policy and base; only those that the
    task asks for."""
    own, base = (_measure_one(folder, task, report) for folder in (task.policy, task.initial))
    measured: Numbers = {}
    if task.drift:
        measured |= k1([a - b for a, b in zip(own.logps, base.logps, strict=True)])
    if task.text is not None:
        measured |= {"perplexity": own.perplexity, "perplexity_base": base.perplexity}
        measured["perplexity_ratio"] = own.perplexity / base.perplexity
    return measured


def k1(log_ratios: Sequence[float]) -> Numbers:
    """Mean of the log-ratios in nats and its standard error (None for a single one)."""
    n = len(log_ratios)
    mean = sum(log_ratios) / n
    spread = math.sqrt(sum((x - mean) ** 2 for x in log_ratios) / (n - 1) / n) if n > 1 else None
    return {"kl": mean, "kl_error": spread, "kl_responses": n}


class _Measured(NamedTuple):
    """Log-probs and perplexity under one model."""

    logps: list[float]
    perplexity: float
    """NaN if there is no text."""


def _measure_one(folder: Path, task: MeasureTask, report: Report) -> _Measured:
    from trainer.score import ResponseScorer

    report(phase="load")
    scorer = ResponseScorer(folder, precision="fp32")
    logps: list[float] = []

    def tick(done: int) -> None:
        report(phase="measure", done=done, total=done)

    for shard in task.drift:
        groups = [
            PromptGroup(name, prompt, (Response(name, ids),)) for name, (prompt, ids) in sampled_ids(shard).items()
        ]
        logps += [logp for row in scorer.score(groups, tick) for logp in row]
    if task.text is None:
        return _Measured(logps, math.nan)
    return _Measured(logps, perplexity(task.text.read_text(encoding="utf-8"), folder, scorer, tick))


def perplexity(text: str, folder: Path, scorer: "ResponseScorer", tick: Callable[[int], None]) -> float:
    """exp of the mean negative log-prob per token, over disjoint windows. A last window of one token is left
    out."""
    size = min(WINDOW, scorer.context or WINDOW)
    ids = [int(i) for i in tokenizer_of(folder)(text, add_special_tokens=False, verbose=False)["input_ids"]]
    groups = windows(ids, size)
    logps = [logp for row in scorer.score(groups, tick) for logp in row]
    return math.exp(-sum(logps) / sum(len(group.responses[0].token_ids) for group in groups))


def windows(ids: list[int], size: int) -> list[PromptGroup]:
    """The text in windows of one token of context and up to `size - 1` that are scored."""
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [
        PromptGroup(str(i), piece[:1], (Response(str(i), piece[1:]),))
        for i, piece in enumerate(pieces)
        if len(piece) > 1
    ]


LOGPS = pa.schema([("response_id", pa.string()), ("logp", pa.float64())])


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """The model, and pairs of files: answers to score, and their log-probs."""

    model: Path
    files: tuple[tuple[Path, Path], ...]


def score_answers(task: ScoreTask, report: Report) -> dict[str, float]:
    """Write the log-prob of every answer; `compute`: the model's seconds."""
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
