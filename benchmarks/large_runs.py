"""How long do the commands that read a run take on large ones? Makes up a run of 200 iterations and one with 1,000,000
responses, then runs `prefloop runs`, `status` and `watch --once` on each, and rewrites the report after an iteration.

In: sizes. Out: seconds and peak memory of each, in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loop.report.page import write_report
from loop.store.run_folder import RunFolder
from loop.view.status import collect, keep_states, write_metrics
from tests.helpers.made_runs import Made, make_run, repeat

PARENT = """
import json, os, subprocess, sys, time
begin = time.perf_counter()
child = subprocess.Popen(json.loads(sys.argv[1]), stderr=subprocess.STDOUT)
_, status, used = os.wait4(child.pid, 0)
print(json.dumps([time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss, status]))
"""
"""Starts a command and prints what it used; small itself, because a child's peak begins with its parent's."""
COMMANDS = ("runs", "status RUN", "status RUN --last 5", "watch RUN --once")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--iterations", type=int, default=200, help="of the long run")
    parser.add_argument("--responses", type=int, default=1_000_000, help="of the wide run")
    parser.add_argument("--keep", type=Path, help="make the runs here, or use those that are there")
    parser.add_argument("--rewrite", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.rewrite:
        return rewrite(RunFolder(told.rewrite))
    with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-") as folder:
        runs = told.keep or Path(folder)
        for run in (long_run(runs / "long", told.iterations), wide_run(runs / "wide", told.responses)):
            print(f"{run.name}: {len(run.iterations()) - 1} iterations", flush=True)
            for command in COMMANDS:
                words = command.replace("RUN", run.name).split()
                measure(command, ["-m", "loop.cli.start", *words, "--runs", str(runs)])
            measure("report in a new process", [__file__, "--rewrite", str(run.root)])


def long_run(root: Path, iterations: int) -> RunFolder:
    """The size of the quickstart, for many iterations."""
    made = Made(iterations=2, train=224, gate=128, test=200, n=8, tokens=40, steps=60, shard=48)
    made.extra = {"iterations": iterations}
    if not root.exists():
        repeat(make_run(root, made), iterations)
    return RunFolder(root)


def wide_run(root: Path, responses: int) -> RunFolder:
    """Five iterations with many prompts."""
    prompts = responses // 40
    made = Made(iterations=5, train=prompts, gate=1000, test=1000, n=8, tokens=40, steps=600, shard=64)
    return RunFolder(root) if root.exists() else make_run(root, made)


def measure(what: str, arguments: list[str]) -> None:
    """Run Python with these arguments, and print what it printed last, its seconds and peak memory."""
    told = [sys.executable, "-S", "-c", PARENT, json.dumps([sys.executable, *arguments])]
    done = subprocess.run(told, capture_output=True, text=True, check=True)
    *printed, used = done.stdout.splitlines()
    wall, on_core, peak, status = json.loads(used)
    last = printed[-1] if printed and (what.startswith("report") or status) else ""
    print(f"  {what}: {wall:.2f} s ({on_core:.2f} s on a core), peak {peak / 1e6:.2f} GB {last}", flush=True)


def rewrite(run: RunFolder) -> None:
    """Inside a process: what a campaign does after an iteration, the first time and again."""
    times = []
    for _ in range(2):
        begin, on_core = time.perf_counter(), time.process_time()
        state = collect(run)
        keep_states(run, state)
        write_metrics(run, state)
        write_report(run)
        times.append(f"{time.perf_counter() - begin:.2f} s ({time.process_time() - on_core:.2f} s on a core)")
    print(f"- rewritten in {times[0]}, again in {times[1]}")


if __name__ == "__main__":
    main()
