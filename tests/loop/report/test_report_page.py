"""The report of a run against the run: its numbers, campaigns at any point, what must never be in it."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loop.campaign import run as walk
from loop.cli.main import app
from loop.errors import UserError
from loop.format import visible
from loop.report import browser, page
from loop.report.browser import to_script_json
from loop.report.compare import write_comparison
from loop.report.data import read_run
from loop.report.figures_data import parts
from loop.report.page import environment, write_report
from loop.report.warnings import alarms
from loop.store.run_folder import RunFolder
from tests.helpers.campaigns import rows
from tests.helpers.made_runs import Made, make_run, repeat, rows_of

HOSTILE = (
    "</script><script>alert(1)</script>",
    '<img src=x onerror="alert(2)">',
    "javascript:alert(3)",
    "<svg onload=alert(4)>&lt;b&gt;",
    "line\u2028separator\u2029end <!-- ]]> {{ 7 * 7 }} ${1}",
)


class Read(HTMLParser):
    """What a browser would make of a page: its elements, attributes, data and tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.blocks: dict[str, str] = {}
        self._cell = self._block = ""
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._in_cell, self._cell = True, ""
        elif tag == "script":
            self._block = found.get("id") or "code"
            self.blocks[self._block] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._cell)
            self._in_cell = False
        elif tag == "script":
            self._block = ""

    def handle_data(self, data: str) -> None:
        if self._block:
            self.blocks[self._block] += data
        elif self._in_cell:
            self._cell += data

    def table(self, *heads: str) -> list[list[str]]:
        """The rows of the first table with these first heads."""
        return next(table[1:] for table in self.tables if table[0][: len(heads)] == list(heads))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A campaign of three iterations, the last one rejected, with KL."""
    return make_run(tmp_path_factory.mktemp("made") / "made", Made(iterations=3, kl=True, reject=(3,)))


@pytest.fixture(scope="module")
def text(made: RunFolder) -> str:
    """Its report."""
    return write_report(made).read_text(encoding="utf-8")


def policy_of(read: Read) -> str:
    return next(attrs["content"] or "" for _, attrs in read.tags if attrs.get("http-equiv"))


def number(cell: str) -> float:
    return float(cell.replace("−", "-").replace("\u202f", ""))


def test_accuracies_are_those_of_the_metrics_file(made: RunFolder, text: str) -> None:
    metrics = rows_of(made.metrics)
    table = Read(text).table("iteration", "test, sampled", "from", "to", "test, greedy", "gate, sampled")
    assert [row[0] for row in table] == [str(row["iteration"]) for row in metrics]
    for cells, row in zip(table, metrics, strict=True):
        sampled, greedy, gate = row["test"]["sampled_accuracy"], row["test"]["greedy_accuracy"], row["gate"]
        expected = [
            sampled["value"],
            sampled["low"],
            sampled["high"],
            greedy["value"],
            gate["sampled_accuracy"]["value"],
        ]
        assert [number(cell) for cell in cells[1:]] == pytest.approx([100 * v for v in expected], rel=1e-3, abs=1e-9)


def test_gate_pass_lengths_counts_and_times_are_those_of_the_metrics_file(made: RunFolder, text: str) -> None:
    metrics, read = rows_of(made.metrics), Read(text)
    for cells, row in zip(read.table("iteration", "points", "from", "to", "decision"), metrics[1:], strict=True):
        gain = [100 * row["gain"][name] for name in ("value", "low", "high")]
        assert [number(cell) for cell in cells[1:4]] == pytest.approx(gain, rel=5e-3, abs=1e-9)
        assert cells[4] == row["reason"]
    for cells, row in zip(read.table("iteration", "pass@2", "pass@1", "maj@2"), metrics, strict=True):
        expected = [row["test"]["pass_at_k"], row["test"]["sampled_accuracy"]["value"], row["test"]["maj_at_k"]]
        assert [number(cell) for cell in cells[1:4]] == pytest.approx([100 * v for v in expected], rel=1e-3, abs=1e-9)
    for cells, row in zip(read.table("iteration", "5 %"), metrics, strict=True):
        assert number(cells[-1]) == pytest.approx(row["test"]["mean_length"], rel=1e-3)
    for cells, row in zip(read.table("iteration", "prompts", "responses"), metrics[1:], strict=True):
        counts = row["counts"]
        expected = [counts["sample"]["prompts"], counts["sample"]["responses"], counts["judge"]["score"]]
        expected += [counts["pair"]["responses"]["used"], counts["pair"]["pairs"]]
        assert [number(cell) for cell in cells[1:]] == expected
    for cells, row in zip(read.table("iteration", "sample, s"), metrics, strict=True):
        assert number(cells[-1]) == pytest.approx(100 * row["time"]["overhead_share"], abs=0.05)


def test_training_curves_are_those_of_the_step_logs(made: RunFolder, text: str) -> None:
    table = Read(text).table("step", "chosen", "from", "to", "rejected")
    steps = [row for k in (1, 2, 3) for row in rows_of(made.stage(k, "train").steps)]
    assert [number(cells[0]) for cells in table] == list(range(len(steps)))
    assert [number(cells[1]) for cells in table] == pytest.approx([row["chosen_logp"] for row in steps], rel=1e-3)
    assert [number(cells[4]) for cells in table] == pytest.approx([row["rejected_logp"] for row in steps], rel=1e-3)


def test_the_browser_holds_every_response_with_its_verdict_and_tokens(made: RunFolder, text: str) -> None:
    read = Read(text)
    index = json.loads(read.blocks["index"])
    assert {(book["set"], book["iteration"]) for book in index["books"]} == {
        *((which, k) for which in ("gate", "test") for k in range(4)),
        *(("train", k) for k in (1, 2, 3)),
    }
    found = [
        prompt
        for book in index["books"]
        if (book["set"], book["iteration"]) == ("train", 2)
        for name in book["pages"]
        for prompt in json.loads(read.blocks[f"page-{name}"])["prompts"]
    ]
    sampled = rows(*sorted(made.stage(2, "sample").path.glob("*.parquet")))
    verdicts = {row["response_id"]: row for row in rows(*sorted(made.stage(2, "judge").path.glob("*.parquet")))}
    shown = [(one["x"], one["s"], one["p"], one["l"]) for prompt in found for one in prompt["r"]]
    assert shown == [
        (r["text"], verdicts[r["response_id"]]["score"], r["token_ids"], [round(-100 * lp) for lp in r["logprobs"]])
        for r in sampled
    ]
    pairs = rows(made.stage(2, "pair").pairs)
    assert sum(len(prompt["pairs"]) for prompt in found) == len(pairs)
    assert sum(one["u"] == "used" for prompt in found for one in prompt["r"]) == 2 * len(pairs)


def test_reasons_in_the_browser_add_up_to_those_of_the_pair_stage(reference: Path, tmp_path: Path) -> None:
    """On a real campaign, whose pair stage has counted them."""
    data = read_run(RunFolder(reference))
    for book in browser.books(data):
        if book.which == "train":
            pages = [json.loads(one.text) for one in book.pages()]
            reasons = [response["u"] for one in pages for prompt in one["prompts"] for response in prompt["r"]]
            counted = data.run.stage(book.iteration, "pair").manifest()
            assert counted is not None
            assert {name: reasons.count(name) for name in set(reasons)} == counted.counts["responses"]
            assert any("eos" in token for one in pages for token in one["tokens"].values())
    assert "Data" in write_report(data.run, tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_real_campaign_writes_its_report_after_each_iteration(reference: Path) -> None:
    text = (reference / "report.html").read_text(encoding="utf-8")
    assert "2 of 2" in text
    assert len(Read(text).table("iteration", "test, sampled")) == 3


def test_a_failing_report_warns_and_stops_nothing(made: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Display:
        def warn(self, line: str) -> None:
            said.append(line)

    class Campaign:
        run, display = made, Display()

    def fail(run: RunFolder) -> None:
        raise ZeroDivisionError("a figure of nothing")

    monkeypatch.setattr(page, "write_report", fail)
    walk.refresh_report(Campaign())  # type: ignore[arg-type]
    assert "the report could not be written (ZeroDivisionError: a figure of nothing)" in said[0]


# ---- campaigns at any point ----


@pytest.mark.parametrize(
    ("finished", "told"), [(-1, "Nothing has been evaluated yet"), (0, "no iteration has finished")]
)
def test_a_campaign_without_a_finished_iteration_has_a_report(tmp_path: Path, finished: int, told: str) -> None:
    run = make_run(tmp_path / "early", Made(finished=finished))
    text = write_report(run).read_text(encoding="utf-8")
    assert told in text
    assert "Left out: " in text
    assert "nan" not in text.lower().split("<script")[0].replace("dominant", "")


def test_a_half_way_iteration_shows_what_it_has(tmp_path: Path) -> None:
    run = make_run(tmp_path / "half", Made(iterations=2, finished=1, steps=6))
    text = write_report(run).read_text(encoding="utf-8")
    assert "in progress: train" in text
    assert len(Read(text).table("step", "chosen")) == 6 + 3
    assert len(Read(text).table("iteration", "test, sampled")) == 2


def test_a_damaged_file_is_named_and_a_missing_run_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bad", Made(iterations=1))
    run.stage(1, "judge").shard(0).write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"judge/shard-000\.parquet is damaged"):
        write_report(run)
    ended = CliRunner().invoke(app, ["report", "absent", "--runs", str(tmp_path)])
    assert isinstance(ended.exception, UserError)
    assert "There is no run 'absent'" in str(ended.exception)


def test_a_hundred_iterations_fit_on_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", Made(iterations=2, train=3, gate=2, test=2, n=2, steps=40))
    raw = run.config.read_text(encoding="utf-8").replace("iterations: 2", "iterations: 100")
    run.config.write_text(raw, encoding="utf-8")
    repeat(run, 100)
    path = write_report(run)
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 2_000_000
    assert "100 of 100" in text
    assert len(Read(text).table("iteration", "test, sampled")) == 101
    assert len(Read(text).table("step", "chosen")) <= 200
    assert max(len(line) for line in re.findall(r'points="[^"]*"', text)) < 20_000


# ---- what must never be in it ----


def refuse_markup(read: Read) -> None:
    """Nothing but our own script may run, and nothing may lead out of the page."""
    assert not [name for _, attrs in read.tags for name in attrs if name.startswith("on")]
    assert {tag for tag, _ in read.tags}.isdisjoint({"img", "iframe", "object", "embed", "base", "link"})
    assert not [attrs for _, attrs in read.tags if (attrs.get("href") or "#")[0] != "#" or "src" in attrs]
    scripts = [attrs for tag, attrs in read.tags if tag == "script"]
    assert [attrs for attrs in scripts if attrs.get("type") != "application/json"] == [{}]


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    def say(prompt: str, iteration: int, index: int) -> str:
        return HOSTILE[(iteration + index) % len(HOSTILE)]

    made = Made(say=say, ask=lambda which, n: f"{which} {n} {HOSTILE[n % 5]}", why=HOSTILE[0], train=5, gate=5, test=5)
    run = make_run(tmp_path / "x" / "run", made)
    text = write_report(run).read_text(encoding="utf-8")
    read = Read(text)
    refuse_markup(read)
    for name, block in read.blocks.items():
        if name != "code":
            assert not set(block) & set("<>&\u2028\u2029")
            json.loads(block)
    texts = {
        one["x"]
        for name, b in read.blocks.items()
        if name.startswith("page")
        for p in json.loads(b)["prompts"]
        for one in p["r"]
    }
    assert texts == set(map(visible, HOSTILE))
    assert html.escape(HOSTILE[0]) in text
    compared = write_comparison([f"{run}@0", f"{run}@2"], tmp_path, tmp_path / "c.html", 9).read_text(encoding="utf-8")
    refuse_markup(Read(compared))
    assert "49" not in re.findall(r"\{\{ (\d+)", text)


def test_script_json_is_the_same_value_without_markup() -> None:
    value = {"<&>": [*HOSTILE, 1.5, None]}
    assert json.loads(to_script_json(value)) == {"<&>": [*map(visible, HOSTILE), 1.5, None]}
    assert not set(to_script_json(value)) & set("<>&\u2028\u2029\u202e")
    assert environment().from_string("{{ x }}").render(x="a\u202e<b") == "a&lt;U+202E&gt;&lt;b"


def test_the_policy_allows_this_script_and_style_alone(text: str) -> None:
    read = Read(text)
    policy = policy_of(read)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert page._sha(read.blocks["code"]) in policy
    assert "file:" not in policy
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text)


def test_no_secret_and_no_environment_variable_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "value-of-a-variable-4711")
    judge = {"name": "exact", "args": {}}
    made = Made(iterations=1, extra={"judge": judge, "per_iteration": {}})
    run = make_run(tmp_path / "run", made)
    lineage: dict[str, Any] = json.loads(run.lineage.read_text(encoding="utf-8"))
    secret = {"key": "judge.args.api_key", "from": "key-from-before", "to": "sk-abcdefghijklmnopqrstuv"}
    lineage["starts"][0]["changes"] = [secret]
    run.lineage.write_text(json.dumps(lineage), encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8")
    assert "judge.args.api_key: (hidden) → (hidden)" in text
    assert not [word for word in ("4711", "key-from-before", "sk-abcdef") if word in text]


# ---- large runs, warnings, comparisons, the command ----


def test_large_samples_lie_beside_the_page_and_finished_ones_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "INLINE_BYTES", 10)
    monkeypatch.setattr(browser, "PER_PAGE", 3)
    run = make_run(tmp_path / "run", Made(iterations=2, finished=1))
    text = write_report(run).read_text(encoding="utf-8")
    assert "page-001-train-000" not in Read(text).blocks
    assert "'self' file:" in policy_of(Read(text))
    index = json.loads(Read(text).blocks["index"])
    pages = {name for book in index["books"] for name in book["pages"]}
    folder = run.root / index["folder"]
    assert {path.name for path in folder.glob("data-*.js")} == {f"data-{name}.js" for name in pages}
    content = (folder / "data-001-train-000.js").read_text(encoding="utf-8")
    assert content.startswith('prefloopPage("001-train-000",{"prompts":[')
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("data-*.js")}
    run.stage(2, "pair").manifest_path.unlink()
    write_report(run)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("data-*.js")}
    again = {name for name in before if before[name] != after[name]}
    assert again == {name for name in before if name.startswith("data-002-train")}


def test_warnings_name_the_iterations_that_they_are_true_of(tmp_path: Path) -> None:
    made = Made(iterations=3, train=20, test=30, shard=30, skill=lambda k: (0.9, 0.5, 0.5, 0.0)[k])
    data = read_run(make_run(tmp_path / "run", made))
    found = {alarm.what: alarm for alarm in alarms(data)}
    assert "iteration 3" in found["accuracy collapsed"].text
    assert found["the signal dries up"].text.startswith("iteration 3: 0.0 % of the prompts give a pair")
    assert "responses grow longer" not in found
    assert "⚠" in write_report(data.run).read_text(encoding="utf-8")


def test_a_healthy_campaign_has_no_warning(made: RunFolder) -> None:
    assert [alarm.what for alarm in alarms(read_run(made)) if alarm.what != "responses grow longer"] == []


def test_more_reasons_than_tones_are_drawn_as_one_and_listed_in_full() -> None:
    words = {f"reason {i}": f"words {i}" for i in range(12)}
    figure = parts("x", "X", "read", {1: {f"reason {i}": i + 1 for i in range(12)}}, words, "things", "none")
    assert figure.table is not None  # type: ignore[union-attr]
    assert len(figure.table.heads) == 13  # type: ignore[union-attr]
    assert figure.keys[-1].name == "other reasons"  # type: ignore[union-attr]
    assert f"other reasons: {1 + 2 + 3 + 4 + 5 + 6}" in figure.drawing  # type: ignore[union-attr]


def test_a_comparison_has_the_paired_tests_and_every_run(made: RunFolder, tmp_path: Path) -> None:
    names = [f"{made.root}@0", f"{made.root}@2"]
    text = write_comparison(names, tmp_path, tmp_path / "c.html", 3).read_text(encoding="utf-8")
    metrics = rows_of(made.metrics)
    change = metrics[2]["test"]["sampled_accuracy"]["value"] - metrics[0]["test"]["sampled_accuracy"]["value"]
    row = next(row for row in Read(text).table("metric", "points") if row[0] == "sampled accuracy")
    assert number(row[1]) == pytest.approx(100 * change, rel=1e-3)
    assert "made@2 against made@0: paired on the same 5 test prompts" in text
    assert "All settings are equal." in text


def test_the_command_writes_where_it_is_told(made: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "there" / "mine.html"
    ended = CliRunner().invoke(app, ["report", str(made.root), "--out", str(out)])
    assert (ended.exit_code, ended.output.strip()) == (0, str(out))
    both = CliRunner().invoke(app, ["report", str(made.root), f"{made.root}@1", "--runs", str(tmp_path)])
    assert both.output.strip() == str(tmp_path / "comparison.html")
    assert (tmp_path / "comparison.html").exists()
