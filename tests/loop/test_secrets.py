"""What is shown of a campaign, leaves its run folder, or lies in it outside campaign.yaml holds none of its secrets;
what is shared names no path of this machine."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from loop.cli.options import print_json
from loop.redact import publishable, redacted, unchanged
from loop.report.model_card import model_card
from loop.report.page import write_report
from loop.store.run_folder import RunFolder
from loop.view.describe import NamedJudge, describe_judge
from tests.helpers.campaigns import Cli, copy_run, refusal

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
    assert leaks(describe_judge(NamedJudge("gsm8k", SECRETS))) == []
    print_json({"judge": SECRETS})
    assert leaks(capsys.readouterr().out) == []


JUDGE = """
from typing import Any

from judges.contract import PointwiseJudge, Prompt, Response, Verdict


class Leaky(PointwiseJudge):
    api_key: str
    headers: dict[str, str]
    hf_token: str
    note: str
    base_url: str
    callback: str
    from_environment: str
    curl: str
    right: int = 0

    def model_post_init(self, context: Any) -> None:
        print(repr(self), flush=True)

    def one(self, prompt: Prompt, response: Response) -> Verdict:
        if response.text[:1] < "5":
            raise ValueError(f"{self.base_url} refused {self.api_key}")
        return Verdict.of(len(response.text) % 2 == self.right, "", "parity")
"""


@pytest.fixture
def leaky(cli: Cli, settings: dict[str, Any]) -> dict[str, Any]:
    """A campaign whose judge prints its secrets and names them in its errors."""
    (cli.folder / "leaky.py").write_text(JUDGE, encoding="utf-8")
    judge = {"name": f"{cli.folder / 'leaky.py'}:Leaky", "args": dict(SECRETS), "max_error_share": 1.0}
    return settings | {"judge": judge, "iterations": 1}


def leaking_files(folder: Path) -> dict[str, list[str]]:
    """Files other than campaign.yaml that hold a secret; of tables every cell and note."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "campaign.yaml"):
        text = path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            text += str(table.schema.metadata) + json.dumps(table.to_pylist(), default=str)
        if values := leaks(text):
            found[str(path.relative_to(folder))] = values
    return found


def test_a_campaigns_secrets_lie_in_campaign_yaml_alone(cli: Cli, leaky: dict[str, Any]) -> None:
    run = cli.run(cli.write(leaky))
    assert leaks((run / "campaign.yaml").read_text(encoding="utf-8")) == list(VALUES)
    assert "api_key='(hidden)'" in (run / "logs" / "judge.log").read_text(encoding="utf-8")
    assert "error" in {row["kind"] for path in run.rglob("judge/*.parquet") for row in pq.read_table(path).to_pylist()}
    forked = cli("fork", "campaign@0", "forked", "judge.args.hf_token=tok-of-someone-else")
    assert forked.code == 0, forked.err
    exported = cli("export", "campaign@1", "--model", cli.runs / "out")
    assert exported.code == 0, exported.err
    assert cli("prune", "campaign", "--yes").code == 0
    assert leaking_files(cli.runs) == {}


def test_another_key_leaves_finished_work_valid_and_another_argument_does_not(cli: Cli, leaky: dict[str, Any]) -> None:
    run = cli.run(cli.write(leaky))
    leaky["judge"]["args"]["api_key"] = "another-key-in-plain-words"
    ended = cli("run", cli.write(leaky))
    assert (ended.code, ended.err) == (0, "")
    assert "nothing left to do" in ended.out
    leaky["judge"]["args"]["right"] = 1
    text = refusal(cli("run", cli.write(leaky)))
    assert "these settings would invalidate it: judge" in text
    assert leaks(text) == []
    assert "another-key" not in text
    assert leaking_files(run) == {}


def test_what_is_stored_matches_any_secret_and_nothing_else() -> None:
    stored = json.loads(json.dumps(redacted(SECRETS | {"n": (1, 2)})))
    assert unchanged(stored, SECRETS | {"n": (1, 2)})
    assert unchanged(stored, SECRETS | {"n": (1, 2), "api_key": "another"})
    assert unchanged(stored, SECRETS | {"n": (1, 2), "base_url": "https://me:word@host/v1?token=t&model=m"})
    for change in ({"n": (1, 3)}, {"n": (1,)}, {"more": 1}, {"base_url": "https://a:b@other/v1?token=t&model=m"}):
        assert not unchanged(stored, SECRETS | {"n": (1, 2)} | change)
    assert not unchanged({"api_key": "(hidden)"}, {})
