"""`prefloop judge …`: the catalog, files to start from, the report on labelled examples, in 80 columns and as JSON."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from judges.registry import BUILT_IN
from loop.cli.main import main
from loop.config.load import load_config
from tests.helpers.llm_server import KEY, LLMServer

Prefloop = Callable[..., tuple[int, str, str]]

ROWS = [
    {"prompt": "2 + 2", "target": "4", "response": "4", "label": "right"},
    {"prompt": "2 + 3", "target": "5", "response": "six", "label": "wrong"},
    {"prompt": "2 + 4", "target": "6", "response": "It is 6", "label": "right"},
    {"prompt": "2 + 5", "target": "7", "response": "7.0", "label": "right"},
]


@pytest.fixture
def prefloop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prefloop:
    """The command in a folder of its own, 80 columns wide: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prefloop", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def labelled(rows: list[dict[str, Any]], name: str = "labelled.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def ok(ended: tuple[int, str, str]) -> str:
    code, out, err = ended
    assert code == 0, err
    assert max((len(line) for line in out.splitlines()), default=0) <= 80
    return out


def told(ended: tuple[int, str, str]) -> Any:
    """What a command prints as JSON."""
    code, out, err = ended
    assert code == 0, err
    return json.loads(out)


def refused(ended: tuple[int, str, str]) -> str:
    code, _, err = ended
    assert code == 2
    assert err.strip().startswith("prefloop: ")
    assert "\n" not in err.strip()
    return err


# ---- list ----


def test_the_list_has_every_built_in_with_its_line_and_its_arguments(prefloop: Prefloop) -> None:
    out = ok(prefloop("judge", "list"))
    for name in BUILT_IN:
        assert f"\n{name}  " in f"\n{out}"
    assert "ignore_case (bool, default false)" in out
    assert "task (str, required)" in out
    found = {entry["name"]: entry for entry in told(prefloop("judge", "list", "--json"))}
    assert set(BUILT_IN) <= set(found)
    assert all(entry["summary"] and not entry["problem"] for name, entry in found.items() if name in BUILT_IN)


def test_one_judge_is_shown_in_full_whether_built_in_or_ones_own(prefloop: Prefloop) -> None:
    out = ok(prefloop("judge", "list", "number"))
    assert "tolerance  float, default 0.0\n    Largest difference that still counts as right." in out
    ok(prefloop("judge", "new", "mine"))
    assert "words  int, default 50" in ok(prefloop("judge", "list", "mine.py:Mine"))
    assert "Did you mean 'number'?" in refused(prefloop("judge", "list", "numbr"))


# ---- new ----


@pytest.mark.parametrize("kind", ["pointwise", "pairwise", "group"])
def test_a_new_judge_passes_its_test_at_once_and_is_short(prefloop: Prefloop, kind: str) -> None:
    out = ok(prefloop("judge", "new", "my-judge", "--kind", kind, "--dir", "sub"))
    written = Path("sub", "my_judge.py").read_text(encoding="utf-8")
    assert len([line for line in written.splitlines() if line.strip()]) <= 20
    root = str(Path(__file__).resolve().parents[3])
    test = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider", "sub/test_my_judge.py"]
    done = subprocess.run(test, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": root}, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    section = yaml.safe_load(out.partition("YAML file:\n")[2])
    Path("my.yaml").write_text(yaml.safe_dump({"prompts": {"source": "gsm8k"}} | section), encoding="utf-8")
    assert load_config("my.yaml").base.judge.name.endswith("sub/my_judge.py:MyJudge")
    rows = [{"prompt": "?", "target": "Paris", "chosen": "Paris", "rejected": "I would say that it is Rome"}]
    if kind != "group":
        assert told(prefloop("judge", "test", "my.yaml", "--data", labelled(rows), "--json"))["agreed"] == 1


def test_nothing_is_overwritten_and_a_name_must_be_one(prefloop: Prefloop) -> None:
    ok(prefloop("judge", "new", "mine"))
    Path("mine.py").write_text("# changed\n", encoding="utf-8")
    assert "mine.py and test_mine.py exist already" in refused(prefloop("judge", "new", "mine"))
    Path("test_mine.py").unlink()
    assert "mine.py exists already" in refused(prefloop("judge", "new", "mine"))
    assert Path("mine.py").read_text(encoding="utf-8") == "# changed\n"
    assert not Path("test_mine.py").exists()
    for name in ("2nd", "a b", "class", "../mine", "json", "exact"):
        assert re.search(r"take |Choose another one", refused(prefloop("judge", "new", name)))


# ---- test ----


def test_the_report_says_how_well_a_judge_agrees_and_where_it_does_not(prefloop: Prefloop) -> None:
    out = ok(prefloop("judge", "test", "exact", "--data", labelled(ROWS), "--show", "1"))
    for words in (
        "examples           4 labelled responses",
        "agreement          50.0 % [15.0, 85.0], 2 of 4",  # Wilson's interval of 2 in 4
        "line 3: labelled right, judged wrong (0): expected '6'",
        "response  It is 6",
        "1 more disagreements; --show 2 shows all.",
    ):
        assert words in out
    assert "line 4" not in out


def test_the_report_as_json_is_only_json_even_if_the_judge_prints(prefloop: Prefloop) -> None:
    source = "from judges import PointwiseJudge\nclass Mine(PointwiseJudge):\n    def one(self, prompt, response):\n"
    Path("mine.py").write_text(
        source + "        print('hello')\n        return response.text == '4'\n", encoding="utf-8"
    )
    code, out, err = prefloop("judge", "test", "mine.py:Mine", "--data", labelled(ROWS), "--json", "--show", "9")
    assert (code, err.count("hello")) == (0, 4)
    found = json.loads(out)
    assert (found["agreement"], found["agreed"], found["examples"]) == (0.5, 2, {"label": 4})
    assert [d["where"] for d in found["disagreements"]] == ["line 3", "line 4"]
    assert found["judge"]["name"] == "mine.py:Mine"
    assert found["speed"]["responses"] == 4
    assert found["used"] is None
    assert found["hint"] is None


def test_arguments_are_read_as_yaml_and_limit_takes_the_first(prefloop: Prefloop) -> None:
    arguments = ["--data", labelled(ROWS), "--arg", "tolerance=0.5", "--arg", "unparsable=abstain", "--json"]
    found = told(prefloop("judge", "test", "number", *arguments))
    assert found["judge"]["args"] == {"tolerance": 0.5, "relative": 0.0, "unparsable": "abstain"}
    assert (found["agreement"], found["abstain_rate"]) == (0.75, 0.25)
    assert told(prefloop("judge", "test", "number", "--limit", "1", *arguments))["examples"] == {"label": 1}


def test_a_campaigns_judge_is_tested_with_its_arguments_and_threshold(prefloop: Prefloop) -> None:
    config = {"prompts": {"source": "gsm8k"}, "judge": {"name": "number", "args": {"tolerance": 1.0}}}
    Path("my.yaml").write_text(yaml.safe_dump(config | {"pairs": {"correct_at": 0.5}}), encoding="utf-8")
    found = told(prefloop("judge", "test", "my.yaml", "--data", labelled(ROWS), "--json"))
    assert (found["judge"]["name"], found["judge"]["args"]["tolerance"], found["correct_at"]) == ("number", 1.0, 0.5)
    arguments = ["--arg", "tolerance=0.0", "--correct-at", "2", "--json"]
    found = told(prefloop("judge", "test", "my.yaml", "--data", labelled(ROWS), *arguments))
    assert (found["judge"]["args"]["tolerance"], found["confusion"]["right"]) == (0.0, {"wrong": 3})
    assert "between 0 and 1, and a score counts as right from 2 on, so none of them counts" in found["hint"]
    below = told(prefloop("judge", "test", "number", "--data", labelled(ROWS), "--correct-at", "0", "--json"))
    assert "so all of them count as right: choose another threshold with --correct-at" in below["hint"]


def test_pairs_show_ties_and_both_orders(prefloop: Prefloop) -> None:
    ok(prefloop("judge", "new", "mine", "--kind", "pairwise"))
    rows = [{"prompt": "?", "target": "4", "chosen": "4", "rejected": text} for text in ("5", "44", "6")]
    out = ok(prefloop("judge", "test", "mine.py:Mine", "--data", labelled(rows)))
    assert "order consistency     100.0 % of 3 pairs judged in both orders" in out
    assert "first one preferred   50.0 %" in out
    assert "agreement             100.0 %" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["exakt", "--data", "labelled.jsonl"], "Did you mean 'exact'?"),
        (["exact", "--data", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["exact", "--data", "labelled.jsonl", "--arg", "strip"], "--arg 'strip' is not of the form key=value"),
        (["exact", "--data", "labelled.jsonl", "--arg", "strp=true"], "no argument 'strp' (did you mean 'strip'?)"),
        (["external", "--data", "labelled.jsonl"], "Judge external relies on people"),
        (["my.yaml", "--data", "labelled.jsonl"], "There is no file my.yaml"),
    ],
)
def test_a_mistake_is_one_paragraph(prefloop: Prefloop, arguments: list[str], complaint: str) -> None:
    labelled(ROWS)
    assert complaint in refused(prefloop("judge", "test", *arguments))


# ---- judges that ask a model ----


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLMServer]:
    """An endpoint on this machine that likes exclamation marks."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with LLMServer().running() as running:
        yield running


def test_what_a_model_was_paid_is_reported_and_both_orders_are_asked_once(
    prefloop: Prefloop, server: LLMServer
) -> None:
    rows = [{"prompt": "Hi", "chosen": "Hi!!", "rejected": "Hi"}, {"prompt": "Yo", "chosen": "Yo", "rejected": "Yo!"}]
    arguments = ["--data", labelled(rows), "--arg", f"base_url={server.base_url}", "--arg", "model=m"]
    prices = ["--arg", "budget={prompt_price: 10, completion_price: 20}"]
    found = told(prefloop("judge", "test", "llm-compare", *arguments, *prices, "--json"))
    assert (found["agreement"], found["orders"]["consistent"]) == (0.5, 1.0)
    assert found["used"] == {"calls": 4, "prompt_tokens": 400, "completion_tokens": 40, "cost": pytest.approx(0.0048)}
    assert set(server.answered.values()) == {1}
    assert "4 calls, 400 + 40 tokens, 0.0048 in money" in ok(
        prefloop("judge", "test", "llm-compare", *arguments, *prices)
    )


def test_a_judge_that_asks_the_policy_cannot_be_tested_without_one(prefloop: Prefloop) -> None:
    arguments = ["--data", labelled(ROWS), "--arg", "engine=policy"]
    assert "asks the policy" in refused(prefloop("judge", "test", "llm-grade", *arguments))
