"""Room loop, the stage eval where nothing judges: how likely a model finds the chosen and the rejected answers of the
gate and test prompts, against the base model; metrics with intervals go to metrics.json.

The answers become tokens once, with the base model's evaluation, and every model scores them once: what a candidate's
metrics need of the base model is read from the base model's own evaluation.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loop.answer_scores import read_logps
from loop.context import Campaign, Model
from loop.files import read_json, to_json, write_file
from loop.pairing.given import GivenPair, answers_of, given_pairs
from loop.preference_metrics import Names, measure_preferences
from loop.prompts import PromptRow
from loop.stages.answers import score, tokenise

SETS = ("gate", "test")


def preference_eval_stage(
    campaign: Campaign, k: int, model: Model, sets: Mapping[str, Sequence[PromptRow]], attempt: int = 1
) -> dict[str, Any]:
    """Measure a model on the held-out pairs; returns {"gate": metrics, "test": metrics}."""
    folder, base = campaign.run.stage(k, "eval", attempt), campaign.run.stage(0, "eval")
    made_from = {"prompts": campaign.prompts_digest, "policy": model.hash}
    if k:
        manifest = base.manifest()
        assert manifest is not None, "the base model is evaluated first"
        made_from["base"] = manifest.digest
    inputs = {"promote.confidence": campaign.base.promote.confidence, "judge": {}, "made from": made_from}
    if campaign.finished(folder, inputs):
        return dict(read_json(folder.metrics))
    campaign.begin_work()
    started = time.perf_counter()
    pairs = {name: [pair for row in sets[name] for pair in given_pairs(row)] for name in SETS}
    answers = {name: base.held_out(name) for name in SETS}
    for name in SETS if k == 0 else ():
        tokenise(campaign, answers_of(pairs[name]), answers[name])
    logps = {answers[name]: folder.logps(name) for name in SETS}
    title = "evaluate the base model" if k == 0 else "evaluate"
    computed = score(campaign, folder, title, model.path, logps)
    metrics = {name: _measured(campaign, pairs[name], folder.logps(name), base.logps(name)) for name in SETS}
    write_file(folder.metrics, to_json(metrics))
    files = [folder.metrics, *logps.values(), *(answers.values() if k == 0 else ())]
    counts = {name: {"prompts": len(sets[name]), "pairs": len(pairs[name])} for name in SETS}
    seconds = {"wall": time.perf_counter() - started, **computed}
    campaign.finish(folder, files, inputs=inputs, counts=counts, seconds=seconds)
    return metrics


def _measured(campaign: Campaign, pairs: Sequence[GivenPair], own: Path, base: Path) -> dict[str, Any]:
    names: list[Names] = [(p.chosen.prompt.id, p.chosen.response_id, p.rejected.response_id) for p in pairs]
    return measure_preferences(names, read_logps(own), read_logps(base), campaign.base.promote.confidence)
