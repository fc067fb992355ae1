"""What docs/judges.md shows is true: its own judges work as printed, and it names every argument there is."""

from pathlib import Path

from judges import Group, Prompt, Response, build_judge, judge_groups, self_test
from judges.llm.judges import LLMCompare, LLMGrade
from judges.llm.settings import Budget
from judges.llm.template import ALWAYS, OPTIONAL
from judges.registry import BUILT_IN
from judges.resolve import judge_class

FOLDER = Path(__file__).resolve().parents[2] / "docs"
DOCS = (FOLDER / "judges.md").read_text(encoding="utf-8")
LLM_DOCS = (FOLDER / "llm-judges.md").read_text(encoding="utf-8")
MODEL_DOCS = (FOLDER / "model-judges.md").read_text(encoding="utf-8")
CUSTOM, COMPARING = (part.partition("```")[0] for part in DOCS.split("```python\n")[1:3])
ISOLATED = DOCS.partition("## Foreign code")[2].partition("```python\n")[2].partition("```")[0]


def test_the_custom_judge_of_the_guide_works_and_is_short(tmp_path: Path) -> None:
    assert len([line for line in CUSTOM.splitlines() if line.strip()]) <= 20
    (tmp_path / "brief.py").write_text(CUSTOM, encoding="utf-8")
    judge = build_judge("brief.py:Brief", {"words": 4}, base_dir=tmp_path)
    assert self_test(judge) == 2
    texts = [("Paris", "stop"), ("It is, I would say, Paris.", "stop"), ("Paris", "length")]
    responses = tuple(Response(str(index), *text) for index, text in enumerate(texts))
    group, unknown = Group(Prompt("p", (), "Paris", {}), responses), Group(Prompt("q", (), None, {}), responses[:1])
    verdicts = judge_groups(judge, [group, unknown])
    assert [v.score for v in verdicts[0]] == [1.0, 0.0, 0.0]
    assert verdicts[1][0].kind == "abstain"


def test_the_isolated_judge_of_the_guide_works(tmp_path: Path) -> None:
    (tmp_path / "runs.py").write_text("from judges import *\n" + ISOLATED, encoding="utf-8")
    judge = build_judge("runs.py:Runs", {}, base_dir=tmp_path)
    texts = ["answer = 9 * 2", "answer = 9", "answer =", "import os; os._exit(1)"]
    responses = tuple(Response(str(index), text, "stop") for index, text in enumerate(texts))
    verdicts = judge_groups(judge, [Group(Prompt("p", (), "18", {}), responses)])[0]
    assert [v.score for v in verdicts] == [1.0, 0.0, None, None]


def test_the_guide_names_every_built_in_and_every_argument() -> None:
    for name in BUILT_IN:
        assert f"`{name}`" in DOCS
        more = LLM_DOCS if name.startswith("llm-") else MODEL_DOCS if f"`{name}`" in MODEL_DOCS else ""
        for argument in judge_class(name).model_fields:
            assert f"`{argument}`" in DOCS + more, f"{name}: {argument}"


def test_the_guide_to_llm_judges_names_every_limit_of_a_budget_and_every_slot() -> None:
    for name in (*Budget.model_fields, *LLMCompare.slots, *LLMGrade.slots, *ALWAYS, *OPTIONAL):
        assert f"`{name}`" in LLM_DOCS or f"`{{{name}}}`" in LLM_DOCS, name


def test_the_comparing_judge_of_the_guide_works(tmp_path: Path) -> None:
    (tmp_path / "shorter.py").write_text(COMPARING, encoding="utf-8")
    judge = build_judge("shorter.py:Shorter", {}, base_dir=tmp_path)
    responses = tuple(Response(text, text, "stop") for text in ("a", "bb", "cc"))
    verdicts = judge_groups(judge, [Group(Prompt("p", (), None, {}), responses)])[0]
    assert [v.score for v in verdicts] == [1.0, 0.25, 0.25]
