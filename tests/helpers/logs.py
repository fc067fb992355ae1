"""The step log of a round without what the machine decides, for tests that compare rounds."""

import json
from pathlib import Path
from typing import Any

OF_THE_MACHINE = {"seconds", "tokens_per_second", "peak_memory_gb"}


def log_of(work: Path) -> list[dict[str, Any]]:
    """Every line of `steps.jsonl`."""
    lines = (work / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in OF_THE_MACHINE} for line in lines]
