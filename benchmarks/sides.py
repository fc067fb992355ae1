"""One side of a comparison in a process of its own: `measure` starts the script that calls it once more, with
`--job FILE`, and that process writes `result.json` beside the file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def measure(job: Job, folder: Path) -> Job:
    """Run one side and read what it found. Ends the program with the side's last words if it fails."""
    folder.mkdir(parents=True)
    told, result, log = folder / "job.json", folder / "result.json", folder / "log.txt"
    told.write_text(json.dumps(job), encoding="utf-8")
    environment = {"OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1", **os.environ}
    with log.open("wb") as file:
        command = [sys.executable, sys.argv[0], "--job", str(told)]
        done = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False)
    if done.returncode or not result.exists():
        words = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"{job['side']} ended with code {done.returncode}. Its last words:\n{words}")
    return dict(json.loads(result.read_text(encoding="utf-8")))
