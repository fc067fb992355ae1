"""Isolation: whatever foreign code does to its process costs one response its verdict, and no neighbour anything."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from judges import Group, JudgeError, PointwiseJudge, Prompt, Response, Verdict, build_judge, judge_groups
from judges.isolation.pool import Pool

WILD = '''
import ctypes, os, resource, signal, subprocess, sys, time
from pathlib import Path
from judges import JudgeError, PointwiseJudge, Prompt, Response, Verdict

HOARD = []


class Wild(PointwiseJudge):
    """Does to its process what the response asks for."""

    isolated = True
    time_limit = 1.0
    memory_limit = 0.3
    folder: str = "."

    def one(self, prompt: Prompt, response: Response) -> Verdict | float | bool:
        return getattr(self, response.text.partition(":")[0])(response.text.partition(":")[2])

    def ok(self, _): return Verdict.of(0.5, "é\\n", "why", True, {"a": 1.0})
    def pid(self, _): return os.getpid()
    def sleep(self, _): time.sleep(60)
    def spin(self, _):
        while True: pass
    def ignore_signals(self, _):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        time.sleep(60)
    def exit(self, _): sys.exit(3)
    def leave(self, _): os._exit(3)
    def segfault(self, _): ctypes.string_at(0)
    def abort(self, _): os.abort()
    def too_much(self, _): return len(bytes(1 << 40))
    def grow(self, _):
        while True: HOARD.append(bytes(1 << 24))
    def hoard(self, _):
        HOARD.append(bytes(1 << 27))  # nearly half of the limit, and it is kept
        return 1.0
    def fork(self, _): return os.fork() >= 0
    def fork_and_leave(self, _):
        if os.fork():
            os._exit(5)
        time.sleep(60)
    def forked_sleeper(self, _):
        pid = os.fork()
        if not pid:
            time.sleep(60)
        Path(self.folder, "forked").write_text(str(pid))
        time.sleep(60)
    def print(self, _): print("said by the judge"); return 1.0
    def write_out(self, _): os.write(1, b"x\\n"); return 1.0
    def read_in(self, _): return len(sys.stdin.read())
    def recurse(self, _): return self.recurse(_)
    def nan(self, _): return float("nan")
    def nothing(self, _): return None
    def count_files(self, _): return len(os.listdir("/proc/self/fd"))
    def refuse(self, _): raise JudgeError("prompt p cannot be judged")
    def crash_once(self, _):
        if not Path(self.folder, "crashed").exists():
            Path(self.folder, "crashed").touch()
            os._exit(9)
        return 1.0
    def code(self, text):
        names = {}
        exec(text, names)
        return names["answer"]
'''


@pytest.fixture
def wild(tmp_path: Path) -> PointwiseJudge:
    (tmp_path / "wild.py").write_text(WILD, encoding="utf-8")
    judge = build_judge("wild.py:Wild", {"folder": str(tmp_path)}, base_dir=tmp_path)
    assert isinstance(judge, PointwiseJudge)
    return judge


def judged(judge: PointwiseJudge, *texts: str) -> list[Verdict]:
    responses = tuple(Response(str(number), text, "stop") for number, text in enumerate(texts))
    return judge_groups(judge, [Group(Prompt("p", (), None, {"x": [1]}), responses)])[0]


def is_gone(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


FATES = [
    ("sleep", "took longer than 1 s and was killed"),
    ("spin", "took longer than 1 s and was killed"),
    ("ignore_signals", "took longer than 1 s and was killed"),
    ("exit", "SystemExit: 3 at wild.py:"),
    ("leave", "ended its process with code 3, twice"),
    ("segfault", "ended its process by SIGSEGV, twice"),
    ("abort", "ended its process by SIGABRT, twice"),
    ("too_much", r"needed more memory than it may use \(0.3 GiB\), twice"),
    ("grow", r"needed more memory than it may use \(0.3 GiB\), twice"),
    ("fork_and_leave", "ended its process with code 5, twice"),
    ("recurse", "RecursionError"),
    ("nan", "must be a finite number, got nan"),
    ("nothing", "must be a finite number, got None"),
    ("code:while True: pass", "took longer"),
    ("code:answer = 1 / 0", "ZeroDivisionError"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="memory limits and signal names as Linux has them")
def test_each_way_to_fail_costs_one_error_and_every_neighbour_gets_its_verdict(wild: PointwiseJudge) -> None:
    texts = [text for fate, _ in FATES for text in ("ok", fate, "ok", "ok")]
    verdicts = judged(wild, *texts)
    assert all(v == Verdict.of(0.5, "é\n", "why", True, {"a": 1.0}) for v in verdicts if v.kind == "score")
    assert [v.kind for v in verdicts] == ["error" if text != "ok" else "score" for text in texts]
    for (fate, words), verdict in zip(FATES, verdicts[1::4], strict=True):
        assert verdict.score is None, fate
        assert re.search(words, verdict.why), (fate, verdict.why)


def test_a_hang_costs_its_time_limit_and_no_more(wild: PointwiseJudge) -> None:
    judged(wild, "ok")  # the children are there
    started = time.monotonic()
    verdicts = judged(wild, *["ok"] * 100, "spin", *["ok"] * 100)
    assert [v.kind for v in verdicts] == ["score"] * 100 + ["error"] + ["score"] * 100
    assert 1.0 <= time.monotonic() - started < 15.0


def test_two_children_share_the_work_and_stay(wild: PointwiseJudge) -> None:
    first = {v.score for v in judged(wild, *["pid"] * 500)}
    assert len(first) >= 2
    assert os.getpid() not in first
    assert {v.score for v in judged(wild, *["pid"] * 500)} == first


def test_what_forks_prints_or_reads_is_judged_once_and_disturbs_nothing(
    wild: PointwiseJudge, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = Pool(2)  # its children have this test's stderr
    items = [(Prompt("p", (), None, {}), Response("r", t, "stop")) for t in ("fork", "print", "write_out", "read_in")]
    assert [v.score for v in pool.judge(wild, items * 5)] == [1.0, 1.0, 1.0, 0.0] * 5
    pool.close()
    printed = capfd.readouterr()
    assert (printed.out, printed.err.count("said by the judge")) == ("", 5)


def test_a_crash_that_does_not_happen_again_costs_nothing(wild: PointwiseJudge) -> None:
    assert [v.score for v in judged(wild, "crash_once", "ok", "ok")] == [1.0, 0.5, 0.5]


@pytest.mark.skipif(sys.platform != "linux", reason="memory limits as Linux has them")
def test_memory_that_neighbours_kept_is_no_ones_error(wild: PointwiseJudge) -> None:
    """Each response keeps half of the limit, so every second child runs out, and its response is tried in a new one."""
    assert [v.score for v in judged(wild, *["hoard"] * 6)] == [1.0] * 6


def test_a_mistake_in_the_data_stops_the_stage_and_the_next_call_works(wild: PointwiseJudge) -> None:
    with pytest.raises(JudgeError, match="prompt p cannot be judged"):
        judged(wild, "ok", "refuse", "ok", "sleep")
    assert judged(wild, "ok")[0].score == 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="open files as Linux lists them")
def test_children_inherit_no_socket_and_no_lock(wild: PointwiseJudge) -> None:
    pool = Pool(1)
    with socket.create_server(("127.0.0.1", 0)) as server, open(__file__, encoding="utf-8") as file:
        server.set_inheritable(True)
        os.set_inheritable(file.fileno(), True)
        verdict = pool.judge(wild, [(Prompt("p", (), None, {}), Response("r", "count_files", "stop"))])[0]
    pool.close()
    assert verdict.score == 6  # stdin, stdout, stderr, jobs, verdicts, and the folder being listed


DRIVER = """
import sys
from pathlib import Path
from judges import Group, Prompt, Response, build_judge, judge_groups
judge = build_judge(sys.argv[1] + "/wild.py:Wild", {"folder": sys.argv[1]})
type(judge).time_limit = 60.0
def judged(*texts):
    responses = tuple(Response(str(n), t, "stop") for n, t in enumerate(texts))
    return judge_groups(judge, [Group(Prompt("p", (), None, {}), responses)])[0]
pids = {int(v.score) for v in judged(*["pid"] * 200)}
Path(sys.argv[1], "pids.partial").write_text(" ".join(map(str, pids)))
Path(sys.argv[1], "pids.partial").rename(Path(sys.argv[1], "pids"))
judged("spin", "sleep")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux lists them")
def test_children_end_when_their_parent_is_killed_while_they_work(wild: PointwiseJudge, tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)])
    try:
        end = time.monotonic() + 30
        while not (tmp_path / "pids").exists() and time.monotonic() < end:
            time.sleep(0.05)
        pids = [int(word) for word in (tmp_path / "pids").read_text(encoding="utf-8").split()]
        time.sleep(0.3)  # one spins now, one sleeps
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert len(pids) >= 2
    assert all(is_gone(pid, 3.0) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux lists them")
def test_what_a_judge_has_forked_ends_with_its_child(wild: PointwiseJudge, tmp_path: Path) -> None:
    assert "took longer" in judged(wild, "forked_sleeper")[0].why
    assert is_gone(int((tmp_path / "forked").read_text(encoding="utf-8")), 2.0)


def isolated(folder: Path, source: str, **args: Any) -> PointwiseJudge:
    """A judge file whose class `X` is isolated."""
    head = "import os\nfrom judges import *\n\n\nclass X(PointwiseJudge):\n    isolated = True\n"
    (folder / "x.py").write_text(head + source, encoding="utf-8")
    judge = build_judge("x.py:X", args, base_dir=folder)
    assert isinstance(judge, PointwiseJudge)
    return judge


def test_a_judge_that_cannot_be_started_in_a_child_stops_with_the_reason(tmp_path: Path) -> None:
    one = "    def one(self, prompt, response): return 1.0\n"
    dies = isolated(tmp_path, one + "    def warm_up(self): os._exit(4)\n")
    with pytest.raises(JudgeError, match=r"none of 3 could start it: .* ended its process with code 4") as caught:
        judged(dies, "a")
    assert "\n" not in str(caught.value)
    lacks = isolated(tmp_path, one + "    def warm_up(self): raise JudgeError('install the extra')\n")
    with pytest.raises(JudgeError, match="install the extra"):
        judged(lacks, "a")


def test_the_child_runs_the_source_that_was_loaded_and_its_arguments(tmp_path: Path) -> None:
    judge = isolated(
        tmp_path, "    least: float = 0\n    def one(self, prompt, response): return self.least\n", least=3
    )
    (tmp_path / "x.py").write_text("raise RuntimeError", encoding="utf-8")
    assert [v.score for v in judged(judge, "a", "b")] == [3.0, 3.0]


def test_a_module_that_changed_since_it_was_loaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from judges import *\n\n\nclass X(PointwiseJudge):\n    isolated = True\n"
    (tmp_path / "changing_judge.py").write_text(source + "    def one(self, prompt, response): return 1\n")
    judge = build_judge("changing_judge:X", {})
    (tmp_path / "changing_judge.py").write_text(source + "    def one(self, prompt, response): return 22\n")
    try:
        with pytest.raises(JudgeError, match="its source file changing_judge changed after the run loaded it"):
            judge_groups(judge, [Group(Prompt("p", (), None, {}), (Response("r", "", "stop"),))])
    finally:
        del sys.modules["changing_judge"]


def test_a_class_that_a_child_cannot_import_is_refused_with_the_way_out() -> None:
    class Local(PointwiseJudge):
        isolated = True

        def one(self, prompt: Prompt, response: Response) -> bool:
            return True

    with pytest.raises(JudgeError, match=r"defined in a function. Put the class .* 'path/to/file.py:Local'"):
        judged(Local(), "a")
