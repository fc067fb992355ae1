"""Stage eval: a model answers the gate and test prompts; metrics with confidence intervals go to metrics.json."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loop.campaign.context import Campaign, Iteration, keys
from loop.campaign.stages.answer_log_probs import score, tokenise
from loop.campaign.stages.sample import engine_inputs, judge_usage, label_seconds, response_counts
from loop.config.sampling_section import DecodingOptions
from loop.config.settings import Config
from loop.measure.evaluation import Names, measure, measure_preferences, read_answers, read_evaluation
from loop.pairing.data_answers import GivenPair, answers_of, given_pairs
from loop.prompts.row import PromptRow
from loop.store.files import to_json, write_file
from loop.store.model_refs import Model
from loop.store.run_records import Evaluation, SetMetrics
from loop.store.stage import StageFolder
from loop.workers.measure_service import read_logps
from loop.workers.sampling_service import SampleTask
from loop.workers.shards import Shard, shard_size

SETS = ("gate", "test")


def preference_eval_stage(it: Iteration, model: Model, attempt: int = 1) -> Evaluation:
    """Measure a model on the held-out pairs."""
    campaign, k, sets = it.campaign, it.k, it.prompts
    folder, base = it.folder("eval", attempt), campaign.run.stage(0, "eval")
    made_from = {"prompts": campaign.prompts_digest, "policy": model.hash}
    if k:
        manifest = base.manifest()
        assert manifest is not None, "the base model is evaluated first"
        made_from["base"] = manifest.digest
    inputs = {"promote.confidence": campaign.base.promote.confidence, "judge": {}, "made from": made_from}
    if campaign.finished(folder, inputs):
        return read_evaluation(folder.metrics)
    campaign.begin_work()
    started = time.perf_counter()
    pairs = {name: [pair for row in sets[name] for pair in given_pairs(row)] for name in SETS}
    answers = {name: base.held_out(name) for name in SETS}
    for name in SETS if k == 0 else ():
        tokenise(campaign, answers_of(pairs[name]), answers[name])
    logps = {answers[name]: folder.logps(name) for name in SETS}
    title = "evaluate the base model" if k == 0 else "evaluate"
    computed = score(campaign, folder, title, model.path, logps)
    metrics = Evaluation(*(_measured(campaign, pairs[name], folder.logps(name), base.logps(name)) for name in SETS))
    write_file(folder.metrics, to_json(metrics.as_json()))
    files = [folder.metrics, *logps.values(), *(answers.values() if k == 0 else ())]
    counts = {name: {"prompts": len(sets[name]), "pairs": len(pairs[name])} for name in SETS}
    seconds = {"wall": time.perf_counter() - started, **computed}
    campaign.finish(folder, files, inputs=inputs, counts=counts, seconds=seconds)
    return metrics


def _measured(campaign: Campaign, pairs: Sequence[GivenPair], own: Path, base: Path) -> SetMetrics:
    names: list[Names] = [(p.chosen.prompt.id, p.chosen.response_id, p.rejected.response_id) for p in pairs]
    return measure_preferences(names, read_logps(own), read_logps(base), campaign.base.promote.confidence)


def eval_stage(it: Iteration, model: Model, attempt: int = 1) -> Evaluation:
    """Measure a model on the gate and test prompts."""
    campaign = it.campaign
    if campaign.pool.eval_judge is None:
        return preference_eval_stage(it, model, attempt)
    config, folder = campaign.base, it.folder("eval", attempt)
    inputs = eval_inputs(campaign, model)
    if campaign.finished(folder, inputs):
        return read_evaluation(folder.metrics)
    campaign.begin_work()
    started = time.perf_counter()
    shards = {name: eval_shards(config, folder, model, name, it.prompts[name]) for name in SETS}
    everything = [shard for part in shards.values() for shard in part]
    title = "evaluate the base model" if it.k == 0 else "evaluate"
    with campaign.bar(folder, title, sum(s.task.responses for s in everything), "responses") as bar:
        labelled = campaign.pool.label(everything, campaign.pool.eval_judge, bar)
    metrics = Evaluation(*(results(shards[name], config) for name in SETS))
    write_file(folder.metrics, to_json(metrics.as_json()))
    files = [path for s in everything for path in (s.task.path, s.verdicts)]
    counts = {
        name: response_counts([s.task.path for s in part], len(it.prompts[name]))
        | judge_usage([s.verdicts for s in part])
        for name, part in shards.items()
    }
    campaign.finish(
        folder, [*files, folder.metrics], inputs=inputs, counts=counts, seconds=label_seconds(labelled, started)
    )
    return metrics


def eval_inputs(campaign: Campaign, model: Model) -> dict[str, Any]:
    """What decides a judged evaluation of the model."""
    config = campaign.base
    return {
        "seed": config.seed,
        "eval.samples": config.eval.samples,
        "eval.temperature": config.eval.temperature,
        "eval.max_tokens": eval_tokens(config),
        **({} if config.eval.top_p == 1 else keys("eval", config.eval, ("top_p",))),
        **{f"eval.{name}": value for name, value in config.eval_options.given().items()},
        "pairs.correct_at": config.pairs.correct_at,
        "promote.confidence": config.promote.confidence,
        **engine_inputs(config),
        "judge": campaign.eval_judge,
        "made from": {"prompts": campaign.prompts_digest, "policy": model.hash},
    }


def results(shards: Sequence[Shard], config: Config) -> SetMetrics:
    """The metrics of judged shards of one prompt set."""
    answers = read_answers([s.task.path for s in shards], [s.verdicts for s in shards], config.pairs.correct_at)
    return measure(answers, config.promote.confidence)


def eval_tokens(config: Config) -> int:
    """Maximum response length in an evaluation, in tokens."""
    return config.eval.max_tokens or config.sampling.max_tokens


def eval_shards(config: Config, folder: StageFolder, model: Model, name: str, rows: list[PromptRow]) -> list[Shard]:
    """The shards of one prompt set: one greedy and `eval.samples` sampled responses per prompt."""
    temperatures = (0.0, *(config.eval.temperature,) * config.eval.samples)
    return as_in_eval(
        config, shards_to_measure(config, folder, model, name, rows, temperatures, "eval", f"the evaluation of {model}")
    )


def as_in_eval(config: Config, shards: list[Shard]) -> list[Shard]:
    """The shards, sampled with the options of an evaluation."""
    top_p, options = config.eval.top_p, config.eval_options
    return [replace(shard, task=replace(shard.task, top_p=top_p, options=options)) for shard in shards]


def shards_to_measure(
    config: Config,
    folder: StageFolder,
    model: Model,
    name: str,
    rows: list[PromptRow],
    temperatures: tuple[float, ...],
    purpose: str,
    what: str,
) -> list[Shard]:
    """The shards of what a model is measured on, with the same seeds for all models; nothing is cut from the sampled
    distribution. `what` names it in messages."""
    size = shard_size(config, len(temperatures))
    tasks = [
        SampleTask(
            name=f"{name} shard {number} of {what}",
            path=folder.shard(number, name),
            prompts=tuple(rows[start : start + size]),
            temperatures=temperatures,
            top_p=1.0,
            max_tokens=eval_tokens(config),
            seed_words=(config.seed, purpose, name),
            policy=model.path,
            policy_hash=model.hash,
            options=DecodingOptions(stop_token_ids=config.eval_stops),
        )
        for number, start in enumerate(range(0, len(rows), size))
    ]
    return [Shard(task, folder.shard(number, f"{name}-verdicts")) for number, task in enumerate(tasks)]
