"""Room loop, the stage eval: a model answers the gate and test prompts; metrics with intervals go to metrics.json."""

import time
from typing import Any

from loop.config import Config
from loop.context import Campaign, Model
from loop.crew import Shard, shard_size
from loop.evaluation import measure, read_answers
from loop.files import read_json, to_json, write_file
from loop.prompts import PromptRow
from loop.runfolder import StageFolder
from loop.sampler import SampleTask
from loop.stages.evaluate_preferences import preference_eval_stage
from loop.stages.sample import engine_inputs, judge_usage, label_seconds, response_counts


def eval_stage(
    campaign: Campaign, k: int, model: Model, sets: dict[str, list[PromptRow]], attempt: int = 1
) -> dict[str, Any]:
    """Measure a model on the gate and test prompts; returns {"gate": metrics, "test": metrics}."""
    if campaign.crew.eval_judge is None:
        return preference_eval_stage(campaign, k, model, sets, attempt)
    config, folder = campaign.base, campaign.run.stage(k, "eval", attempt)
    inputs = {
        "seed": config.seed,
        "eval.samples": config.eval.samples,
        "eval.temperature": config.eval.temperature,
        "eval.max_tokens": eval_tokens(config),
        "pairs.correct_at": config.pairs.correct_at,
        "promote.confidence": config.promote.confidence,
        **engine_inputs(config),
        "judge": campaign.eval_judge,
        "made from": {"prompts": campaign.prompts_digest, "policy": model.hash},
    }
    if campaign.finished(folder, inputs):
        return dict(read_json(folder.metrics))
    campaign.begin_work()
    started = time.perf_counter()
    shards = {name: eval_shards(campaign, folder, config, model, name, sets[name]) for name in ("gate", "test")}
    everything = [shard for part in shards.values() for shard in part]
    title = "evaluate the base model" if k == 0 else "evaluate"
    with campaign.bar(folder, title, sum(s.responses for s in everything), "responses") as bar:
        labelled = campaign.crew.label(everything, campaign.crew.eval_judge, bar)
    metrics = {
        name: measure(
            read_answers([s.task.path for s in part], [s.verdicts for s in part], config.pairs.correct_at),
            config.promote.confidence,
        )
        for name, part in shards.items()
    }
    write_file(folder.metrics, to_json(metrics))
    files = [path for s in everything for path in (s.task.path, s.verdicts)]
    counts = {
        name: response_counts([s.task.path for s in part], len(sets[name])) | judge_usage([s.verdicts for s in part])
        for name, part in shards.items()
    }
    campaign.finish(
        folder, [*files, folder.metrics], inputs=inputs, counts=counts, seconds=label_seconds(labelled, started)
    )
    return metrics


def eval_tokens(config: Config) -> int:
    """Longest response of an evaluation."""
    return config.eval.max_tokens or config.sampling.max_tokens


def eval_shards(
    campaign: Campaign, folder: StageFolder, config: Config, model: Model, name: str, rows: list[PromptRow]
) -> list[Shard]:
    """The shards of one prompt set: per prompt one greedy response and `eval.samples` sampled ones, same seeds for all
    models."""
    temperatures = (0.0, *(config.eval.temperature,) * config.eval.samples)
    size = shard_size(config, len(temperatures))
    shards = []
    for number, start in enumerate(range(0, len(rows), size)):
        task = SampleTask(
            name=f"{name} shard {number} of the evaluation of {model}",
            path=folder.shard(number, name),
            prompts=tuple(rows[start : start + size]),
            temperatures=temperatures,
            top_p=1.0,
            max_tokens=eval_tokens(config),
            seed_words=(config.seed, "eval", name),
            policy=model.path,
            policy_hash=model.hash,
        )
        shards.append(Shard(task, folder.shard(number, f"{name}-verdicts")))
    return shards
