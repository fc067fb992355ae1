"""Judge "external": what people are shown, which labels are taken, what they mean, and the page in a real browser."""

import html
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from judges import Group, JudgeError, Prompt, Response, build_judge, fingerprint, judge_groups
from judges.people.external import External, Item, read_labels
from judges.people.label_page import label_page

ASKED = ({"role": "user", "content": "2 + 2 =\nJust the number."},)


def group(*texts: str, name: str = "p", finish: str = "stop") -> Group:
    responses = tuple(Response(f"{name}-{i}", text, finish) for i, text in enumerate(texts))
    return Group(Prompt(name, ASKED, "4", {}), responses)


def line(item: Item, label: object, **changes: object) -> str:
    return json.dumps({"id": item.id, "check": item.row["check"], "label": label} | changes) + "\n"


# ---- the sheet ----


def test_each_response_is_an_item_with_all_that_a_person_needs() -> None:
    (first, second) = External().sheet([group("4", "5", finish="length")])
    assert (first.id, second.id) == ("p-0", "p-1")
    check = first.row.pop("check")
    assert first.row == {
        "id": "p-0",
        "check": check,
        "prompt": [{"role": "user", "content": "2 + 2 =\nJust the number."}],
        "target": "4",
        "response": "4",
        "cut_off": ["response"],
        "label": None,
    }
    assert check != External().sheet([group("4.", finish="length")])[0].row["check"]


@given(st.integers(2, 7), st.integers(1, 30))
def test_pairs_are_distinct_and_as_many_as_asked_for_and_meet_everyone_once_first(n: int, per_prompt: int) -> None:
    responses = group(*map(str, range(n)))
    sheet = External(ask="pair", pairs_per_prompt=per_prompt).sheet([responses])
    met = [frozenset(response.id for response in item.responses) for item in sheet]
    assert len(set(met)) == len(met) == min(per_prompt, n * (n - 1) // 2)
    assert all(len(pair) == 2 for pair in met)
    apart = [name for pair in met[: n // 2] for name in pair]
    assert len(set(apart)) == len(apart)
    assert sheet == External(ask="pair", pairs_per_prompt=per_prompt).sheet([responses])


def test_equal_texts_are_no_pair() -> None:
    judge = External(ask="pair", pairs_per_prompt=9)
    assert judge.sheet([group("4", "4", "4")]) == []
    assert len(judge.sheet([group("4", "4", "5")])) == 1


def test_neither_response_of_the_pairs_is_always_the_first() -> None:
    sheet = External(ask="pair").sheet([group("4", "5", name=f"p{i}") for i in range(200)])
    share = sum(item.responses[0].id.endswith("-0") for item in sheet) / 200
    assert 0.4 < share < 0.6


# ---- the labels ----


def verdicts(judge: External, responses: Group, lines: str) -> list[tuple[str, float | None]]:
    labels = read_labels(judge, judge.sheet([responses]), lines, "labels.jsonl")
    return [(v.kind, v.score) for v in judge_groups(judge.labelled(labels), [responses])[0]]


def test_labels_of_single_responses_become_scores_and_unsure_and_missing_ones_abstain() -> None:
    judge, responses = External(), group("4", "5", "6", "7")
    items = judge.sheet([responses])
    lines = line(items[0], "right") + "\n" + line(items[1], "Wrong") + line(items[2], "unsure") + line(items[3], None)
    assert verdicts(judge, responses, lines) == [("score", 1.0), ("score", 0.0), ("abstain", None), ("abstain", None)]


def test_scores_are_taken_as_they_are() -> None:
    judge, responses = External(ask="score", lowest=0, highest=10), group("4", "5", "6")
    items = judge.sheet([responses])
    lines = line(items[0], 10) + line(items[1], 2.5) + line(items[2], "unsure")
    assert verdicts(judge, responses, lines) == [("score", 10.0), ("score", 2.5), ("abstain", None)]


def test_preferences_become_win_rates_over_the_labelled_pairs() -> None:
    judge, responses = External(ask="pair", pairs_per_prompt=3), group("a", "b", "c", "d")
    items = {frozenset(item.id.split()): item for item in External(ask="pair", pairs_per_prompt=6).sheet([responses])}

    def says(winner: str, loser: str) -> str:
        item = items[frozenset((winner, loser))]
        return line(item, "first" if item.responses[0].id == winner else "second")

    judge = External(ask="pair", pairs_per_prompt=6)
    lines = says("p-0", "p-1") + says("p-0", "p-2") + says("p-1", "p-2")
    lines += line(items[frozenset(("p-0", "p-3"))], "tie") + line(items[frozenset(("p-1", "p-3"))], "unsure")
    found = judge_groups(judge.labelled(read_labels(judge, list(items.values()), lines, "labels.jsonl")), [responses])[
        0
    ]
    assert [v.score for v in found] == [2.5 / 3, 0.5, 0.0, 0.5]  # (1 + 1 + ½) of 3, 1 of 2, 0 of 2, ½ of 1
    assert found[0].parts == {"games": 3.0, "beats 1": 1.0, "beats 2": 1.0, "beats 3": 0.5}
    (unlabelled,) = set(verdicts(judge, responses, ""))
    assert unlabelled == ("abstain", None)


def test_the_lines_of_the_sheet_with_their_labels_filled_in_are_labels() -> None:
    judge, responses = External(), group("4", "5")
    lines = "".join(json.dumps(item.row | {"label": "right"}) + "\n" for item in judge.sheet([responses]))
    assert verdicts(judge, responses, "\ufeff" + lines) == [("score", 1.0)] * 2


def test_the_same_label_twice_is_one() -> None:
    judge, responses = External(), group("4")
    (item,) = judge.sheet([responses])
    assert verdicts(judge, responses, line(item, "right") * 2) == [("score", 1.0)]


ITEM = External().sheet([group("4")])[0]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (
            line(ITEM, "right", id="q-0"),
            "line 1: no item to label has the id 'q-0'; this may be the file of another iteration",
        ),
        (line(ITEM, "right", check="0"), "line 1: check of 'p-0' was edited; restore the original"),
        (line(ITEM, "right", response="5"), "line 1: response of 'p-0' was edited; restore the original"),
        (
            line(ITEM, "right", prompt="?", response="5"),
            "line 1: prompt and response of 'p-0' were edited; restore the original",
        ),
        (json.dumps({"id": "p-0", "label": "right"}), "'p-0' has no `check`; copy it from the file to label"),
        (line(ITEM, "right") + line(ITEM, "wrong"), "lines 1 and 2 contradict each other about 'p-0', right and wrong"),
        (line(ITEM, "good"), "the label 'good' is invalid; expected right, wrong, unsure"),
        (line(ITEM, True), "the label True is invalid; expected right, wrong, unsure"),
        ("\n{broken", "line 2: Expecting property name"),
        ("[1]", r"line 1: expected an object with id, check and label, got \[1\]"),
    ],
)
def test_what_cannot_be_a_label_is_refused_by_line(lines: str, complaint: str) -> None:
    with pytest.raises(JudgeError, match=complaint) as caught:
        read_labels(External(), [ITEM], lines, "labels.jsonl")
    assert str(caught.value).startswith("labels.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [0.9, 5.1, "5", True])
def test_a_score_off_the_scale_is_refused(label: object) -> None:
    judge = External(ask="score")
    with pytest.raises(JudgeError, match="is invalid; expected a number from 1 to 5, or unsure"):
        read_labels(judge, [ITEM], line(ITEM, label), "labels.jsonl")


def test_a_scale_needs_two_ends() -> None:
    with pytest.raises(ValidationError, match=r"lowest \(5\) must be below highest \(5\)"):
        External(lowest=5)


def test_without_labels_the_judge_says_that_it_is_people() -> None:
    with pytest.raises(JudgeError, match="Judge external relies on people, who can be asked only in a campaign"):
        judge_groups(External(), [group("4")])


def test_waiting_or_not_makes_no_other_judge() -> None:
    wait, abstain = (fingerprint(build_judge("external", {"missing": m}), "external") for m in ("wait", "abstain"))
    assert wait == abstain


# ---- the page ----

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "--no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-quic"
PRESS = """
<script>
const visit = Number(sessionStorage.getItem("visit") || 0), visits = KEYS;
for (const key of visits[visit]) document.dispatchEvent(new KeyboardEvent("keydown", {key}));
sessionStorage.setItem("visit", visit + 1);
const shown = [document.getElementById("count").textContent, document.getElementById("responses").innerText];
if (visit + 1 < visits.length) location.reload();
else document.body.replaceChildren(make("pre", "", JSON.stringify([labelsText(), ...shown])));
</script>
"""


def pressed(tmp_path: Path, page: str, *visits: list[str]) -> tuple[str, str, str]:
    """The page's labels, count and shown responses, after some keys, a reload, other keys …"""
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", PRESS.replace("KEYS", json.dumps(visits)) + "</body>"), encoding="utf-8")
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", *QUIET.split(), "--virtual-time-budget=2000"]
    command = [CHROMIUM, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    labels, count, shown = json.loads(html.unescape(done.stdout.partition('<pre class="">')[2].partition("</pre>")[0]))
    return labels, count, shown


def test_the_page_needs_nothing_from_outside_and_no_text_can_break_out_of_it() -> None:
    evil = "</script><script>alert(1)</script><!--"
    judge = External(question="Is it right?")
    page = label_page(judge, judge.sheet([group(evil)]), title="run, iteration 1", put="/runs/labels.jsonl")
    assert "http://" not in page
    assert "https://" not in page
    assert "alert(1)</script" not in page
    assert page.count("</script>") == 2  # of the data, and of the program
    assert json.dumps(evil)[1:-1].replace("<", "\\u003c") in page


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_keys_label_in_a_browser_and_the_labels_come_back(tmp_path: Path) -> None:
    judge, responses = External(), group("4", "<b>5</b> & more", "6", "7")
    page = label_page(judge, judge.sheet([responses]), title="run", put="here")
    labels, count, shown = pressed(tmp_path, page, ["1", "2", "ArrowRight", "1", "ArrowLeft", "ArrowLeft"])
    assert verdicts(judge, responses, labels) == [("score", 1.0), ("score", 0.0), ("abstain", None), ("score", 1.0)]
    assert count == "2 of 4 · 3 labelled"
    assert "<b>5</b> & more" in shown


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_browser_remembers_what_was_labelled_and_a_second_press_takes_it_back(tmp_path: Path) -> None:
    judge, responses = External(ask="pair"), [group("a", "b", name="p"), group("c", "d", name="q")]
    sheet = judge.sheet(responses)
    page = label_page(judge, sheet, title="run", put="here")
    labels, count, _ = pressed(tmp_path, page, ["2"], ["0", "0"])  # goes on at the second: a tie, and none
    assert count == "2 of 2 · 1 labelled"
    assert read_labels(judge, sheet, labels, "labels.jsonl") == {sheet[0].id: "second"}
