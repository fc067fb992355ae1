"""Room `trainer/`, the model card of a reward model. In: its summary; out: a README.md that says what it is, how well it
orders held-out pairs and how to load it."""

from pathlib import Path
from typing import Any

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


def write_card(folder: Path, described: str, summary: dict[str, Any]) -> None:
    """Write README.md into the model folder."""
    text = CARD.format(table=_table(summary), described=f"{described}\n\n" if described else "", **_plain(summary))
    (folder / "README.md").write_text(text, encoding="utf-8")


def _plain(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in ("pairs", "steps", "precision")}


def _table(summary: dict[str, Any]) -> str:
    before, after = summary["before"], summary["after"]
    if not before or not after:
        return "No pairs were held out, so nothing is known of pairs that it was not trained on.\n"
    rows = [f"| {name} | {before[name]:.3f} | {after[name]:.3f} | {about} |" for name, about in MEANINGS.items()]
    head = f"On {summary['held_out']} held-out pairs of other prompts:\n\n| | before | after | |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"
