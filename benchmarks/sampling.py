"""How fast does prefloop sample, compared with a bare vLLM loop over the same prompts on the same machine?

In: a campaign's settings. Out: tokens/s of both, round by round, and their ratio. Every measurement has a process of
its own, and only one of the two is alive at a time; which comes first changes from round to round.

    prefloop  what the campaign does: a worker process, one generate call per shard, a seed for every response,
              log-probs, Parquet files. Timed in the driver, from the first shard handed out to the last one written.
    bare      what a plain script does: `LLM(...)` and one `llm.generate(prompts, SamplingParams(n=...))`, with vLLM's
              defaults but for dtype, max_model_len, max_num_seqs, enforce_eager and KV-cache space. Only the generate
              call is timed; nothing is written.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.campaign.stages.take_prompts import slice_for
from loop.config.load import load_config
from loop.config.settings import Config
from loop.engines.base import chosen_engine
from loop.errors import UserError
from loop.prompts.chat_template import chat_format, render
from loop.prompts.row import PromptRow
from loop.prompts.sets import build_prompt_sets
from loop.workers.process import Job, Worker, call, last_lines
from loop.workers.sampling_service import SampleTask
from loop.workers.shards import shard_size

SIDES = ("prefloop", "bare")


@dataclass(frozen=True, slots=True)
class Timed:
    """One measurement; `generate` is the part of the seconds spent inside vLLM's generate calls."""

    tokens: int
    seconds: float
    generate: float

    @property
    def speed(self) -> float:
        """Sampled tokens per second."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Work:
    """What both sides sample: a warm-up that is not timed, then the round's prompts."""

    config: Config
    model: Path
    warm: Sequence[PromptRow]
    prompts: Sequence[PromptRow]
    folder: Path


# ---- prefloop ----


def time_prefloop(work: Work) -> Timed:
    """Sample the shards in a worker process, as the sample stage does."""
    config = work.config
    settings = {"settings": config.engine, "chat": chat_format(config.model)}
    engine = make_worker("engine", "loop.workers.sampling_service:EngineService", settings, work.folder)
    size = config.sampling.shard_prompts or shard_size(config, config.sampling.n)
    starts = range(0, len(work.prompts), size)
    shards = [sample_task(work, f"shard-{start}", work.prompts[start : start + size]) for start in starts]
    try:
        call(engine, Job("warming up", "sample", {"task": sample_task(work, "warm-up", work.warm)}))
        started = time.perf_counter()
        results = [call(engine, Job(f"sampling {task.name}", "sample", {"task": task})) for task in shards]
        seconds = time.perf_counter() - started
    finally:
        engine.close()
    return Timed(sum(r.tokens for r in results), seconds, sum(r.generate for r in results))


def sample_task(work: Work, name: str, rows: Sequence[PromptRow]) -> SampleTask:
    """One shard; the policy's hash only has to be the same in all of them."""
    sampling = work.config.sampling
    return SampleTask(
        name=name,
        path=work.folder / f"{name}.parquet",
        prompts=tuple(rows),
        temperatures=(sampling.temperature,) * sampling.n,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed_words=(work.config.seed, "benchmark"),
        policy=work.model,
        policy_hash="benchmark",
    )


def make_worker(name: str, service: str, arguments: dict[str, Any], folder: Path) -> Worker:
    """A worker as the campaign has it, but a failure is not tried again."""
    return Worker(name, service, arguments, folder / f"{name}.log", 900.0, 0, lambda *_, **__: None)


# ---- bare vLLM ----


def time_bare(work: Work) -> Timed:
    """Run this file again as a plain vLLM script, and read what it measured."""
    job, result, log = (work.folder / name for name in ("bare.json", "bare-result.json", "bare.log"))
    rows = {name: [row.messages for row in getattr(work, name)] for name in ("warm", "prompts")}
    told = {"config": work.config.model_dump(mode="json"), "model": str(work.model), "result": str(result), **rows}
    job.write_text(json.dumps(told), encoding="utf-8")
    space = str(max(1, round(work.config.engine.memory_gib)))  # as prefloop's engine rounds it
    environment = {"VLLM_CPU_KVCACHE_SPACE": space, **os.environ}
    with log.open("wb") as file:
        command = [sys.executable, __file__, "--bare", str(job)]
        done = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False)
    if done.returncode or not result.exists():
        raise UserError(f"The bare vLLM script ended with code {done.returncode}. Its last words:\n{last_lines(log)}")
    return Timed(**json.loads(result.read_text(encoding="utf-8")))


def bare_script(job: Path) -> None:
    """The plain script: one LLM, one generate call; what it measured goes to the file that the job names."""
    import torch
    from vllm import LLM, SamplingParams

    told = json.loads(job.read_text(encoding="utf-8"))
    config = Config.model_validate(told["config"])
    engine, sampling, on_gpu = config.engine, config.sampling, torch.cuda.is_available()
    llm = LLM(
        told["model"],
        dtype="bfloat16" if engine.dtype == "auto" else engine.dtype,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.batch,
        enforce_eager=not on_gpu,
        **({"gpu_memory_utilization": engine.gpu_memory_share} if on_gpu else {}),
    )
    warm, prompts = (rendered(llm.get_tokenizer(), told[name], config) for name in ("warm", "prompts"))
    params = SamplingParams(
        n=sampling.n, temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_tokens
    )
    llm.generate(warm, params)
    started = time.perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - started
    tokens = sum(len(response.token_ids) for output in outputs for response in output.outputs)
    measured = {"tokens": tokens, "seconds": seconds, "generate": seconds}
    Path(told["result"]).write_text(json.dumps(measured), encoding="utf-8")


def rendered(tokenizer: Any, prompts: list[list[dict[str, str]]], config: Config) -> list[Any]:
    """The same token ids as prefloop's; prompts that are too long for the engine are left out, as there."""
    room = config.engine.max_model_len - config.sampling.max_tokens
    rows = [PromptRow("", messages, None, {}) for messages in prompts]
    found = [render(tokenizer, row, chat_format(config.model)) for row in rows]
    return [{"prompt_token_ids": ids} for ids in found if len(ids) <= room]


# ---- rounds and report ----


def run_rounds(config: Config, prompts: int, rounds: int, folder: Path) -> dict[str, list[Timed]]:
    """Measure both sides in every round, each round on prompts of its own."""
    print("preparing prompts and model", flush=True)
    trainer = make_worker("trainer", "loop.workers.train_service:TrainService", {}, folder)
    try:
        model, _ = call(trainer, Job("finding the model", "base", {"base": config.model.base}))
    finally:
        trainer.close()
    sets = build_prompt_sets(config.prompts, config.seed)
    ids = [row.id for row in sets.train]
    warm = sets.gate[: max(1, config.engine.batch // config.sampling.n)]
    measured: dict[str, list[Timed]] = {side: [] for side in SIDES}
    for k in range(1, rounds + 1):
        rows = [sets.train[i] for i in slice_for(k, ids, prompts, config.seed)]
        for side in SIDES if k % 2 else reversed(SIDES):
            own = folder / f"round-{k}-{side}"
            own.mkdir()
            work = Work(config, model, warm, rows, own)
            timed = time_prefloop(work) if side == "prefloop" else time_bare(work)
            measured[side].append(timed)
            print(f"round {k}  {side:<8}  {in_words(timed)}", flush=True)
    return measured


def in_words(timed: Timed) -> str:
    """One measurement as a line's end."""
    inside = f"{100 * timed.generate / timed.seconds:.1f} % of it inside generate"
    return f"{timed.speed:7.1f} tokens/s  ({timed.tokens} tokens in {timed.seconds:.1f} s, {inside})"


def summary(measured: dict[str, list[Timed]]) -> dict[str, Any]:
    """Medians, and the ratio prefloop/bare of every round with its median and range."""
    speeds = {side: [timed.speed for timed in rounds] for side, rounds in measured.items()}
    ratios = [ours / bare for ours, bare in zip(speeds["prefloop"], speeds["bare"], strict=True)]
    return {
        "tokens_per_second": speeds,
        "median": {side: statistics.median(found) for side, found in speeds.items()},
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "rounds": ratios},
    }


def print_summary(found: dict[str, Any]) -> None:
    """The last lines, for a person."""
    ratio, median = found["ratio"], found["median"]
    print(f"\nmedian    prefloop {median['prefloop']:.1f} tokens/s, bare vLLM {median['bare']:.1f} tokens/s")
    print(f"ratio     {ratio['median']:.3f} (rounds from {ratio['low']:.3f} to {ratio['high']:.3f})")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare prefloop's sampling speed with a bare vLLM loop.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, as in prefloop run")
    parser.add_argument("--config", default="quickstart", help="a YAML file or a shipped config (default: quickstart)")
    parser.add_argument("--prompts", type=int, default=224, help="prompts in a round (default: 224)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each on other prompts (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)  # how this file starts itself as the plain script
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    told = arguments()
    if told.bare:
        bare_script(told.bare)
        return
    if told.prompts < 1 or told.rounds < 1:
        sys.exit("benchmark: --prompts and --rounds are whole numbers of at least 1.")
    rounds = [f"iterations={told.rounds}", f"prompts.per_iteration={told.prompts}"]
    enough = f"prompts.train={told.prompts * told.rounds}"
    try:
        config = load_config(told.config, [*told.overrides, *rounds, enough]).base
        if chosen_engine(config.engine) != "vllm":
            raise UserError("This compares with vLLM, which is not installed or not chosen: see docs/install.md.")
        with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-") as folder:
            found = summary(run_rounds(config, told.prompts, told.rounds, Path(folder)))
    except UserError as error:
        sys.exit(f"\nbenchmark: {error}")
    print_summary(found)
    if told.json:
        told.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
