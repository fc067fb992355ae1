"""Room loop, the lineage: which settings and versions each start of a run worked with, and what changed between."""

import time
from typing import Any

from loop.config_load import LoadedConfig, diff
from loop.config_yaml import parse_yaml, to_yaml
from loop.runfolder import RunFolder, read_json, to_json, write_file


def record_settings(run: RunFolder, loaded: LoadedConfig, versions: dict[str, str]) -> None:
    """Make today's settings the run's, and note when they or the versions differ from the last start's."""
    starts: list[dict[str, Any]] = read_json(run.lineage)["starts"] if run.lineage.exists() else []
    before = parse_yaml(run.config.read_text(encoding="utf-8"), str(run.config)) if run.config.exists() else loaded.raw
    changes = [{"key": key, "from": old, "to": new} for key, old, new in diff(before, loaded.raw)]
    if not starts or changes or starts[-1]["versions"] != versions:
        entry = {"time": round(time.time(), 3), "config": str(loaded.source), "changes": changes, "versions": versions}
        write_file(run.lineage, to_json({"name": run.name, "starts": [*starts, entry]}))
    write_file(run.config, to_yaml(loaded.raw).encode("utf-8"))
