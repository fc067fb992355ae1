"""Runs one side of a comparison in its own process: `measure` starts a script with `--job FILE`, which writes
`result.json` next to the file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def measure(job: Job, folder: Path, script: str = sys.argv[0]) -> Job:
    """Run one side by `script` and read its result. Exit with the end of the side's log if it fails."""
    folder.mkdir(parents=True)
    spec, result, log = folder / "job.json", folder / "result.json", folder / "log.txt"
    spec.write_text(json.dumps(job), encoding="utf-8")
    environment = {"OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1", **os.environ}
    with log.open("wb") as file:
        command = [sys.executable, script, "--job", str(spec)]
        done = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False)
    if done.returncode or not result.exists():
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"{job['side']} ended with code {done.returncode}. The end of its log:\n{tail}")
    return dict(json.loads(result.read_text(encoding="utf-8")))
