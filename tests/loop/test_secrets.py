"""What is shown of a campaign, or leaves its run folder, holds none of its secrets and no path of this machine."""

import json
from pathlib import Path

import pytest
import yaml

from loop.redact import publishable, redacted
from loop.report.model_card import model_card
from loop.report.page import write_report
from loop.store.run_folder import RunFolder
from loop.view.describe import describe_judge
from loop.view.status_tables import print_json
from tests.helpers.campaigns import Cli, copy_run

SECRETS = {
    "api_key": "plain-words-as-a-key",
    "headers": {"Authorization": "Bearer abcdef0123456789"},
    "hf_token": "tok-of-someone",
    "note": "uses sk-abcdefghijklmnop1234 here",
    "base_url": "https://user:pass99@host/v1?token=tok99&model=m",
    "callback": "https://host/hook?api_key=key99",
    "from_environment": "prefix value-of-a-variable suffix",
    "curl": "-H 'Authorization: Bearer zyxwv98765'",
}
VALUES = (
    *("plain-words-as-a-key", "abcdef0123456789", "tok-of-someone", "abcdefghijklmnop1234", "pass99", "tok99", "key99"),
    *("value-of-a-variable", "zyxwv98765"),
)


@pytest.fixture(autouse=True)
def _a_secret_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_KEY", "value-of-a-variable")


def leaks(text: str) -> list[str]:
    return [value for value in VALUES if value in text]


@pytest.fixture
def run(reference: Path, tmp_path: Path) -> RunFolder:
    """A finished campaign whose judge was given one secret of each kind, and a copy of it to write into."""
    run = RunFolder(copy_run(reference, Cli(tmp_path)))
    raw = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    raw["judge"]["args"] = SECRETS
    run.config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert leaks(run.config.read_text(encoding="utf-8")) == list(VALUES)
    return run


def test_every_kind_of_secret_is_hidden() -> None:
    assert leaks(json.dumps(SECRETS)) == list(VALUES)
    assert leaks(json.dumps(redacted(SECRETS))) == []
    assert redacted("https://host/v1?model=m&token=abc#x") == "https://host/v1?model=m&token=(hidden)"


@pytest.mark.parametrize(
    "text", ["max_tokens is 40", "https://host/v1?tokens=3", "a key: value", "api_key_env", "x@y.z", "monkey=banana"]
)
def test_ordinary_texts_stay(text: str) -> None:
    assert redacted(text) == text


def test_a_shared_text_names_no_folder_of_this_machine() -> None:
    assert publishable({"path": "/home/me/data/train.jsonl"}) == {"path": "train.jsonl"}
    assert publishable("file (/home/me/x y/train.jsonl): 3") == "file (x y/train.jsonl): 3"
    assert publishable(["~/judges/mine.py:Mine", "https://host/a/b", "org/model", "1/2"]) == [
        *("mine.py:Mine", "https://host/a/b", "org/model", "1/2")
    ]


def test_card_report_and_json_hold_no_secret(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    card = model_card(run, 1)
    assert "(hidden)" in card
    assert leaks(card) == []
    assert str(run.root.parent) not in card
    assert leaks(write_report(run).read_text(encoding="utf-8")) == []
    assert leaks(describe_judge({"name": "gsm8k", "args": SECRETS})) == []
    print_json({"judge": SECRETS})
    assert leaks(capsys.readouterr().out) == []
