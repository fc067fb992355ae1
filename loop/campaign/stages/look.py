"""Further looks at the gate prompts, which `promote.more_samples` asks for while a decision is open: candidate and
incumbent answer them again with new seeds. What a model answered is kept with its iteration for later decisions."""

import time
from collections.abc import Mapping
from dataclasses import replace

from loop.campaign.context import Iteration
from loop.campaign.stages.evaluate import as_in_eval, eval_inputs, results, shards_to_measure
from loop.campaign.stages.sample import judge_usage, label_seconds, response_counts
from loop.measure.evaluation import together
from loop.store.files import to_json, write_file
from loop.store.model_refs import Model
from loop.store.run_records import AttemptRecord, Evaluation, SetMetrics, read_record
from loop.store.stage import LOOKS


def look_stage(it: Iteration, model: Model, attempt: int, look: int) -> SetMetrics:
    """Sample a model on the gate prompts once more; `look` is 2 for the first time after its evaluation. Finished ones
    are read."""
    campaign, more = it.campaign, it.config.promote.more_samples
    assert more is not None, "only more_samples asks for further looks"
    config, rows = campaign.base, it.prompts["gate"]
    folder = campaign.run.stage(model.iteration, LOOKS[look - 2], attempt)
    inputs = eval_inputs(campaign, model) | {"promote.more_samples.samples": more.samples}
    if campaign.finished(folder, inputs):
        return read_record(folder.metrics, SetMetrics)
    campaign.begin_work()
    started = time.perf_counter()
    temperatures = (config.eval.temperature,) * more.samples
    named = f"look {look} at {model}"
    shards = as_in_eval(
        config, shards_to_measure(config, folder, model, "gate", rows, temperatures, folder.stage, named)
    )
    title = f"sample the gate prompts again, {model.named}"
    with campaign.bar(folder, title, sum(s.task.responses for s in shards), "responses") as bar:
        labelled = campaign.pool.label(shards, campaign.pool.eval_judge, bar)
    metrics = results(shards, config)
    write_file(folder.metrics, to_json(metrics.as_json()))
    files = [path for s in shards for path in (s.task.path, s.verdicts)]
    counts = response_counts([s.task.path for s in shards], len(rows)) | judge_usage([s.verdicts for s in shards])
    seconds = label_seconds(labelled, started)
    campaign.finish(folder, [*files, folder.metrics], inputs=inputs, counts=counts, seconds=seconds)
    return metrics


def look_again(
    it: Iteration, candidate: Model, attempt: int, look: int, evaluations: Mapping[int, Evaluation]
) -> dict[int, Evaluation]:
    """The evaluations with one more look at the candidate and at its incumbent."""
    incumbent, confidence = it.models.incumbent, it.campaign.base.promote.confidence
    found = dict(evaluations)
    for model, number in ((candidate, attempt), (incumbent, it.campaign.run.attempts(incumbent.iteration))):
        before = found[model.iteration]
        gate = together(before.gate, look_stage(it, model, number, look), confidence)
        found[model.iteration] = replace(before, gate=gate)
    return found


def with_earlier_looks(it: Iteration, evaluations: Mapping[int, Evaluation]) -> dict[int, Evaluation]:
    """The evaluations, those of earlier models with all looks that they had. The incumbent has none: it gets them
    together with the candidate, so that a resumed decision sees what it saw before."""
    found, run, confidence = dict(evaluations), it.campaign.run, it.campaign.base.promote.confidence
    for k in evaluations.keys() - {it.k, it.models.incumbent.iteration}:
        folders = [folder for name in LOOKS if (folder := run.latest(k, name)).manifest() is not None]
        for folder in folders:
            gate = together(found[k].gate, read_record(folder.metrics, SetMetrics), confidence)
            found[k] = replace(found[k], gate=gate)
    return found


def looks_of(it: Iteration, candidate: Model, attempt: int, decided: AttemptRecord) -> None:
    """Check the looks that decided on an attempt; those whose files are gone are sampled again."""
    incumbent = it.models.incumbent
    for look in range(2, len(decided.looks) + 1):
        look_stage(it, candidate, attempt, look)
        look_stage(it, incumbent, it.campaign.run.attempts(incumbent.iteration), look)
