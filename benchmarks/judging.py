"""How many short responses per second does the judge stage label? Reads a generated shard, judges it, writes verdicts.

In: judges' names. Out: responses per second of each, with the time split into reading, judging and writing. What is
timed is one call of `JudgeService.label`, as a campaign's judge worker makes it for each shard: the Parquet file of
responses is on disk before, the one of verdicts is on disk after. One process; nothing is started beside it unless the
judge runs foreign code, which has child processes of its own.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from judges.types import JudgeError
from loop.config.settings import JudgeConfig
from loop.errors import UserError
from loop.prompts.row import PromptRow
from loop.store import tables
from loop.store.files import write_file
from loop.workers.judge_service import JudgeService, JudgeTask, frozen_groups

RESPONSES_PER_PROMPT = 8
LETTERS = "ABCD"
ARGUMENTS: dict[str, dict[str, Any]] = {
    "regex": {"pattern": r"#### (?P<answer>\d+)", "where": "last"},
    "length": {"most": 20},
    "format": {"pattern": r".*#### \d+"},
    "reasoning-gym": {"task": "chain_sum"},
    "combine": {"parts": [{"judge": "gsm8k"}, {"judge": "length", "args": {"most": 20}, "normalise": "standardise"}]},
}
"""What the judges are given; the others need nothing."""


class Timed(NamedTuple):
    """One call: seconds on the clock, and seconds of this process on a core (less, where other work runs beside it)."""

    wall: float
    cpu: float


def main() -> None:
    """Entry point."""
    told = arguments()
    found = {}
    with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-") as folder:
        for name in told.judges:
            try:
                found[name] = measured(name, told.responses, told.rounds, Path(folder))
            except (JudgeError, UserError) as error:
                sys.exit(f"benchmark: {error}")
            print(in_words(name, found[name], told.responses), flush=True)
    if told.json:
        told.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure how fast the judge stage labels short responses.")
    parser.add_argument("judges", nargs="*", default=["gsm8k", "exact"], help="built-in names (default: gsm8k exact)")
    parser.add_argument("--responses", type=whole, default=100_000, help="responses in the shard (default: 100000)")
    parser.add_argument("--rounds", type=whole, default=5, help="times each is measured, after a warm-up (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    return parser.parse_args()


def whole(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def measured(name: str, count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of every round, and one more round taken apart."""
    settings = JudgeConfig(name=name, args=ARGUMENTS.get(name, {}), max_error_share=0.0)
    service = JudgeService(settings, folder / f"{name}.sqlite")
    task = make_shard(name, count, folder)
    timed_label(service, task)
    timed = [timed_label(service, task) for _ in range(rounds)]
    return {
        "responses": count,
        "wall_seconds": [one.wall for one in timed],
        "cpu_seconds": [one.cpu for one in timed],
        "without_judging": input_and_output(task, folder),
    }


def timed_label(service: JudgeService, task: JudgeTask) -> Timed:
    """Judge the shard, as if for the first time."""
    task.path.unlink(missing_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    service.label(task, lambda **_: None)
    return Timed(time.perf_counter() - wall, time.process_time() - cpu)


def input_and_output(task: JudgeTask, folder: Path) -> float:
    """Seconds on a core to read the groups and to write the table of verdicts again."""
    verdicts = tables.read(task.path)
    started = time.process_time()
    with frozen_groups(task.responses, task.prompts):
        write_file(folder / "again.parquet", tables.table_bytes(verdicts))
    return time.process_time() - started


def in_words(name: str, found: dict[str, Any], count: int) -> str:
    """One judge's line."""
    wall, cpu = (sorted(count / seconds for seconds in found[key]) for key in ("wall_seconds", "cpu_seconds"))
    return (
        f"{name:<16} {statistics.median(wall):9,.0f} responses/s (rounds from {wall[0]:,.0f} to {wall[-1]:,.0f}); "
        f"{statistics.median(cpu):,.0f} per second on a core; "
        f"{found['without_judging'] / count * 1e6:.1f} of {1e6 / statistics.median(cpu):.1f} µs are files"
    )


# ---- the shard ----


def make_shard(name: str, count: int, folder: Path) -> JudgeTask:
    """A file of `count` short responses, right, wrong and unparsable ones, with the columns of a real shard."""
    rng = random.Random(0)
    prompts = [make_prompt(name, number, rng) for number in range(-(-count // RESPONSES_PER_PROMPT))]
    rows = [row for prompt in prompts for row in responses_to(name, prompt, rng)][:count]
    path = folder / f"{name}.parquet"
    write_file(path, tables.to_bytes(rows, tables.RESPONSES, {}))
    return JudgeTask(name, path, folder / f"{name}-verdicts.parquet", tuple(prompts))


def make_prompt(name: str, number: int, rng: random.Random) -> PromptRow:
    """A sum, or a question with lettered options."""
    first, second = rng.randrange(1000), rng.randrange(1000)
    target = rng.choice(LETTERS) if name == "multiple-choice" else str(first + second)
    question = f"{first} + {second} ="
    columns = {"question": question, "answer": target, "metadata": {}, "first": first, "second": second}
    return PromptRow(f"prompt-{number:08d}", [{"role": "user", "content": question}], target, columns)


def responses_to(name: str, prompt: PromptRow, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Rows for the table of responses."""
    for index in range(RESPONSES_PER_PROMPT):
        yield {
            "prompt_id": prompt.id,
            "response_id": f"{prompt.id}/{index}",
            "index": index,
            "seed": rng.getrandbits(48),
            "temperature": 1.0,
            "prompt_token_ids": list(range(20)),
            "token_ids": [rng.randrange(30_000) for _ in range(20)],
            "text": response_text(name, prompt.columns, rng),
            "finish_reason": "stop",
            "stop_reason": None,
            "logprobs": [-0.5] * 20,
            "policy_hash": "benchmark",
        }


def response_text(name: str, columns: dict[str, Any], rng: random.Random) -> str:
    """A short answer; about half of them are right, one in eight has none."""
    if name == "multiple-choice":
        said = rng.choice([*LETTERS, columns["answer"], columns["answer"]])
        forms = ["{}", "({})", "The answer is {}.", "It is shorter, so the answer is ({}).", "Answer: {}", "I pass."]
        return rng.choice(forms).format(said)
    first, second = columns["first"], columns["second"]
    said = first + second + rng.choice([0, 0, 0, 1, 10])
    forms = [
        "{2}",
        "{0} + {1} = {2}",
        "The answer is {2}.",
        "She has {0} and gets {1} more.\n{0} + {1} = {2}\n#### {2}",
        "So \\boxed{{{2}}}.",
        "I do not know.",
    ]
    return rng.choice(forms).format(first, second, said)


if __name__ == "__main__":
    main()
