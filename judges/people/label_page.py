"""Makes the page on which people label a sheet: one HTML file that needs no network."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from judges.people.external import External, Item

TEMPLATE = Path(__file__).with_name("label_page.html")


def label_page(judge: External, sheet: Sequence[Item], *, title: str, put: str) -> str:
    """The page as HTML; `put` says where the labels file goes. The browser keeps progress under a hash of the sheet."""
    rows = [item.row for item in sheet]
    data: dict[str, Any] = {
        "title": title,
        "question": judge.question,
        "ask": judge.ask,
        "lowest": _whole(judge.lowest),
        "highest": _whole(judge.highest),
        "put": put,
        "key": "prefloop " + hashlib.sha256("".join(row["check"] for row in rows).encode()).hexdigest()[:16],
        "items": [{name: value for name, value in row.items() if name != "label"} for row in rows],
    }
    # "<" is escaped so that no text can close the script element that holds the data
    script = json.dumps(data).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace("DATA</script>", script + "</script>")


def _whole(number: float) -> float:
    return int(number) if number.is_integer() else number
