"""Naming a judge: built-in, entry point, module or file; each mistake is one paragraph; versions follow the source."""

import hashlib
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from judges import Group, JudgeError, Prompt, Response, build_judge, fingerprint, judge_groups
from judges.registry import BUILT_IN
from judges.resolve import describe_arguments, judge_class

LENGTH = '''
from judges import PointwiseJudge, Prompt, Response


class Length(PointwiseJudge):
    """Longer is better, up to a limit."""

    limit: int = 100
    """Characters that earn the full score."""

    def one(self, prompt: Prompt, response: Response) -> float:
        return min(len(response.text), self.limit) / self.limit
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the module path; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def written(path: Path, source: str = LENGTH) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return path


def score(name: str, folder: Path, **args: object) -> float | None:
    group = Group(Prompt("p", (), None, {}), (Response("r", "12345", "stop"),))
    return judge_groups(build_judge(name, args, base_dir=folder), [group])[0][0].score


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_can_be_named_and_documents_its_arguments(name: str) -> None:
    kind = judge_class(name)
    assert kind.__doc__
    for field, info in kind.model_fields.items():
        assert info.description, f"{name}.{field}"
        assert field in describe_arguments(kind)


def test_a_judge_from_a_file_a_module_and_an_entry_point_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(folder / "mine" / "length.py")
    point = metadata.EntryPoint("brevity", "mine.length:Length", "prefloop.judges")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == "prefloop.judges" else [])
    names = ["mine/length.py:Length", str(folder / "mine" / "length.py:Length"), "mine.length:Length", "brevity"]
    assert [score(name, folder, limit=10) for name in names] == [0.5] * 4
    prints = [fingerprint(build_judge(name, {}, base_dir=folder), name) for name in names]
    digest = hashlib.sha256(LENGTH.encode()).hexdigest()
    assert prints == [{"name": name, "version": digest, "args": {"limit": 100}} for name in names]


def test_the_fingerprint_changes_with_the_source_and_with_the_arguments(folder: Path) -> None:
    name = "length.py:Length"
    written(folder / "length.py")
    first = build_judge(name, {}, base_dir=folder)
    before = fingerprint(first, name)
    written(folder / "length.py", LENGTH + "\n# another rule\n")
    assert fingerprint(first, name) == before  # what was loaded, not what lies there now
    after = fingerprint(build_judge(name, {}, base_dir=folder), name)
    assert after["version"] != before["version"]
    assert fingerprint(build_judge(name, {"limit": 5}, base_dir=folder), name)["args"] == {"limit": 5}


def test_an_edited_file_is_another_judge_and_the_old_one_stays_as_it_was(folder: Path) -> None:
    written(folder / "length.py")
    old = build_judge("length.py:Length", {"limit": 10}, base_dir=folder)
    written(folder / "length.py", LENGTH.replace("/ self.limit", "/ self.limit / 2"))
    group = Group(Prompt("p", (), None, {}), (Response("r", "12345", "stop"),))
    assert judge_groups(old, [group])[0][0].score == 0.5
    assert score("length.py:Length", folder, limit=10) == 0.25
    assert build_judge("length.py:Length", {}, base_dir=folder).__class__ is judge_class(
        "length.py:Length", base_dir=folder
    )


def test_two_files_of_one_name_are_two_modules(folder: Path) -> None:
    written(folder / "a" / "length.py")
    written(folder / "b" / "length.py", LENGTH.replace("/ self.limit", "/ self.limit / 2"))
    assert score("a/length.py:Length", folder, limit=10) == 0.5
    assert score("b/length.py:Length", folder, limit=10) == 0.25


def test_a_judge_made_from_a_built_in_is_versioned_by_both(folder: Path) -> None:
    source = "from judges.rules.gsm8k import GSM8K\n\n\nclass Mine(GSM8K):\n    pass\n"
    written(folder / "mine.py", source)
    judge = build_judge("mine.py:Mine", {}, base_dir=folder)
    digest = hashlib.sha256(source.encode()).hexdigest()
    assert fingerprint(judge, "mine.py:Mine")["version"] == f"{digest}+{type(judge).__mro__[1].version}"  # type: ignore[attr-defined]


def test_a_built_in_has_the_version_of_its_class() -> None:
    judge = build_judge("gsm8k", {})
    assert fingerprint(judge, "gsm8k") == {
        "name": "gsm8k",
        "version": type(judge).version,
        "args": {"answer": "marker-or-last", "markers": ["####", "boxed", "phrase"], "unparsable": "wrong"},
    }


@pytest.mark.parametrize(
    ("name", "args", "complaint"),
    [
        ("gsm9k", {}, "There is no judge 'gsm9k'. Did you mean 'gsm8k'. Available: .*contains, .*gsm8k, .*number"),
        ("", {}, "There is no judge ''. Available: .*contains"),
        (
            "gsm8k",
            {"unparseable": "abstain"},
            r"no argument 'unparseable' \(did you mean 'unparsable'\?\). Its arguments",
        ),
        ("gsm8k", {"answer": "first"}, "answer: input should be 'marker-or-last', 'marker' or 'last', got 'first'"),
        ("gsm8k", {"answer": "x", "zz": 1}, "answer: .*; there is no argument 'zz'. Its arguments: answer .marker-or"),
        ("regex", {}, r"the argument 'pattern' is required. Its arguments: pattern \(str, required\)"),
        ("regex", {"pattern": "("}, r"not a valid regular expression: missing \)"),
        ("regex", {"pattern": "a"}, "the pattern needs a group named answer"),
        ("number", {"tolerance": -1}, "tolerance: input should be greater than or equal to 0, got -1"),
        ("number", {"tolerance": float("nan")}, "tolerance: "),
        ("reasoning-gym", {}, "the argument 'task' is required"),
        ("reasoning-gym", {"task": "x", "pattern": "a"}, "pattern: the pattern needs a group named answer"),
        ("nowhere.at_all:X", {}, "importing the module 'nowhere.at_all' failed: ModuleNotFoundError: No module named"),
        ("length:Length", {}, r"No module named 'length'. To use the file .*length.py, write 'length.py:…' instead"),
        ("nothing.py:X", {}, r"the file .*nothing.py cannot be read \(No such file or directory\)"),
        ("here.py:X", {}, r"the file .*here.py cannot be read \(Is a directory\)"),
        ("broken.py:X", {}, r"running the file .*broken.py failed: SyntaxError: .*broken.py, line 1"),
        ("raises.py:X", {}, "failed: ZeroDivisionError: division by zero at raises.py:2"),
        ("exits.py:X", {}, "failed: SystemExit: 3 at exits.py:2"),
        ("neighbour.py:X", {}, "No module named 'raises'.* A judge file is self-contained"),
        ("length.py:Lenght", {}, r"length.py has no 'Lenght'. Did you mean 'Length'\? Judges in it: Length"),
        ("length.py:", {}, "length.py has no ''"),
        ("other.py:X", {}, r"is <class '.*X'>, not a judge: it must be a class derived from judges.PointwiseJudge"),
        ("other.py:Y", {}, "Judge 'other.py:Y' is 5, not a judge"),
        ("other.py:Half", {}, "the class Half does not define one"),
        ("other.py:Whole", {}, "the class Whole does not define __call__"),
        ("json:dumps", {}, "not a judge"),
    ],
)
def test_a_mistake_is_one_paragraph_that_says_what_to_do(
    name: str, args: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    written(tmp_path / "length.py")
    written(tmp_path / "broken.py", "def (:\n")
    written(tmp_path / "raises.py", "x = 0\n1 / x\n")
    written(tmp_path / "exits.py", "import sys\nsys.exit(3)\n")
    written(tmp_path / "neighbour.py", "import raises\n")
    written(
        tmp_path / "other.py",
        "from judges import *\nclass X: pass\nY = 5\nclass Half(PointwiseJudge): pass\nclass Whole(Judge): pass\n",
    )
    (tmp_path / "here.py").mkdir()
    with pytest.raises(JudgeError, match=complaint) as caught:
        build_judge(name, args, base_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert not [
        module for module in sys.modules if module.startswith(("prefloop_judge_raises", "prefloop_judge_exits"))
    ]


def test_an_entry_point_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("gone", "nowhere.at_all:X", "prefloop.judges")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    with pytest.raises(JudgeError, match=r"loading its entry point 'nowhere\.at_all:X' failed: ModuleNotFoundError"):
        build_judge("gone", {})
    with pytest.raises(JudgeError, match=r"Available: .*gone, gsm8k"):
        build_judge("nothing like it", {})


def test_an_entry_point_cannot_replace_a_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("gsm8k", "nowhere.at_all:X", "prefloop.judges")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    assert type(build_judge("gsm8k", {})).__module__ == "judges.rules.gsm8k"


BUILDING = {
    "sys.exit(0)": "building it failed: SystemExit: 0 at mine.py:",
    "raise KeyError('x')": "building it failed: KeyError: 'x' at mine.py:",
    "raise Silent": "building it failed: Silent at mine.py:",
}


@pytest.mark.parametrize("line", BUILDING)
def test_whatever_building_a_judge_raises_is_one_paragraph(tmp_path: Path, line: str) -> None:
    silent = "import sys\nclass Silent(Exception):\n    def __str__(self): raise ValueError\n"
    source = silent + LENGTH + f"    def model_post_init(self, context):\n        {line}\n"
    with pytest.raises(JudgeError) as caught:
        build_judge(f"{written(tmp_path / 'mine.py', source)}:Length", {})
    assert BUILDING[line] in str(caught.value)


def test_an_interrupt_while_loading_passes_through(tmp_path: Path) -> None:
    written(tmp_path / "stop.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        build_judge("stop.py:X", {}, base_dir=tmp_path)


def test_a_judge_that_is_isolated_and_costly_is_refused(tmp_path: Path) -> None:
    (tmp_path / "both.py").write_text(
        "from judges import PointwiseJudge\n\n\nclass Both(PointwiseJudge):\n    isolated = costly = True\n\n"
        "    def one(self, prompt, response):\n        return 1.0\n"
    )
    with pytest.raises(JudgeError, match="Both is both isolated and costly: choose one"):
        build_judge("both.py:Both", {}, base_dir=tmp_path)
