"""Command `train-reward`: trains a reward model and prints its summary."""

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loop.config.engine_section import EngineConfig
from loop.config.reward_settings import RewardConfig
from loop.format import duration
from loop.store.run_folder import locked
from loop.view.display import Display, train_progress
from loop.workers.process import Job, Worker, call
from trainer.reward.summary import RewardMetrics, RewardSummary

ROWS = {
    "accuracy": "accuracy, %",
    "margin": "margin",
    "loss": "loss (0.693 knows nothing)",
    "calibration_error": "calibration error",
    "reward_mean": "mean reward",
    "reward_spread": "spread of rewards",
}
"""Rows of the table of held-out pairs: key in the summary, label."""


def print_reward(summary: RewardSummary, out: str, console: Console) -> None:
    """Print the round and how well the model orders held-out pairs."""
    console.print()
    if summary.before and summary.after:
        console.print(_held_out_table(summary.held_out, summary.before, summary.after))
    else:
        console.print("No pairs were held out (train.held_out), so its accuracy on other pairs is unknown.\n")
    for line in _lines(summary, out):
        console.print(line, markup=False, soft_wrap=True)


def _held_out_table(pairs: int, before: RewardMetrics, after: RewardMetrics) -> Table:
    title = f"{pairs} held-out pairs of other prompts"
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title=title, title_justify="left")
    table.add_column("")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for key, words in ROWS.items():
        scale, digits = (100, 1) if key == "accuracy" else (1, 3)
        table.add_row(words, *(f"{scale * getattr(metrics, key):.{digits}f}" for metrics in (before, after)))
    return table


def _lines(summary: RewardSummary, out: str) -> list[str]:
    dropped = ", ".join(f"{count} {reason}" for reason, count in summary.dropped.items()) or "none"
    took = duration(sum(summary.seconds.values()))
    return [
        f"Trained on {summary.pairs} pairs in {summary.steps} steps ({summary.precision}, {summary.layout} rows) in "
        f"{took}; last step: loss {summary.last['loss']:.3f}, accuracy {100 * summary.last['accuracy']:.1f} %. "
        f"Dropped pairs: {dropped}.",
        *(f"Note: {note}." for note in summary.notes),
        f"The model is in {out}",
    ]


def run_reward(config: RewardConfig, display: Display) -> RewardSummary:
    """Train the reward model, or resume. Raises UserError."""
    work, engine, service = work_folder(config), EngineConfig(), "loop.workers.reward_service:RewardService"

    def noted(what: str, **details: Any) -> None:
        if what == "worker_lost":
            display.say(f"  the {details['worker']} worker was lost at {details['job']}: {details['why']}")

    with locked(work, "a reward model"):
        trainer = Worker("trainer", service, {}, work / "trainer.log", engine.stall_seconds, engine.retries, noted)
        try:
            with display.bar("train", 0, "steps") as bar:
                details, progress = {"config": config, "work": work}, train_progress(bar, lambda _: None)
                summary: RewardSummary = call(trainer, Job("the reward model", "train", details, progress))
        except KeyboardInterrupt:
            trainer.stop()
            raise
        finally:
            trainer.close()
    return summary


def work_folder(config: RewardConfig) -> Path:
    """Where checkpoints, step log and the worker's output lie: `OUT.work`."""
    return Path(config.out).with_name(Path(config.out).name + ".work")
