"""Lineage of a run: the settings and versions of each start, what changed between them, and for a fork the run and
iteration it comes from."""

import time
from pathlib import Path
from typing import Any

from loop.config.load import LoadedConfig, diff
from loop.config.yaml_text import parse_yaml, to_yaml
from loop.store.files import read_json, to_json, write_file
from loop.store.run_folder import RunFolder


def record_settings(run: RunFolder, loaded: LoadedConfig, versions: dict[str, str]) -> None:
    """Make today's settings the run's, and note when they or the versions differ from the last start's."""
    known = read_lineage(run)
    starts: list[dict[str, Any]] = known.get("starts", [])
    before = parse_yaml(run.config.read_text(encoding="utf-8"), str(run.config)) if run.config.exists() else loaded.raw
    changes = [{"key": key, "from": old, "to": new} for key, old, new in diff(before, loaded.raw)]
    if not starts or changes or starts[-1]["versions"] != versions:
        entry = {"time": round(time.time(), 3), "config": str(loaded.source), "changes": changes, "versions": versions}
        write_file(run.lineage, to_json({**known, "name": run.name, "starts": [*starts, entry]}))
    write_file(run.config, to_yaml(loaded.raw).encode("utf-8"))


def read_lineage(run: RunFolder) -> dict[str, Any]:
    """What is recorded: `starts`, and of a fork `parent` and `verdict_caches`. Empty before the first start."""
    return dict(read_json(run.lineage)) if run.lineage.exists() else {}


def inherited_caches(run: RunFolder) -> tuple[Path, ...]:
    """The verdict caches of the runs that this one was forked from, the nearest first."""
    return tuple(Path(path) for path in read_lineage(run).get("verdict_caches", ()))
