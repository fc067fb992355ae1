"""How long does the report of a large run take, and how much memory? Makes up a run folder, then writes its report as
`prefloop report RUN` does.

In: how many responses. Out: seconds and peak memory of the report, in a process of its own, and the sizes of the page
and of its data.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loop.report.page import write_report
from loop.store.run_folder import RunFolder
from tests.helpers.made_runs import Made, make_run

ITERATIONS, EACH, TEST = 3, 8, 200


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=100_000, help="training responses of the run")
    parser.add_argument("--tokens", type=int, default=60, help="of a response")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.run:
        return report(told.run)
    with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-") as folder:
        prompts = told.samples // (ITERATIONS * EACH)
        made = Made(iterations=ITERATIONS, train=prompts, gate=TEST, test=TEST, n=EACH, tokens=told.tokens, shard=512)
        run = make_run(Path(folder) / "run", made)
        print(f"{ITERATIONS} iterations of {prompts} prompts with {EACH} responses of {told.tokens} tokens", flush=True)
        subprocess.run([sys.executable, __file__, "--run", str(run.root)], check=True)


def report(root: Path) -> None:
    """Inside the process: write it."""
    imports = peak()
    begin, on_core = time.perf_counter(), time.process_time()
    page = write_report(RunFolder(root))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - on_core
    data = sum(path.stat().st_size for path in root.rglob("data-*.js"))
    print(
        f"report in {seconds:.1f} s ({cpu:.1f} s on a core), peak {peak():.2f} GB ({imports:.2f} GB of it imports); "
        f"page {page.stat().st_size / 1e6:.2f} MB, data beside it {data / 1e6:.0f} MB"
    )


def peak() -> float:
    """The most this process has held so far, in 10⁹ bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    main()
