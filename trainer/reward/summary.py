"""Metrics and reports of a reward model: a JSON record, and a README.md that describes the model, how well it orders
held-out pairs and how to load it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.losses.reward import bradley_terry

SUMMARY = "reward_summary.json"

CARD = """\
---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, prefloop]
---
# Reward model

{described}Trained on {pairs} pairs in {steps} optimizer steps ({precision}) with the Bradley-Terry loss
`-log sigmoid(r_chosen - r_rejected - margin)`. Only differences of rewards for the same prompt mean anything.

{table}
## Use

The input is the prompt as its chat template renders it, followed by the response with its end token. Pad with the pad
token of this tokenizer (its id is in `config.json`): with another one the reward of a batch would be read elsewhere.

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(FOLDER).eval()
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
rewards = model(**batch).logits[:, 0]
```
"""
MEANINGS = {
    "accuracy": "share of pairs in which the chosen response has the higher reward",
    "margin": "mean of chosen minus rejected reward",
    "loss": "Bradley-Terry loss; 0.693 knows nothing",
    "calibration_error": "expected calibration error of sigmoid of the difference",
    "reward_mean": "mean over all rewards",
    "reward_spread": "their standard deviation",
}


@dataclass(frozen=True, slots=True)
class RewardSummary:
    """A finished reward model in numbers."""

    steps: int
    pairs: int
    """Pairs trained on, each counted once whatever the epochs."""
    held_out: int
    """Pairs that were only measured."""
    dropped: dict[str, int]
    """Pairs left out, by reason."""
    layout: str
    layout_gap: float | None
    """Largest difference between tree and plain rows in the probe, as a share of the hidden states' size."""
    padding_gap: float
    """Largest difference between these rewards and those of transformers for a padded batch, as a share of their
    size."""
    precision: str
    tokens: int
    """Tokens that training read, over all steps."""
    before: dict[str, float] | None
    """What the untrained model says of the held-out pairs (`describe_rewards`); None without any."""
    after: dict[str, float] | None
    first: dict[str, Any]
    last: dict[str, Any]
    """Metrics of the first and last step."""
    seconds: dict[str, float]
    """By part: load, plan, measure, compute, checkpoint, save (over all attempts whose work was kept)."""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"notes": list(self.notes)}


def write_card(folder: Path, described: str, summary: RewardSummary) -> None:
    """Write README.md into the model folder."""
    numbers = {"pairs": summary.pairs, "steps": summary.steps, "precision": summary.precision}
    text = CARD.format(table=_table(summary), described=f"{described}\n\n" if described else "", **numbers)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _table(summary: RewardSummary) -> str:
    before, after = summary.before, summary.after
    if not before or not after:
        return "No pairs were held out, so nothing is known of pairs that it was not trained on.\n"
    rows = [f"| {name} | {before[name]:.3f} | {after[name]:.3f} | {about} |" for name, about in MEANINGS.items()]
    head = f"On {summary.held_out} held-out pairs of other prompts:\n\n| | before | after | |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


BINS = 10


def describe_rewards(reward_w: Tensor, reward_l: Tensor) -> dict[str, float]:
    """[P] and [P] to means over the pairs, and mean and spread over all rewards.

    `accuracy` counts a tie as a half; `loss` is the Bradley-Terry loss without margin and centring (ln 2 knows
    nothing)."""
    gap_P = (reward_w - reward_l).double()
    rewards = torch.cat([reward_w, reward_l]).double()
    return {
        "pairs": float(len(gap_P)),
        "accuracy": float(((gap_P > 0) + 0.5 * (gap_P == 0)).mean()),
        "margin": float(gap_P.mean()),
        "loss": float(bradley_terry(reward_w.double(), reward_l.double(), margin=0.0, centre=0.0).mean()),
        "calibration_error": calibration_error(gap_P),
        "reward_mean": float(rewards.mean()),
        "reward_spread": float(rewards.std(correction=0)),
    }


def calibration_error(gap_P: Tensor) -> float:
    """Expected calibration error of `σ(|gap|)`, the model's belief in the response that it prefers, against how often
    that is the chosen one: `sum_b |B_b|/P |accuracy(B_b) - confidence(B_b)|` over ten equal bins of [1/2, 1], eq. 3 of
    arXiv:1706.04599. 0 is perfect; ties are right half of the time."""
    confidence_P = torch.sigmoid(gap_P.abs())
    right_P = (gap_P > 0) + 0.5 * (gap_P == 0)
    bin_P = ((confidence_P - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    off_B = torch.zeros(BINS, dtype=torch.double).index_add_(0, bin_P, right_P.double() - confidence_P.double())
    return float(off_B.abs().sum() / len(gap_P))
