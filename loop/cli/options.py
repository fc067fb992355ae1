"""Options that several commands share, and their JSON output."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from loop.redact import redacted

Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.", envvar="PREFLOOP_RUNS")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, e.g. `train.beta=0.2`.")
]


def print_json(value: Any) -> None:
    """Print as JSON, without secrets."""
    print(json.dumps(redacted(json.loads(json.dumps(value, default=str))), indent=1))
