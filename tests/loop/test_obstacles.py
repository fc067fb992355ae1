"""What the operating system refuses is one paragraph: what, which file, what to do. Nothing that models, names or data
hold steers the terminal."""

import errno
import fcntl
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from judges.context import Usage
from judges.types import JudgeError
from loop.cli import main as cli
from loop.commands.export import export_pairs
from loop.commands.fork import refuse_taken
from loop.commands.judge_new import write_judge
from loop.commands.sweep import plan_sweep
from loop.config.load import load_config
from loop.errors import UserError, explain_obstacle, is_obstacle
from loop.format import visible
from loop.redact import RedactedStream
from loop.store import files, tables
from loop.store.locate import check_name, locate, new_run
from loop.store.run_folder import RunFolder
from loop.store.verdict_cache import VerdictCache
from loop.view.display import Display
from loop.view.prompt_records import PromptRecord, ResponseRecord, VerdictRecord
from loop.view.show import print_prompts
from loop.workers.entry import explain, is_users
from tests.helpers import tiny
from tests.helpers.inprocess import run_here

Raise = Callable[[BaseException], str]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Raise:
    """What the command says when an error reaches it; it exits with 2."""

    def say(error: BaseException) -> str:
        def broken() -> None:
            raise error

        monkeypatch.setattr(cli, "app", broken)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        err = capsys.readouterr().err
        assert ended.value.code == 2
        assert err.startswith("\nprefloop: ")
        assert "\n\n" not in err.strip()
        return err

    return say


@pytest.mark.parametrize(
    ("number", "what", "advice"),
    [
        (errno.EACCES, "lacks the permission", "change the permissions"),
        (errno.EPERM, "lacks the permission", "another place"),
        (errno.EROFS, "is read-only", "can be written"),
        (errno.ENOSPC, "The disk is full", "Free some space"),
        (errno.EDQUOT, "The disk is full", "Free some space"),
        (errno.ENAMETOOLONG, "too long", "choose a shorter one"),
        (errno.ENOTDIR, "a file, where a folder is needed", "another place"),
        (errno.EEXIST, "a file instead of a folder", "another place"),
        (errno.EISDIR, "is a folder, where a file is needed", "name a file"),
        (errno.ENOLCK, "no locks", "a local disk"),
        (errno.EOPNOTSUPP, "no locks", "--runs"),
        (errno.ELOOP, "in a circle", "repair the links"),
        (errno.EMFILE, "too many open files", "ulimit"),
        (errno.EFBIG, "larger than this user may write", "ulimit -f"),
        (errno.EIO, "disk reports an error", "check the disk"),
        (errno.ESTALE, "file server", "mount"),
        (errno.ENOENT, "No such file", "run the same command"),
        (errno.EBUSY, "busy", "run the same command"),
    ],
)
def test_every_refusal_names_the_file_and_the_remedy(said: Raise, number: int, what: str, advice: str) -> None:
    text = said(OSError(number, os.strerror(number), "/data/runs/a/events.jsonl"))
    assert what in text
    assert "/data/runs/a/events.jsonl" in text
    assert advice in text


def provoked(act: Callable[[], Any]) -> BaseException:
    with pytest.raises((OSError, UnicodeError)) as raised:
        act()
    return raised.value


def _read_latin(folder: Path) -> None:
    (folder / "latin.txt").write_bytes(b"one\ncaf\xe9\n")
    (folder / "latin.txt").read_text(encoding="utf-8")


REAL: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a file is in the way": (lambda at: files.write_file(at / "file" / "x", b""), "file", "instead of a folder"),
    "a file is the folder": (lambda at: (at / "file").mkdir(exist_ok=False), "file", "instead of a folder"),
    "a folder is the file": (lambda at: (at / "folder").read_text("utf-8"), "folder", "where a file is needed"),
    "a long name": (lambda at: (at / ("n" * 300)).read_text("utf-8"), "n" * 300, "shorter"),
    "a long path": (lambda at: (at / "/".join(["n" * 100] * 60)).mkdir(parents=True), "nnn", "shorter"),
    "a circle of links": (lambda at: (at / "link").read_text("utf-8"), "link", "circle"),
    "a text in Latin-1": (_read_latin, "latin.txt", "line 2 holds the byte 0xe9"),
    "half a surrogate pair": (lambda at: (at / "s").write_text("\ud800", "utf-8"), "s", "no valid Unicode"),
    "a full disk": (lambda at: files.append_line(at / "full", {"text": "x" * 9000}), "full", "The disk is full"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_errors_name_the_file_even_where_python_does_not(tmp_path: Path, name: str, said: Raise) -> None:
    act, file, words = REAL[name]
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "link")
    (tmp_path / "full").symlink_to("/dev/full")
    error = provoked(lambda: act(tmp_path))
    text = said(error)
    assert file in text
    assert words in text
    assert is_users(error)  # in a worker it is told at once, and not tried again
    assert explain(error) == explain_obstacle(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("I/O error: No space left on device (os error 28)"), "The disk is full"),
        (RuntimeError("Error while serializing: Permission denied (os error 13)"), "lacks the permission"),
        (RuntimeError("OSError: [Errno 30] Read-only file system: '/w' (in process 1 of 2)"), "read-only"),
        (ValueError("File name too long (os error 36)"), "too long"),
    ],
)
def test_libraries_that_are_not_written_in_python_only_mention_the_number(error: Exception, words: str) -> None:
    assert is_obstacle(error)
    assert words in explain_obstacle(error)


def test_a_wrapped_refusal_is_found_and_a_bug_is_not_taken_for_one(said: Raise) -> None:
    wrapped = RuntimeError("An error occurred while generating the dataset")
    wrapped.__cause__ = PermissionError(errno.EACCES, "Permission denied", "/cache/x.arrow")
    assert "/cache/x.arrow" in said(wrapped)
    assert not is_obstacle(RuntimeError("the shelf is empty"))
    assert not is_obstacle(FileNotFoundError(errno.ENOENT, "No such file", "x"))  # a worker tries again


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_DATASETS_CACHE", "PREFLOOP_CACHE", "TMPDIR", "XDG_CACHE_HOME"])
def test_a_cache_that_cannot_be_written_is_blamed_and_not_the_data(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "PREFLOOP_CACHE", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "/mnt/cache")
    text = explain_obstacle(PermissionError(errno.EACCES, "Permission denied", "/mnt/cache/datasets/x.lock"))
    assert f"the cache in /mnt/cache, which the variable {variable} names" in text
    assert "cache" not in explain_obstacle(PermissionError(errno.EACCES, "Permission denied", "/data/x.jsonl"))


def test_the_users_own_cache_is_named_with_its_variables() -> None:
    file = Path.home() / ".cache" / "huggingface" / "x"
    assert "HF_HOME or PREFLOOP_CACHE" in explain_obstacle(OSError(errno.EROFS, "Read-only file system", str(file)))


def test_a_table_that_cannot_be_opened_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pq, "read_table", refuse)
    with pytest.raises(PermissionError):
        tables.read(tmp_path / "shard.parquet")


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Raise) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    text = said(provoked(RunFolder(tmp_path / "run").locked().__enter__))
    assert "offers no locks" in text
    assert str(tmp_path / "run") in text


def test_a_verdict_cache_that_cannot_be_made_is_no_fault_of_the_answer(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("", encoding="utf-8")
    cache = VerdictCache(tmp_path / "cache" / "verdicts.sqlite")
    with pytest.raises(JudgeError, match=r"verdict cache .*verdicts\.sqlite cannot be used"):
        cache.put("key", "value", "judge", Usage())


def test_a_log_on_a_full_disk_stops_no_work() -> None:
    log = RedactedStream(io.BufferedWriter(io.FileIO("/dev/full", "w")), line_buffering=True)
    for _ in range(3):
        print("x" * 20_000, file=log)
    log.flush()


def test_output_that_a_terminal_cannot_show_is_replaced(monkeypatch: pytest.MonkeyPatch, said: Raise) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    said(UserError("x"))
    print("β \ud800")
    assert raw.getvalue() == b"? ?\n"


BAD_NAMES = {
    "": "empty",
    ".": "the folder itself",
    "..": "the folder itself",
    ".hidden": "full stop",
    "-x": "an option",
    "a/b": "one part of a path",
    "../up": "full stop",
    "a@1": "RUN@K",
    " a": "blank",
    "a\n": "blank",
    "a\x1b[31mb": "control characters",
    "a\0b": "control characters",
    "a\u202eb": "control characters",
    "a\ud800": "control characters",
    "n" * 201: "201 bytes",
    "β" * 101: "202 bytes",
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_one_function_refuses_a_name_for_every_command(tmp_path: Path, name: str) -> None:
    run, quick = RunFolder(tmp_path), "quickstart"
    uses: dict[str, Callable[[], Any]] = {
        "the function": lambda: check_name(name, "a run"),
        "run and plan": lambda: locate(quick, [], name, tmp_path, toy=True),
        "sweep": lambda: plan_sweep(quick, ["seed=0,1"], name, tmp_path, toy=True),
        "judge new": lambda: write_judge(name, "pointwise", tmp_path),
    }
    if "/" not in name:
        uses |= {
            "fork": lambda: refuse_taken(new_run(name, tmp_path)),
            "fork to a path": lambda: new_run(f"elsewhere/{name if name.strip('.') else '..'}", tmp_path),
        }
    if name.strip(".") and "/" not in name:
        uses["export"] = lambda: export_pairs(run, 1, tmp_path / f"{name}.jsonl", "standard")
    for use, act in uses.items():
        with pytest.raises(UserError) as refused:
            act()
        assert "cannot be the name of" in str(refused.value), use
        assert use in ("export", "sweep") or name in ("", ".", "..") or BAD_NAMES[name] in str(refused.value), use
        assert len(str(refused.value)) < 250
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".py", ".jsonl")]


@pytest.mark.parametrize("name", ["a", "my-1", "my.2", "βeta", "a b", "qwen_seed=0", "1", "n" * 200, "a[1]*?"])
def test_usual_names_are_names(name: str) -> None:
    assert check_name(name, "a run") == name


STEERING = {
    "\x1b[2Jgone": "␛[2Jgone",
    "a\0b": "a␀b",
    "\u202egpj.exe": "<U+202E>gpj.exe",
    "\u2066x\u2069": "<U+2066>x<U+2069>",
    "\x9b31m": "<U+009B>31m",
    "ring\x07": "ring␇",
    "back\x08": "back␈",
    "over\rwritten": "over␍written",
    "\ud83d": "�",
    "\x7f": "␡",
    "line\n\ttab": "line\n\ttab",
    "β ✓ 漢字 👩‍🔬": "β ✓ 漢字 👩‍🔬",
}


@pytest.mark.parametrize("text", STEERING)
def test_what_steers_a_terminal_is_shown_as_a_symbol(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert visible(text) == STEERING[text]
    Display().say(f"[{text}]")
    assert capsys.readouterr().out == f"[{STEERING[text]}]\n".expandtabs()


def test_shown_responses_prompts_and_reasons_steer_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;title\x07 \0 \u202e \x9b"
    verdict = VerdictRecord("p", "r", "j", "1", "score", 1.0, None, f"why {evil}", None, None)
    response = ResponseRecord("p", "r", 1.0, f"text {evil}", "stop", verdict)
    print_prompts([PromptRecord("p", f"prompt {evil}", f"target {evil}", [response], [])])
    shown = capsys.readouterr().out
    assert shown.count("␛]0;title␇ ␀ <U+202E> <U+009B>") == 4
    assert not set(shown) & set("\x1b\x07\0\u202e\x9b")


def test_a_judge_that_changes_the_folder_changes_nothing(
    tmp_path: Path, toys: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    moves = "\nimport os\nos.chdir('/')\n"
    (tmp_path / "moves.py").write_text(tiny.PARITY + moves, encoding="utf-8")
    settings |= {"iterations": 1}
    settings["judge"]["name"] = "moves.py:Parity"
    Path("campaign.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    load_config("campaign.yaml")
    run = run_here(monkeypatch, Path("."), settings)
    assert Path.cwd() == Path("/")
    assert run == tmp_path / "runs" / "run"
    assert str(RunFolder(Path("runs/run"))) == "runs/run"
    assert (run / "iter-001" / "promotion.json").exists()
