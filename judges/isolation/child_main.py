"""Entry point of a child process: batches of responses from stdin, a line of JSON per verdict to stdout. A child ends
when its parent does: by stdin, by signal (Linux), or by watching the pid."""

import ctypes
import importlib
import json
import operator
import os
import pickle
import resource
import signal
import sys
import threading
import time
from dataclasses import astuple
from typing import Any, BinaryIO, NamedTuple

from judges.contract import PointwiseJudge
from judges.resolve import run_source
from judges.types import JudgeError, describe
from judges.versions import version_of

OUT_OF_MEMORY = 112
"""Exit code of a child that hit its memory limit and must be replaced."""


class Recipe(NamedTuple):
    """How to build a judge: its class by module and name, the source if it is a judge file, and its arguments."""

    module: str
    name: str
    source: tuple[str, bytes] | None
    path: tuple[str, ...]
    version: str
    arguments: bytes


def main(parent: str) -> None:
    """Serve batches until stdin closes."""
    end_with_parent(int(parent))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    jobs, out = _private_pipes()
    judges: dict[bytes, PointwiseJudge] = {}
    while True:
        try:
            recipe, items = pickle.load(jobs)
        except EOFError:
            os._exit(0)
        try:
            judge = judges.get(recipe) or judges.setdefault(recipe, build(pickle.loads(recipe)))
            limit_memory(judge.memory_limit)
            send(out, "ready")
            for prompt, response in items:
                send_verdict(out, judge, prompt, response)
        except JudgeError as error:
            send(out, "refused", str(error))


def _private_pipes() -> tuple[BinaryIO, int]:
    """Move stdin and stdout to other descriptors; the judge reads an empty stdin, and its prints go to stderr."""
    jobs, out = os.fdopen(os.dup(0), "rb"), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return jobs, out


def send_verdict(out: int, judge: PointwiseJudge, prompt: Any, response: Any) -> None:
    """Judge one response and send its verdict; a process that the judge has forked ends here."""
    me = os.getpid()
    try:
        verdict = judge.judged(prompt, response, passing=(JudgeError, MemoryError))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    finally:
        if os.getpid() != me:
            os._exit(0)
    send(out, "verdict", *astuple(verdict))


def send(out: int, *message: Any) -> None:
    """Write one line; a pipe may take a long one in pieces."""
    line = memoryview(json.dumps(message).encode("ascii") + b"\n")
    while line:
        line = line[os.write(out, line) :]


def build(recipe: Recipe) -> PointwiseJudge:
    """Import and build the judge. JudgeError if it cannot be built as in the parent."""
    sys.path[:] = recipe.path
    if recipe.source is not None and recipe.module not in sys.modules:
        file, source = recipe.source
        run_source(recipe.name, file, source, recipe.module)
    try:
        kind = operator.attrgetter(recipe.name)(importlib.import_module(recipe.module))
    except (Exception, SystemExit) as error:  # the boundary to foreign code
        raise JudgeError(f"Judge {recipe.name}: importing it in a child process failed: {describe(error)}.") from error
    if version_of(kind) != recipe.version:
        raise JudgeError(
            f"Judge {recipe.name}: its source file {recipe.module} changed after the run loaded it. Run the same "
            f"command again to judge with the new version."
        )
    judge: PointwiseJudge = kind.model_construct(**pickle.loads(recipe.arguments))
    judge.warm_up()
    return judge


def limit_memory(gibibytes: float) -> None:
    """Limit this process's data; allocations beyond it fail. Only Linux enforces it."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


def end_with_parent(parent: int) -> None:
    """Make sure that this process does not outlive `parent`."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
