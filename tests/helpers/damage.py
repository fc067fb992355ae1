"""A finished run, ways to damage its files, and the commands that meet them, all in the test's own process."""

import contextlib
import io
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import loop.workers.pool
from loop.cli.main import main
from loop.config.yaml_text import to_yaml
from tests.helpers import tiny
from tests.helpers.campaigns import results
from tests.helpers.inprocess import InProcess

JUDGE = '''"""Parity, as a judge that pays for its verdicts."""

from judges.contract import PointwiseJudge, Prompt, Response, Verdict
from judges.remember import key_of, once


class Paid(PointwiseJudge):
    def one(self, prompt: Prompt, response: Response) -> Verdict:
        right = len(response.text) % 2 == 0
        found = {"kind": "score", "right": right}
        found = once(self, key_of(self, prompt, [response]), lambda: found)
        return Verdict.of(found["right"], str(len(response.text)), "parity", well_formed=response.text[:1].isascii())
'''


def flip(content: bytes) -> bytes:
    """One bit of the byte in the middle, the other way round."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else b"\x01"


HURTS: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda content: None,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "flipped": flip,
    "an object": lambda content: b'{"another": ["shape"]}\n',
    "a list": lambda content: b"[1, 2]\n",
}
"""What can happen to a file; the last two are JSON of another shape."""


def hurt(path: Path, how: str) -> None:
    """Damage a file; its time changes."""
    content = HURTS[how](path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)


COMMANDS: dict[str, str] = {
    "run": "run RUN",
    "repair": "run RUN --repair",
    "status": "status RUN --json",
    "report": "report RUN --out OUT/report.html",
    "fork": "fork RUN@1 OUT/new",
    "export": "export RUN@1 --model OUT/model",
    "pairs": "export RUN@1 --pairs OUT/pairs.jsonl",
    "prune": "prune RUN --yes --json",
}


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


def command(*args: str | Path) -> Done:
    """Run `prefloop` here. An error that is no message to the user is the test's."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        patch.object(loop.workers.pool, "Worker", InProcess),
        patch.object(sys, "argv", ["prefloop", *map(str, args)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    return Done(code, out.getvalue(), err.getvalue())


def settings(folder: Path) -> dict[str, Any]:
    """A campaign whose run has nearly every kind of file."""
    tiny.save_model(folder / "model")
    tiny.save_prompts(folder / "prompts.jsonl", 32)
    (folder / "paid.py").write_text(JUDGE, encoding="utf-8")
    plain = tiny.settings(folder / "model", folder / "prompts.jsonl", folder / "paid.py")
    return plain | {
        "prompts": plain["prompts"] | {"train": 16, "per_iteration": 8, "gate": 4, "test": 4},
        "sampling": {"n": 4, "max_tokens": 8, "shard_prompts": 4},
        "judge": {"name": f"{folder / 'paid.py'}:Paid"},
        "pairs": {"per_prompt": 2, "gold_fallback": True},
        "reference": "ema",
        "promote": {"rule": "always", "limits": {"kl": 1e6}},
        "eval": {"samples": 1},
        "per_iteration": {2: {"sampling.adaptive": {"probe": 2}, "pairs.gold_fallback": False}},
    }


def finished_run(folder: Path) -> Path:
    """The run folder."""
    config = folder / "campaign.yaml"
    config.write_text(to_yaml(settings(folder)), encoding="utf-8")
    done = command("run", config, "--name", "whole", "--runs", folder / "runs")
    assert done.code == 0, done
    return folder / "runs" / "whole"


def kinds_of_files(run: Path) -> list[str]:
    """One file of each kind, of the first iteration that has it."""
    found: dict[str, str] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_file() and not name.startswith("iter-000/eval") and not name.endswith(("-shm", "-wal")):
            base = "base " if name.startswith("iter-000") else ""
            found.setdefault(base + re.sub(r"\d+", "#", name), name)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Walk:
    """Damages copies of a finished run, and compares what commands do with what they do with the run itself."""

    whole: Path
    folder: Path

    def problem(self, name: str, how: str, what: str) -> str:
        """What is wrong with a command after one damage; empty if it ends in one paragraph or a right result."""
        run, out = self._copy()
        hurt(run / name, how)
        try:
            done = self.do(what, run, out)
            if done.code == 2:
                return _problem_of_text(done.err, again=what == "repair")
            return self._problem_of_result(what, run, out) if done.code == 0 else f"exit code {done.code}: {done.err}"
        except Exception as error:  # noqa: BLE001  whatever reaches the user as a traceback
            return f"{type(error).__name__}: {error}"

    def do(self, what: str, run: Path, out: Path) -> Done:
        """Run one of the commands."""
        words = COMMANDS[what].replace("RUN", str(run)).replace("OUT", str(out)).split()
        return command(*words)

    def _copy(self) -> tuple[Path, Path]:
        shutil.rmtree(self.folder, ignore_errors=True)
        out = self.folder / "out"
        out.mkdir(parents=True)
        return Path(shutil.copytree(self.whole, self.folder / "runs" / "whole")), out

    def _problem_of_result(self, what: str, run: Path, out: Path) -> str:
        made, right = {}, results(self.whole)
        if what in ("run", "repair"):
            made = results(run)
            if missing := right.keys() - made.keys():
                return f"{sorted(missing)} is missing"
        if what == "fork":
            made = results(out / "new")
        if what == "export":
            made = {"iter-001/train/model/model.safetensors": (out / "model" / "model.safetensors").read_bytes()}
        if what == "pairs":
            made = {"pairs": (out / "pairs.jsonl").read_bytes()}
            right = {"pairs": self.pairs}
        if wrong := [name for name, content in made.items() if content != right[name]]:
            return f"{wrong} differ"
        again = command("run", run, "--verify") if what == "repair" else Done(0, "", "")
        return f"not mended: {again.err}" if again.code else ""

    @property
    def pairs(self) -> bytes:
        """The pairs that the whole run exports."""
        path = self.whole.parent / "pairs.jsonl"
        if not path.exists():
            command("export", f"{self.whole}@1", "--pairs", path)
        return path.read_bytes()


def _problem_of_text(text: str, *, again: bool) -> str:
    told = text.strip()
    if not told.startswith("prefloop: ") or "\n\n" in told or "Traceback" in told:
        return f"no paragraph: {told}"
    return f"--repair points to itself: {told}" if again and "same command with --repair" in told else ""
