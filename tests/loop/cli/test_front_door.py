"""The command itself: its version, its short help, completion by the shell, and the runs of a folder."""

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.console import Console
from typer.testing import CliRunner

from loop.cli.main import app
from loop.errors import UserError
from loop.store.locate import locate
from loop.store.run_folder import RunFolder
from loop.view.run_list import print_runs, summaries
from tests.helpers.made_runs import Made, make_run


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    for name, command in group.commands.items():
        yield from commands(command, (*words, name)) if hasattr(command, "commands") else [(*words, name)]


COMMANDS = list(commands(typer.main.get_command(app)))


def test_the_version_is_that_of_the_package() -> None:
    told = CliRunner().invoke(app, ["--version"])
    assert (told.exit_code, told.output) == (0, "prefloop 0.1.0\n")


def test_short_help_is_the_same_everywhere() -> None:
    assert ("judge", "label") in COMMANDS
    for words in [(), ("judge",), *COMMANDS]:
        short, long = (CliRunner().invoke(app, [*words, option]) for option in ("-h", "--help"))
        assert (short.exit_code, short.output) == (0, long.output), words
        assert "Usage: prefloop" in short.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in every state."""
    folder = tmp_path_factory.mktemp("list") / "runs"
    small: dict[str, Any] = {"train": 2, "gate": 2, "test": 2, "n": 2, "steps": 2}
    make_run(folder / "done", Made(iterations=2, reject=(2,), **small))
    for name in ("working", "killed", "remote", "labels", "broken"):
        make_run(folder / name, Made(iterations=3, finished=1, **small))
    make_run(folder / "fork", Made(iterations=1, finished=0, **small))
    here = socket.gethostname()
    (folder / "working" / "lock").write_text(f"pid {os.getpid()} on {here}", encoding="utf-8")
    (folder / "killed" / "lock").write_text(f"pid 999999999 on {here}", encoding="utf-8")
    (folder / "remote" / "lock").write_text("pid 1 on elsewhere", encoding="utf-8")
    RunFolder(folder / "labels").event("waiting_for_people", iteration=2)
    (folder / "broken" / "metrics.jsonl").write_text('{"incumbent": 1, "iteration": 1, "test": 3}\n', encoding="utf-8")
    for at, name in enumerate(("fork", "killed", "remote", "labels", "broken", "done", "working")):
        changed = time.time() - 3600 + at
        for path in sorted((folder / name).rglob("*"), reverse=True):
            os.utime(path, (changed, changed))
        os.utime(folder / name, (changed, changed))
    return folder


def test_the_list_tells_every_run_its_state_and_standing(runs: Path) -> None:
    told = CliRunner().invoke(app, ["runs", "--json", "--runs", str(runs)])
    found = json.loads(told.output)["runs"]
    assert [(run["name"], run["state"], run["iteration"], run["planned"]) for run in found] == [
        ("working", "running", 2, 3),
        ("done", "complete", 2, 2),
        ("broken", "damaged", None, None),
        ("labels", "waiting for labels", 2, 3),
        ("remote", "stopped", 2, 3),  # its folder has not changed for an hour
        ("killed", "stopped", 2, 3),
        ("fork", "not started", 1, 1),
    ]
    done = found[1]
    rows = [json.loads(line) for line in (runs / "done" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert (done["incumbent"], done["accuracy"]) == (1, rows[1]["test"]["sampled_accuracy"])
    files = [path for path in (runs / "done").rglob("*") if path.is_file()]
    assert done["bytes"] == sum(path.stat().st_size for path in files)
    assert "metrics.jsonl is damaged" in found[2]["problem"]


def test_the_list_fits_a_terminal_and_says_where_there_are_none(runs: Path, tmp_path: Path) -> None:
    for width in (80, 60):
        console = Console(width=width)
        with console.capture() as printed:
            print_runs(summaries(runs), runs, console)
        lines = printed.get().splitlines()
        assert all(len(line) <= width for line in lines)
        assert any(line.split()[:3] == ["done", "complete", "2/2"] for line in lines)
    told = CliRunner().invoke(app, ["runs", "--runs", str(tmp_path)])
    assert f"There are no runs in {tmp_path}" in told.output.replace("\n", "")


def test_a_run_is_named_like_a_config_and_a_config_goes_before(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, loaded = locate("done", ["iterations=5"], None, runs)
    assert (folder.root, loaded.iterations) == (runs / "done", 5)
    monkeypatch.chdir(runs.parent)
    (runs.parent / "done").write_text("no config", encoding="utf-8")
    with pytest.raises(UserError, match="no config"):
        locate("done", [], None, runs)
    with pytest.raises(UserError, match=r"no run of that name in .*did you mean killed"):
        locate("kiled", [], None, runs)
    with pytest.raises(UserError, match="is an existing run; --name starts a new one"):
        locate("killed", [], "other", runs)


def test_the_shell_completes_commands_runs_and_configs(runs: Path) -> None:
    def completed(*words: str) -> list[str]:
        line = " ".join(("prefloop", *words))
        told = {"_PREFLOOP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
        return CliRunner().invoke(app, [], env=told | {"PREFLOOP_RUNS": str(runs)}, prog_name="prefloop").output.split()

    assert completed("ju") == ["judge"]
    assert completed("status", "do") == ["done"]
    assert completed("run", "quick") == ["quickstart"]
    assert completed("run", "wor") == ["working"]
