"""Trackers in accelerate's way that write what they are told to a file, or fail."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker


class Lines(GeneralTracker):
    """Appends each call as a JSON line to `lines.jsonl`."""

    name = "lines"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: str) -> None:
        super().__init__()
        self.project, self.path = run_name, Path(logging_dir) / "lines.jsonl"

    @property
    def tracker(self) -> Path:
        return self.path

    def start(self) -> None:
        self.write(call="start", project=self.project)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.write(call="settings", values=values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.write(call="log", values=values, step=step)

    def log_table(self, table_name: str, columns: list[str], data: list[list[str]], step: int | None = None) -> None:
        self.write(call="table", name=table_name, columns=columns, data=data, step=step)

    def finish(self) -> None:
        self.write(call="finish")

    def write(self, **what: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")


class NotInstalled(Lines):
    """Its package is missing."""

    def start(self) -> None:
        raise ModuleNotFoundError("No module named 'shiny_tracker'")


class LosesItsTongue(Lines):
    """Fails at the third thing it is told, with words that hold a secret."""

    logged = 0

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logged += 1
        if self.logged == 3:
            raise ConnectionError(f"refused: {os.environ['SHINY_API_KEY']} is no key\nmore words")
        super().log(values, step)


class Hangs(Lines):
    """Never comes back from its start."""

    def start(self) -> None:
        import time

        time.sleep(3600)


def lines(run: Path, call: str) -> Iterator[dict[str, Any]]:
    """What the tracker `Lines` was told in a run."""
    for line in (run / "trackers" / "lines.jsonl").read_text(encoding="utf-8").splitlines():
        if (row := json.loads(line))["call"] == call:
            yield row
