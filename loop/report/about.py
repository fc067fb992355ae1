"""Tables of a run's settings, starts, versions and model hashes for the report."""

import json
import time
from collections.abc import Iterator
from typing import Any

from loop.redact import redacted
from loop.report.data import IterationData, RunData
from loop.report.figure import Table


def settings(data: RunData) -> Table:
    """Every key with its value, dotted."""
    rows = [[key, _shown(value)] for key, value in flat(redacted(data.loaded.raw))]
    return Table(["key", "value"], rows)


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
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
    rows = [
        [moment(start["time"]), start.get("config", ""), "; ".join(_change(one) for one in start.get("changes", []))]
        for start in data.lineage.get("starts", [])
    ]
    return Table(["started (UTC)", "config", "changed settings"], rows)


def _change(change: dict[str, Any]) -> str:
    old, new = (_shown(redacted(change[side], change["key"])) for side in ("from", "to"))
    return f"{change['key']}: {old} → {new}"


def moment(seconds: float) -> str:
    """Format seconds since the epoch as date and time, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def versions(data: RunData) -> Table:
    """Package versions that affect results, at each start."""
    known = [start.get("versions", {}) for start in data.lineage.get("starts", [])]
    names = sorted({name for one in known for name in one})
    heads = ["package", *(f"start {i}" for i in range(1, len(known) + 1))] if len(known) > 1 else ["package", "version"]
    return Table(heads, [[name, *(one.get(name) for one in known)] for name in names])


def models(data: RunData) -> Table:
    """Short hashes of the models and stage digests of each iteration."""
    heads = ["iteration", "candidate", "incumbent before", "reference after", "incumbent after", "pairs", "round"]
    return Table(heads, [_models(turn) for turn in data.turns])


def _models(turn: IterationData) -> list[object]:
    named = [_named(turn.promotion.get(role)) for role in ("candidate", "incumbent", "reference", "policy")]
    digests = [turn.manifests[stage].digest[:12] if stage in turn.manifests else None for stage in ("pair", "train")]
    return [turn.number, *named, *digests]


def _named(record: dict[str, Any] | None) -> str | None:
    return f"{record['hash'][:12]} (iteration {record['iteration']})" if record else None
