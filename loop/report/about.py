"""Tables of a run's settings, starts, versions and model hashes for the report."""

import json
import time
from collections.abc import Iterator
from typing import Any

from loop.redact import redacted
from loop.report.data import IterationData, RunData
from loop.report.figure import Table
from loop.store.lineage import Change
from loop.store.run_records import Json, ModelRecord


def settings(data: RunData) -> Table:
    """Every key with its value, dotted."""
    rows = [[key, _shown(value)] for key, value in flat(redacted(data.loaded.raw))]
    return Table(["key", "value"], rows)


def flat(values: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings under dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def starts(data: RunData) -> Table:
    """Every start of the run: time, config and changed settings."""
    rows = [[moment(start.time), start.config, "; ".join(map(_change, start.changes))] for start in data.lineage.starts]
    return Table(["started (UTC)", "config", "changed settings"], rows)


def _change(change: Change) -> str:
    old, new = (_shown(redacted(value, change.key)) for value in (change.old, change.new))
    return f"{change.key}: {old} → {new}"


def moment(seconds: float) -> str:
    """Format seconds since the epoch as date and time, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def versions(data: RunData) -> Table:
    """Package versions that affect results, at each start."""
    known = [start.versions for start in data.lineage.starts]
    names = sorted({name for one in known for name in one})
    heads = ["package", *(f"start {i}" for i in range(1, len(known) + 1))] if len(known) > 1 else ["package", "version"]
    return Table(heads, [[name, *(one.get(name) for one in known)] for name in names])


def models(data: RunData) -> Table:
    """Short hashes of the models and stage digests of each iteration."""
    heads = ["iteration", "candidate", "incumbent before", "reference after", "incumbent after", "pairs", "round"]
    return Table(heads, [_models(it) for it in data.iterations])


def _models(it: IterationData) -> list[object]:
    decision = it.promotion
    before = [decision.candidate, decision.incumbent, decision.reference] if decision else [None] * 3
    named = [_named(record) for record in (*before, it.policy)]
    digests = [it.manifests[stage].digest[:12] if stage in it.manifests else None for stage in ("pair", "train")]
    return [it.number, *named, *digests]


def _named(record: ModelRecord | None) -> str | None:
    return f"{record.hash[:12]} (iteration {record.iteration})" if record else None
