"""Combinations: sums by hand, no number out of a failure, and a shadow that changes nothing whatever it does."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges import Group, JudgeError, Prompt, Response, Verdict, build_judge, fingerprint, judge_groups, self_test
from judges.combine.scales import between_0_and_1, ranked, rescaled, standardised

SAYS = '''
import os
from judges import *


class Says(PointwiseJudge):
    """Says what the response's line for it says: a number, "abstain" or "error"."""

    line: int = 0

    def one(self, prompt, response):
        word = response.text.split("|")[self.line]
        if word == "abstain":
            return Verdict.abstain("cannot tell")
        if word == "error":
            raise RuntimeError("broken")
        return Verdict.of(float(word), extracted=f"line {self.line}", why="read", parts={"raw": 2.0})


class Breaks(Judge):
    """Breaks in the way it is told."""

    how: str

    def __call__(self, groups):
        if self.how == "raise":
            raise RuntimeError("broken")
        if self.how == "refuse":
            raise JudgeError("no key")
        if self.how == "exit":
            raise SystemExit(3)
        return {"short": [], "type": 5, "number": [[1.0] for _ in groups]}[self.how]


class Counts(PointwiseJudge):
    """Writes down what it is asked."""

    path: str

    def one(self, prompt, response):
        with open(self.path, "a") as file:
            file.write(response.id + " ")
        return 1.0
'''


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "says.py").write_text(SAYS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def says(line: int, **settings: Any) -> dict[str, Any]:
    return {"judge": "says.py:Says", "args": {"line": line}, "name": "abc"[line], **settings}


def verdicts(texts: Sequence[str], parts: Sequence[dict[str, Any]], **args: Any) -> list[Verdict]:
    responses = tuple(Response(f"r{number}", text, "stop") for number, text in enumerate(texts))
    judge = build_judge("combine", {"parts": parts, **args})
    return judge_groups(judge, [Group(Prompt("p", (), None, {}), responses)])[0]


def scores(texts: Sequence[str], parts: Sequence[dict[str, Any]], **args: Any) -> list[float | None]:
    return [verdict.score for verdict in verdicts(texts, parts, **args)]


# ---- sum ----


def test_a_sum_is_the_weighted_scores() -> None:
    assert scores(["1|4", "0|2"], [says(0), says(1, weight=0.25)]) == [2.0, 0.5]
    assert scores(["1|4"], [says(0), says(1, weight=-0.25)]) == [0.0]


def test_scores_are_put_on_a_scale_within_the_group() -> None:
    texts = ["0|1", "0|3", "1|5"]
    assert scores(texts, [says(0), says(1, normalise="min-max", weight=2)]) == [0.0, 1.0, 3.0]
    assert scores(texts, [says(0), says(1, normalise="rank", weight=2)]) == [0.0, 1.0, 3.0]
    third = math.sqrt(8 / 3)  # 1, 3, 5: mean 3, variance (4 + 0 + 4) / 3
    expected = [-2 / third, 0.0, 1 + 2 / third]
    assert scores(texts, [says(0), says(1, normalise="standardise")]) == pytest.approx(expected)


def test_another_group_does_not_change_the_scale() -> None:
    judge = build_judge("combine", {"parts": [says(0, normalise="min-max")]})
    groups = [
        Group(Prompt(name, (), None, {}), tuple(Response(f"{name}{i}", text, "stop") for i, text in enumerate(texts)))
        for name, texts in (("p", ["1", "2"]), ("q", ["100", "300", "200"]), ("empty", []))
    ]
    assert [[v.score for v in row] for row in judge_groups(judge, groups)] == [[0.0, 1.0], [0.0, 1.0, 0.5], []]


def test_every_part_is_kept_by_its_name() -> None:
    verdict = verdicts(["1|4", "0|8"], [says(0), says(1, weight=0.25, normalise="min-max")], length_penalty=PENALTY)[0]
    assert verdict.parts == {
        **{"a": 1.0, "a.raw": 2.0, "b": 4.0, "b.raw": 2.0, "b.normalised": 0.0},
        "length_penalty": 0.0,
    }
    assert (verdict.extracted, verdict.why) == ("line 0", "a: read; b: read")


PENALTY = {"per_unit": 0.5, "free": 3, "unit": "characters"}


def test_a_long_response_loses_for_each_unit_over_what_is_free() -> None:
    assert scores(["1|1", "1|1000"], [says(0)], length_penalty=PENALTY) == [1.0, -0.5]
    assert verdicts(["1|1000"], [says(0)], length_penalty=PENALTY)[0].parts["length_penalty"] == -1.5


@pytest.mark.parametrize(
    ("text", "kind", "why"),
    [
        ("1|abstain", "abstain", "b: cannot tell"),
        ("1|error", "error", "b: RuntimeError: broken at says.py"),
        ("abstain|error", "error", "b: RuntimeError"),
        ("error|abstain", "error", "a: RuntimeError"),
    ],
)
@pytest.mark.parametrize("how", ["sum", "gates", "majority"])
def test_no_number_is_made_out_of_a_failure(how: str, text: str, kind: str, why: str) -> None:
    parts = [says(0), says(1, **({"threshold": 2.0} if how == "gates" else {}))]
    failed, fine = verdicts([text, "1|1" if how == "majority" else "1|4"], parts, how=how)
    assert (failed.kind, failed.score) == (kind, None)
    assert failed.why.startswith(why)
    assert fine.kind == "score"
    assert failed.parts.get("a") == (1.0 if text.startswith("1") else None)


def test_a_sum_that_is_no_number_is_an_error() -> None:
    verdict = verdicts(["1e308|1e308"], [says(0, weight=10), says(1)])[0]
    assert (verdict.kind, verdict.score) == ("error", None)
    assert verdict.why.startswith("the combined score is not finite")


# ---- gates, majority, fallback ----


def test_all_gates_must_open_before_the_sum_counts() -> None:
    parts = [says(0, threshold=1), says(1, threshold=0.5, weight=0), says(2, weight=2)]
    texts = ["1|0.5|3", "0.9|1|3", "1|0.4|3"]
    assert scores(texts, parts, how="gates", failed=-1) == [7.0, -1.0, -1.0]
    assert verdicts(texts, parts, how="gates")[2].why.startswith("stopped at b: 0.4 < 0.5")


def test_a_gate_reads_the_score_before_it_is_put_on_a_scale() -> None:
    assert scores(["5", "9"], [says(0, threshold=5, normalise="min-max")], how="gates", failed=-1) == [0.0, 1.0]


def test_a_majority_counts_votes_and_a_tie_abstains() -> None:
    three = [says(0), says(1), says(2)]
    assert scores(["1|1|0", "0|1|0", "1|1|1"], three, how="majority") == [1.0, 0.0, 1.0]
    tie = verdicts(["1|0"], three[:2], how="majority")[0]
    assert (tie.kind, tie.why, tie.parts["a"], tie.parts["b"]) == ("abstain", "a tie of 1 to 1", 1.0, 0.0)
    assert scores(["1|0|0"], [says(0, weight=3), says(1), says(2)], how="majority") == [1.0]
    odd = verdicts(["1|0.5|1"], three, how="majority")[0]
    assert (odd.kind, odd.why) == ("error", "b gave 0.5, but a majority counts only 0 and 1")


def test_a_fallback_takes_the_first_that_can_tell() -> None:
    texts = ["1|7", "abstain|7", "error|7", "abstain|abstain", "error|abstain"]
    found = verdicts(texts, [says(0), says(1)], how="fallback")
    assert [v.score for v in found] == [1.0, 7.0, 7.0, None, None]
    assert [v.kind for v in found[3:]] == ["abstain", "error"]
    assert [v.extracted for v in found[:2]] == ["line 0", "line 1"]


def test_a_fallback_asks_the_next_judge_only_what_is_left(tmp_path: Path) -> None:
    counts = {"judge": "says.py:Counts", "args": {"path": str(tmp_path / "asked")}}
    assert scores(["1", "abstain", "2", "error"], [says(0), counts], how="fallback") == [1.0, 1.0, 2.0, 1.0]
    assert (tmp_path / "asked").read_text(encoding="utf-8") == "r1 r3 "


def test_a_combination_may_be_a_part() -> None:
    inner = {"judge": "combine", "args": {"how": "fallback", "parts": [says(0), says(1)]}}
    assert scores(["abstain|3|4"], [inner, says(2)]) == [7.0]


# ---- shadows ----


@pytest.mark.parametrize("how", ["sum", "gates", "majority", "fallback"])
@pytest.mark.parametrize("word", ["1", "-5", "abstain", "error"])
def test_a_shadow_never_changes_the_verdict(how: str, word: str) -> None:
    part = says(0, **({"threshold": 0.5} if how == "gates" else {}))
    alone = verdicts(["1", "0", "abstain", "error"], [part], how=how)
    texts = [f"{text}|{word}" for text in ("1", "0", "abstain", "error")]
    for shadow_first in (True, False):
        parts = [says(1, shadow=True), part] if shadow_first else [part, says(1, shadow=True)]
        watched = verdicts(texts, parts, how=how)
        assert [(v.kind, v.score, v.why, v.extracted) for v in watched] == [
            (v.kind, v.score, v.why, v.extracted) for v in alone
        ]
        assert all(v.parts.get("b") == (None if word in ("abstain", "error") else float(word)) for v in watched)


@pytest.mark.parametrize("how", ["raise", "refuse", "exit", "short", "type", "number"])
def test_a_shadow_that_breaks_altogether_does_no_harm_and_another_part_stops_the_stage(how: str) -> None:
    broken = {"judge": "says.py:Breaks", "args": {"how": how}}
    assert scores(["1", "2"], [says(0), {**broken, "shadow": True}]) == [1.0, 2.0]
    with pytest.raises(JudgeError, match=r"Judge Breaks|no key"):
        scores(["1", "2"], [says(0), broken])


# ---- config and identity ----


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ({"parts": []}, "give at least one that is not a shadow"),
        ({"parts": [says(0, shadow=True)]}, "give at least one that is not a shadow"),
        ({"parts": [says(0), says(0)]}, "two parts are named 'a': give each its own name"),
        ({"parts": [says(0, weight=0)]}, "weight 0: to only record its score, set shadow: true"),
        (
            {"parts": [says(0), says(1, shadow=True, weight=1)]},
            "'b' is a shadow, which has neither weight nor threshold",
        ),
        ({"parts": [says(0, threshold=1)]}, "'a' has a threshold, which only how: gates uses"),
        ({"parts": [says(0)], "how": "gates"}, "how: gates needs a part with a threshold"),
        ({"parts": [says(0, weight=2)], "how": "fallback"}, "uses a score as it is"),
        ({"parts": [says(0, normalise="rank")], "how": "majority"}, "counts votes"),
        ({"parts": [says(0)], "how": "majority", "length_penalty": PENALTY}, "a majority is 0 or 1"),
        ({"parts": [says(0)], "how": "product"}, "how: input should be 'sum', 'gates', 'majority' or 'fallback'"),
        ({"parts": [says(0, wieght=1)]}, "there is no argument 'parts.0.wieght'"),
        ({"parts": [says(0, weight=math.nan)]}, "parts.0.weight: input should be a finite number"),
        ({"parts": [{"judge": "gsm8"}]}, "made of others: There is no judge 'gsm8'. Did you mean 'gsm8k'"),
        ({"parts": [{"judge": "length"}]}, "made of others: Judge 'length' cannot be built: set least, most or both"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_paragraph(args: dict[str, Any], complaint: str) -> None:
    with pytest.raises(JudgeError, match=complaint) as caught:
        build_judge("combine", args)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_changes_with_every_part(tmp_path: Path) -> None:
    def version() -> str:
        return str(fingerprint(build_judge("combine", {"parts": [says(0)]}), "combine")["version"])

    first = version()
    assert version() == first
    (tmp_path / "says.py").write_text(SAYS + "\n# another rule\n", encoding="utf-8")
    assert version() != first
    lengths = [{"judge": "length", "args": {"most": 3}}, {"judge": "length", "args": {"most": 3, "unit": "words"}}]
    prints = [fingerprint(build_judge("combine", {"parts": [part]}), "combine")["version"] for part in lengths]
    assert prints[0] == prints[1]  # the default, spelled out
    assert prints[0].startswith("1+")


def test_the_parts_are_tested_before_a_campaign() -> None:
    assert self_test(build_judge("combine", {"parts": [{"judge": "gsm8k"}]})) > self_test(build_judge("gsm8k", {}))
    (Path("wrong.py")).write_text(
        "from judges import *\n\n\nclass Wrong(PointwiseJudge):\n    examples = (Example.on('18', '18', 1.0),)\n"
        "    def one(self, prompt, response): return 0.0\n",
        encoding="utf-8",
    )
    with pytest.raises(JudgeError, match="Judge Wrong fails its own self-test"):
        self_test(build_judge("combine", {"parts": [{"judge": "wrong.py:Wrong"}]}))


# ---- scales ----

numbers = st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=12)


def test_scales_by_hand() -> None:
    assert between_0_and_1([2.0, 4.0, 3.0]) == [0.0, 1.0, 0.5]
    assert ranked([2.0, 9.0, 2.0, 5.0]) == [1 / 6, 1.0, 1 / 6, 2 / 3]
    assert standardised([1.0, 3.0]) == [-1.0, 1.0]
    assert rescaled([None, 1.0, None, 2.0], "min-max") == [None, 0.0, None, 1.0]
    assert rescaled([None], "rank") == [None]
    for scale, middle in (("standardise", 0.0), ("min-max", 0.5), ("rank", 0.5)):
        assert rescaled([7.0, 7.0], scale) == [middle, middle]  # type: ignore[arg-type]
        assert rescaled([7.0], scale) == [middle]  # type: ignore[arg-type]


@given(numbers, st.sampled_from(["standardise", "min-max", "rank"]))
def test_a_scale_is_finite_and_keeps_the_order(values: list[float], scale: Any) -> None:
    new = rescaled(values, scale)
    assert all(value is not None and math.isfinite(value) for value in new)
    for (old, scaled), (other_old, other_scaled) in zip(zip(values, new), zip(values[1:], new[1:])):  # noqa: B905
        assert scaled is not None
        assert other_scaled is not None
        assert scaled <= other_scaled if old <= other_old else scaled >= other_scaled


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=12), st.integers(1, 9), st.integers(-99, 99))
def test_scales_do_not_depend_on_the_unit_or_the_zero(values: list[int], factor: int, shift: int) -> None:
    moved = [float(value * factor + shift) for value in values]
    for scale in ("standardise", "min-max", "rank"):
        plain = rescaled([float(value) for value in values], scale)  # type: ignore[arg-type]
        assert rescaled(moved, scale) == pytest.approx(plain, abs=1e-9)  # type: ignore[arg-type]
