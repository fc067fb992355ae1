"""Campaigns as a user runs them: the command in a process of its own, its folder looked at from outside."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

PAUSE = Path(__file__).parent / "pause"
PATIENCE = 120.0
"""Seconds that any awaited thing may take on a busy machine."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


@dataclass(slots=True)
class Running:
    """A command that runs; `kill` ends it as a power cut would."""

    process: subprocess.Popen[str]
    workers: set[int] = field(default_factory=set)

    def wait_for(self, what: str, happened: Callable[[], bool]) -> None:
        """Look until it has happened; a command that ends before is a failed test."""
        deadline = time.monotonic() + PATIENCE
        while not happened():
            if self.process.poll() is not None:
                out, err = self.process.communicate()
                raise AssertionError(f"ended with {self.process.returncode} before {what}:\n{out}\n{err}")
            assert time.monotonic() < deadline, f"no {what} within {PATIENCE} s"
            time.sleep(0.002)
        self.workers |= descendants(self.process.pid)

    def kill(self) -> None:
        """SIGKILL, to the driver alone."""
        self.workers |= descendants(self.process.pid)
        self.process.kill()
        self.process.communicate()
        self.expect_no_worker()

    def expect_no_worker(self) -> None:
        """All that the driver started must end by itself within 5 seconds of the driver's end."""
        assert self.workers, "the campaign had no worker"
        deadline = time.monotonic() + 5
        while alive := {pid for pid in self.workers if is_alive(pid)}:
            assert time.monotonic() < deadline, f"workers {alive} outlive their driver"
            time.sleep(0.02)

    def end(self, timeout: float = PATIENCE) -> Ended:
        """Wait until it ends by itself."""
        out, err = self.process.communicate(timeout=timeout)
        return Ended(self.process.returncode, out, err)


@dataclass(frozen=True, slots=True)
class Cli:
    """The command `prefloop`, with `folder/runs` for its runs."""

    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def write(self, settings: dict[str, Any], name: str = "campaign") -> Path:
        """A config file."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path

    def start(self, *args: str | Path, env: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> Running:
        """Start a command."""
        command = [*prefix, sys.executable, "-m", "loop.cli.start", *map(str, args)]
        command += ["--runs", str(self.runs)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(env or {})}
        environment["PYTHONPATH"] = os.pathsep.join([*[str(PAUSE)] * ("PAUSE_AT" in environment), *self._path()])
        return Running(
            subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                preexec_fn=_heed_interrupts,
            )
        )

    def _path(self) -> list[str]:
        return [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]

    def __call__(self, *args: str | Path, env: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> Ended:
        """Run a command to its end."""
        return self.start(*args, env=env, prefix=prefix).end()

    def run(self, config: Path, *args: str, env: dict[str, str] | None = None) -> Path:
        """`prefloop run` must work and have nothing to complain about; the run folder."""
        ended = self("run", config, *args, env=env)
        assert (ended.code, ended.err) == (0, ""), ended.out + ended.err
        name = args[args.index("--name") + 1] if "--name" in args else config.stem
        return self.runs / name

    def pause_at(self, pattern: str, config: Path, *args: str, env: dict[str, str] | None = None) -> Running:
        """Start a run and wait until one of its processes stands still at a file (see pause/sitecustomize.py)."""
        mark = self.folder / f"paused-{time.monotonic_ns()}"
        running = self.start("run", config, *args, env={"PAUSE_AT": pattern, "PAUSE_MARK": str(mark), **(env or {})})
        running.wait_for(f"touching {pattern}", mark.with_name(f"{mark.name}.0").exists)
        return running


def _heed_interrupts() -> None:
    """A shell's background jobs ignore SIGINT, and so would everything started by them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def refusal(ended: Ended) -> str:
    """The one paragraph that a user's mistake gives."""
    assert ended.code == 2, (ended.code, ended.out, ended.err)
    assert "Traceback" not in ended.out + ended.err, ended.err
    text = ended.err.strip()
    assert text.startswith("prefloop: "), ended.err
    assert "\n\n" not in text, text
    return text


def is_alive(pid: int) -> bool:
    """Whether a process runs (one that ended and is not yet waited for does not)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def descendants(pid: int) -> set[int]:
    """Children of a process, and theirs."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = set(), [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found.update(children)
        waiting += children
    return found


def copy_run(run: Path, cli: Cli, name: str = "campaign") -> Path:
    """A copy of a run folder, times included, to continue or to damage."""
    target = cli.runs / name
    shutil.copytree(run, target)
    return target


def events(run: Path, what: str | None = None) -> list[dict[str, Any]]:
    """The lines of events.jsonl."""
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if what is None or row["event"] == what]


def rows(*paths: Path) -> list[dict[str, Any]]:
    """The rows of some Parquet files."""
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def times(run: Path, pattern: str = "**/*") -> dict[str, int]:
    """When each file was last written."""
    return {str(p.relative_to(run)): p.stat().st_mtime_ns for p in sorted(run.glob(pattern)) if p.is_file()}


RESULTS = ("prompts/*.parquet", "iter-*/*/*.parquet", "iter-*/eval/metrics.json", "iter-*/train/model/*.safetensors")


def results(run: Path) -> dict[str, bytes]:
    """All that a campaign made which must not depend on when it was killed: name and content."""
    found = {str(p.relative_to(run)): p.read_bytes() for pattern in RESULTS for p in sorted(run.glob(pattern))}
    for path in sorted(run.glob("iter-*/train/steps.jsonl")):
        steps = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[str(path.relative_to(run))] = json.dumps([without_times(step) for step in steps]).encode()
    for path in sorted(run.glob("iter-*/promotion.json")):
        found[str(path.relative_to(run))] = path.read_bytes()
    return found


def without_times(step: dict[str, Any]) -> dict[str, Any]:
    """A row of the step log without what depends on the clock and on the process."""
    measured = {"seconds", "tokens_per_second", "peak_memory_gb"}
    return {key: value for key, value in step.items() if key not in measured}


def assert_same_results(run: Path, reference: Path) -> None:
    """Every table, decision, step and weight is equal, byte for byte."""
    ours, theirs = results(run), results(reference)
    assert list(ours) == list(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert any(name.endswith(".safetensors") for name in ours)
