"""The pairs of the training benchmark: problems of GSM8K, whose rejected responses are solutions of other problems, so
that no prefix is shared."""

import random
from pathlib import Path
from typing import Any

from sides import Job


def make_groups(problems: list[dict[str, str]], model: Path, job: Job) -> list[Job]:
    """Prompts with their responses and pairs (as indices), as token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rng = random.Random(job["seed"])
    groups = []
    for problem in rng.sample(problems, job["prompts"]):
        others = rng.sample(problems, job["responses"])
        texts = [problem["answer"], *(other["answer"] for other in others if other is not problem)][: job["responses"]]
        messages = [{"role": "user", "content": problem["question"]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        responses = [
            [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts
        ]
        right = max(1, 3 * job["responses"] // 8)  # 3 of 8 and 5 of 8 give 15 different pairs
        pairs = [(k % right, right + k % (job["responses"] - right)) for k in range(job["pairs"])]
        groups.append({"prompt": prompt, "responses": responses, "pairs": pairs})
    return groups


def separate_tokens(groups: list[Job]) -> int:
    """Tokens of all pairs as separate sequences."""
    return sum(
        len(group["prompt"]) + len(group["responses"][side])
        for group in groups
        for pair in group["pairs"]
        for side in pair
    )


def preference_data(groups: list[Job]) -> Any:
    """The groups as the trainer takes them."""
    from trainer.data import Pair, PreferenceData, PromptGroup, Response

    prompts, pairs = [], []
    for g, group in enumerate(groups):
        responses = tuple(Response(str(r), ids) for r, ids in enumerate(group["responses"]))
        prompts.append(PromptGroup(str(g), group["prompt"], responses))
        pairs += [Pair(str(g), str(chosen), str(rejected)) for chosen, rejected in group["pairs"]]
    return PreferenceData(tuple(prompts), tuple(pairs))


def planned_pairs(job: Job) -> list[Job]:
    """The pairs in the order in which prefloop trains them."""
    from trainer.settings import TrainSettings
    from trainer.tree.rows import plan_rows

    groups, data = job["groups"], preference_data(job["groups"])
    settings = TrainSettings(batch_pairs=job["batch_pairs"], row_tokens=job["row_tokens"])
    plan = plan_rows(data, settings, seed=0, layout="tree")
    found = []
    for at in plan.order:
        for row in plan.steps[at].rows:
            for relation in row.relations:
                pair = data.relations[relation.index]
                group = groups[int(pair.prompt_id)]
                chosen, rejected = (group["responses"][int(id)] for id in pair.responses)
                found.append({"prompt_ids": group["prompt"], "chosen_ids": chosen, "rejected_ids": rejected})
    return found
