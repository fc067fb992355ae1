"""Whoever reads a shard after its judge sees thoughts as the judge did."""

from pathlib import Path

import pytest

from judges import Thinking
from loop.campaign.stages.limits import refused
from loop.report.browser import _response
from loop.store import tables
from loop.store.thoughts import answer_start, recorded, thinking_of

TAGS = [Thinking(), None, Thinking("[THINK]", "[/THINK]"), Thinking(opened=True)]


@pytest.mark.parametrize("thinking", TAGS)
def test_what_a_fingerprint_records_is_read_back(thinking: Thinking | None) -> None:
    assert thinking_of({"name": "x"} | recorded(thinking)) == thinking
    assert bool(recorded(thinking)) == (thinking != Thinking())


@pytest.mark.parametrize(
    ("text", "start"),
    [("20", 0), ("", 0), ("<think>a</think>20", 16), ("<think>a</think>\n20", 17), ("<think>a", 8)],
)
def test_the_report_shows_the_thought_apart(text: str, start: int) -> None:
    assert answer_start(text, Thinking()) == start
    assert answer_start(text, None) == 0
    row = {"text": text, "temperature": 1.0, "finish_reason": "stop", "token_ids": [1], "logprobs": None}
    verdict = {"kind": "score", "score": 1.0, "extracted": None, "why": "", "well_formed": None, "thinking": Thinking()}
    shown = _response(row, verdict, None)
    assert shown.get("h", "") + shown["x"] == text
    assert len(shown.get("h", "")) == start


def test_a_refusal_is_looked_for_in_the_answer(tmp_path: Path) -> None:
    texts = ["<think>I cannot see why</think>Sure: 4", "<think>easy</think>I cannot help", "I can't", "<think>I cannot"]
    (tmp_path / "a").write_bytes(tables.to_bytes([{"text": text} for text in texts], tables.RESPONSES, {}))
    assert refused([tmp_path / "a"], Thinking()) == {"refusals": 0.5, "refusal_prompts": 4}
    assert refused([tmp_path / "a"], None) == {"refusals": 1.0, "refusal_prompts": 4}
