"""How long does the pair stage take, and how much memory? Writes shards of made-up responses and verdicts, then reads
them, pairs them and writes the pairs, as a campaign's pair stage does.

In: counts of responses. Out: seconds and peak memory of each, measured in a process of its own, and what a response
costs at the last count over what it costs at the first: 1 is linear.
"""

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loop.campaign.stages.pair import signal_of
from loop.campaign.stages.sample import response_counts, verdict_counts
from loop.config.pairs_section import PairsConfig
from loop.config.rule_table import RULES
from loop.measure.signal import Tally
from loop.pairing.io import judged_groups, table_of
from loop.pairing.iteration import pair_all
from loop.store import tables
from loop.store.files import sha256_of, write_file

PER_PROMPT = 8
SHARD_PROMPTS = 512
TOKENS = 100
"""Mean length of a response."""


def main() -> None:
    """Entry point."""
    told = arguments()
    found = []
    for responses in told.responses:
        with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-", dir=told.folder) as folder:
            apart(generate, Path(folder), responses)
            found.append(apart(measure, Path(folder), told.rule))
        print(in_words(found[-1]), flush=True)
    if len(found) > 1:
        first, last = (one["cpu"] / one["responses"] for one in (found[0], found[-1]))  # a busy machine changes it less
        print(f"seconds on a core per response, last against first: {last / first:.2f}")
    if told.json:
        told.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--responses", type=int, nargs="+", default=[100_000, 1_000_000], help="smallest first")
    parser.add_argument("--rule", choices=list(RULES), default="correct_vs_wrong", help="pairs.rule, with its defaults")
    parser.add_argument("--folder", type=Path, help="where to put the shards (about 400 bytes a response)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    return parser.parse_args()


def apart(work: Callable[..., Any], *details: Any) -> Any:
    """The result of a function in a fresh process, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, details)


def generate(folder: Path, responses: int) -> None:
    """Shards of responses and verdicts; a prompt's share of correct ones is drawn, so some have none or all."""
    draw, prompts = np.random.default_rng(0), responses // PER_PROMPT
    for name in ("sample", "judge"):
        (folder / name).mkdir()
    for number, start in enumerate(range(0, prompts, SHARD_PROMPTS)):
        ids = [f"{prompt:016x}" for prompt in range(start, min(start + SHARD_PROMPTS, prompts))]
        random.Random(number).shuffle(ids)
        write_shard(folder, f"shard-{number:03d}.parquet", [id for id in ids for _ in range(PER_PROMPT)], draw)


def write_shard(folder: Path, name: str, prompt_ids: list[str], draw: np.random.Generator) -> None:
    """One shard, with the columns that the stage reads."""
    count = len(prompt_ids)
    lengths = draw.geometric(1 / TOKENS, count)
    tokens = draw.integers(0, 50_000, lengths.sum(), dtype=np.int32)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    solved = np.repeat(draw.beta(0.5, 0.5, count // PER_PROMPT), PER_PROMPT)
    ids = [f"{prompt}-{row % PER_PROMPT}" for row, prompt in enumerate(prompt_ids)]
    responses = pa.table(
        {
            "prompt_id": prompt_ids,
            "response_id": ids,
            "index": pa.array(np.arange(count) % PER_PROMPT, pa.int32()),
            "token_ids": pa.ListArray.from_arrays(offsets, tokens),
            "logprobs": pa.ListArray.from_arrays(offsets, draw.random(len(tokens), dtype=np.float32) - 1),
            "finish_reason": np.where(lengths > 4 * TOKENS, "length", "stop").tolist(),
        }
    )
    verdicts = pa.table(
        {
            "response_id": ids,
            "kind": np.where(draw.random(count) < 0.01, "abstain", "score").tolist(),
            "score": (draw.random(count) < solved).astype(np.float64),
            "extracted": ["1"] * count,
            "well_formed": [True] * count,
            "parts": ["{}"] * count,
        }
    )
    (folder / "sample" / name).write_bytes(tables.table_bytes(tables.noted(responses, {"too_long": 0})))
    (folder / "judge" / name).write_bytes(tables.table_bytes(tables.noted(verdicts, {})))


def measure(folder: Path, rule: str) -> dict[str, Any]:
    """One pair stage, from the shards on disk to the written table and its digest, and the counts of the two manifests
    before it."""
    before = peak()
    started, cpu = time.perf_counter(), time.process_time()
    shards = sorted((folder / "sample").iterdir())
    verdicts = [folder / "judge" / path.name for path in shards]
    settings = PairsConfig.model_validate({"rule": rule})
    tally = Tally(settings.correct_at)
    groups = tally.watch(judged_groups(list(zip(shards, verdicts, strict=True))))
    pairing = pair_all(groups, settings, 1)
    signal_of(tally, pairing, shards)
    paired = time.perf_counter()
    out = folder / "made.parquet"
    write_file(out, tables.table_bytes(table_of(pairing.relations, RULES[settings.rule].kind, 1)))
    sha256_of(out)
    counts = response_counts(shards, sum(pairing.prompts.values()))
    assert verdict_counts(verdicts)["score"] <= counts["responses"] == sum(pairing.responses.values())
    ended = time.perf_counter()
    return {
        "rule": rule,
        "responses": counts["responses"],
        "made": len(pairing.relations),
        "wall": ended - started,
        "pairing": paired - started,
        "cpu": time.process_time() - cpu,
        "peak_gb": peak(),
        "imports_gb": before,
    }


def peak() -> float:
    """Most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def in_words(found: dict[str, Any]) -> str:
    """One line for a person."""
    return (
        f"{found['responses']:,} responses, {found['rule']}: {found['made']:,} made in {found['wall']:.1f} s "
        f"({found['pairing']:.1f} s of it reading and pairing; {found['cpu']:.1f} s on a core), "
        f"peak {found['peak_gb']:.2f} GB ({found['imports_gb']:.2f} GB of it imports)"
    )


if __name__ == "__main__":
    main()
