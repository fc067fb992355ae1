"""A judge in a package of its own, installed by pip and found by its entry point, as users would publish it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests" / "helpers" / "plugin"
PROGRAM = """
import json, sys
from judges import Group, Prompt, Response, build_judge, fingerprint, judge_groups, self_test
judge = build_judge(sys.argv[1], {"words": ["ice", "fire"]})
group = Group(Prompt("p", (), None, {}), (Response("r", "ice and snow", "stop"),))
print(json.dumps({
    "examples": self_test(judge),
    "score": judge_groups(judge, [group])[0][0].score,
    "module": type(judge).__module__,
    "fingerprint": fingerprint(judge, sys.argv[1]),
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the plug-in; nothing is fetched."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    install = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), str(PLUGIN)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def python(site: Path, folder: Path, *arguments: str) -> Any:
    """What a program prints as JSON that finds the plug-in among the installed packages."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_installed_plugin_judges_under_its_name(site: Path, tmp_path: Path) -> None:
    found = python(site, tmp_path, "-c", PROGRAM, "keywords")
    assert (found["examples"], found["score"], found["module"]) == (1, 0.5, "demo_judges.keywords")
    assert found["fingerprint"]["args"] == {"words": ["ice", "fire"]}


def test_its_version_is_that_of_its_whole_package_by_whatever_name(site: Path, tmp_path: Path) -> None:
    names = ("keywords", "demo_judges.keywords:Keywords")
    before = [python(site, tmp_path, "-c", PROGRAM, name)["fingerprint"]["version"] for name in names]
    assert before[0] == before[1]
    helper = site / "demo_judges" / "counting.py"
    text = helper.read_text(encoding="utf-8")
    helper.write_text(text + "\n# counts otherwise\n", encoding="utf-8")
    try:
        after = python(site, tmp_path, "-c", PROGRAM, "keywords")["fingerprint"]["version"]
    finally:
        helper.write_text(text, encoding="utf-8")
    assert after != before[0]
    assert python(site, tmp_path, "-c", PROGRAM, "keywords")["fingerprint"]["version"] == before[0]


def test_the_catalog_lists_it_and_says_why_a_broken_one_cannot_be_used(site: Path, tmp_path: Path) -> None:
    listed = {
        entry["name"]: entry for entry in python(site, tmp_path, "-m", "loop.cli.main", "judge", "list", "--json")
    }
    assert listed["keywords"]["origin"] == "demo-judges 2.3"
    assert listed["keywords"]["kind"] == "pointwise"
    assert listed["keywords"]["summary"] == "The share of the expected words that the response holds."
    assert listed["keywords"]["arguments"] == [
        {
            "name": "words",
            "type": "list of str",
            "required": False,
            "default": ["because", "therefore"],
            "meaning": "Words that are expected; each counts alike.",
        }
    ]
    assert "No module named 'demo_judges.nowhere'" in listed["broken-demo"]["problem"]
    assert listed["gsm8k"]["origin"] == "built-in"


def test_a_labelled_file_is_judged_by_the_installed_plugin(site: Path, tmp_path: Path) -> None:
    row = {"prompt": "Why?", "response": "because", "score": 0.5}
    (tmp_path / "labelled.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = python(
        site, tmp_path, "-m", "loop.cli.main", "judge", "test", "keywords", "--data", "labelled.jsonl", "--json"
    )
    assert found["agreement"] == 1.0
