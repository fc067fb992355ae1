"""Records of a trained reward model: JSON, and a README.md with its results and how to load it. No torch here."""

from pathlib import Path

from pydantic import BaseModel

from trainer.settings import FROZEN
from trainer.summary import StepMetrics

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


class RewardMetrics(BaseModel):
    """How a reward model orders some pairs."""

    model_config = FROZEN

    pairs: float
    """How many pairs."""
    accuracy: float
    """Share of pairs in which the chosen response has the higher reward; a tie counts half."""
    margin: float
    """Mean of chosen minus rejected reward."""
    loss: float
    """Bradley-Terry loss without margin and centring; ln 2 for a model that knows nothing."""
    calibration_error: float
    """Expected calibration error of the sigmoid of the difference."""
    reward_mean: float
    """Mean over all rewards."""
    reward_spread: float
    """Standard deviation of all rewards."""


MEANINGS = {
    "accuracy": "share of pairs in which the chosen response has the higher reward",
    "margin": "mean of chosen minus rejected reward",
    "loss": "Bradley-Terry loss; 0.693 for a model that knows nothing",
    "calibration_error": "expected calibration error of sigmoid of the difference",
    "reward_mean": "mean over all rewards",
    "reward_spread": "their standard deviation",
}


class RewardSummary(BaseModel):
    """A finished reward model in numbers."""

    model_config = FROZEN

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
    before: RewardMetrics | None
    """The untrained model on the held-out pairs; None without any."""
    after: RewardMetrics | None
    """The trained model on the same pairs."""
    first: StepMetrics
    last: StepMetrics
    """Metrics of the first and last step."""
    seconds: dict[str, float]
    """By part: load, plan, measure, compute, checkpoint, save (over all attempts whose work was kept)."""
    notes: tuple[str, ...] = ()


def write_card(folder: Path, described: str, summary: RewardSummary) -> None:
    """Write README.md into the model folder."""
    numbers = {"pairs": summary.pairs, "steps": summary.steps, "precision": summary.precision}
    text = CARD.format(table=_table(summary), described=f"{described}\n\n" if described else "", **numbers)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _table(summary: RewardSummary) -> str:
    before, after = summary.before, summary.after
    if before is None or after is None:
        return "No pairs were held out, so it is not known how well the model orders other pairs.\n"
    rows = [
        f"| {name} | {getattr(before, name):.3f} | {getattr(after, name):.3f} | {about} |"
        for name, about in MEANINGS.items()
    ]
    head = f"On {summary.held_out} held-out pairs of other prompts:\n\n| | before | after | |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"
