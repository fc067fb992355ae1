"""Model card: write the README.md of an exported model from a run folder and an iteration."""

import json

from loop.config.settings import Config, JudgeConfig
from loop.config.yaml_text import to_yaml
from loop.measure.evaluation import metrics_of
from loop.measure.metric_names import iteration_metrics
from loop.redact import publishable
from loop.store.files import to_json, write_file
from loop.store.lineage import read_lineage, settings_of
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json
from loop.store.run_state import PairCounts, TrainCounts
from loop.view.describe import NamedJudge, describe_judge, describe_loss, describe_prompts
from loop.view.status import gains, iteration_state
from loop.view.status_tables import gain_line, with_interval
from trainer.settings import TrainSettings

LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""
LIMITS = """- The results hold for prompts like those of the test set, sampled with the settings above. Nothing else was
  measured: neither other tasks, nor safety, nor what it has forgotten.
- It was trained to please the judge named here. Where the judge errs, the model may have learned the error.
- Several iterations were compared on the gate prompts, and none on the test prompts; a choice among several runs by
  their test results makes the best of them look better than it is.
"""


def model_card(run: RunFolder, k: int) -> str:
    """The card of iteration `k`'s model: lineage, data, judge, training, results with intervals, limits, loading."""
    loaded = settings_of(run)
    sections = {
        "Lineage": _lineage(run, k),
        "Data": f"{publishable(describe_prompts(loaded.base))}.",
        "Judge": _judge(run, k, loaded.base),
        "Training": _training(run, k, loaded.at(k)),
        "Results": _results(run, k, loaded.base),
        "Limits": LIMITS,
        "How to load": LOAD,
        "Settings": f"```yaml\n{to_yaml(publishable(loaded.raw))}```",
    }
    body = "\n\n".join(f"## {title}\n\n{text.strip()}" for title, text in sections.items())
    return f"{_header(loaded.base)}\n# {run.name}, iteration {k}\n\n{body}\n"


def _header(config: Config) -> str:
    """The card's metadata; a base model or data set is named where it has a name on the hub."""
    base, prompts = config.model.base, config.prompts
    values: Json = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    values["tags"] = ["prefloop", "preference-optimization"]
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        values["base_model"] = base
    if prompts.source == "hub":
        values["datasets"] = [prompts.dataset]
    return f"---\n{to_yaml(values)}---\n"


def _lineage(run: RunFolder, k: int) -> str:
    """From the base model to this one: each decision with its reason, and the fork that the run may be."""
    base = run.base()
    lines = [f"- Base model: `{publishable(base.base)}`, hash `{base.policy.hash[:16]}`."]
    if parent := read_lineage(run).parent:
        changes = (
            f"`{c.key}`: " + " → ".join(json.dumps(publishable(value, c.key)) for value in (c.old, c.new))
            for c in parent.changes
        )
        changed = "; ".join(changes) or "nothing changed"
        lines.append(f"- The run is a fork of {parent.place} of `{publishable(parent.run)}` ({changed}).")
    for i in range(1, k + 1):
        decision = run.decision(i)
        if decision is None:
            lines.append(f"- Iteration {i}: not decided yet.")
            continue
        start = decision.start.iteration
        origin = f"iteration {start}" if start else "the base model"
        digest = decision.candidate.hash[:16]
        lines.append(f"- Iteration {i}: trained from {origin}; {decision.reason}. Hash `{digest}`.")
    return "\n".join(lines)


def _judge(run: RunFolder, k: int, config: Config) -> str:
    if config.judge is None:
        how = "asks how often the model prefers the chosen answer of held-out pairs, against the base model"
        if config.eval_judge is not None:
            how = f"was judged by `{publishable(config.eval_judge.name)}`"
        return f"Its pairs are given ({config.prompts.source}). The evaluation {how}."
    manifest = run.stage(k, "judge").manifest()
    version = f", version `{str(manifest.inputs.get('judge', {}).get('version'))[:16]}`" if manifest else ""
    text = f"Responses were labelled by `{_publishable_judge(config.judge)}`{version}."
    if config.eval_judge is not None and config.eval_judge != config.judge:
        text += f" The evaluation was judged by `{_publishable_judge(config.eval_judge)}`."
    return text


def _publishable_judge(judge: JudgeConfig) -> str:
    return describe_judge(NamedJudge(publishable(judge.name), publishable(judge.args)))


def _training(run: RunFolder, k: int, config: Config) -> str:
    pairs, train = (run.latest(k, stage).manifest() for stage in ("pair", "train"))
    assert pairs is not None
    assert train is not None
    t, counts, steps = _settings_of_round(run, k, config), pairs.counted(PairCounts), train.counted(TrainCounts).steps
    kind = counts.kind
    how = f"LoRA of rank {t.lora.rank}, merged" if t.lora else "all weights"
    return (
        f"{counts.pairs} {kind} ({config.pairs.rule}), {steps} steps of {t.batch_pairs} "
        f"{kind}, {describe_loss(t)}, {how}, learning rate {t.learning_rate:g}, reference `{config.reference}`. "
        f"Versions: {', '.join(f'{name} {number}' for name, number in train.versions.items())}."
    )


def _settings_of_round(run: RunFolder, k: int, config: Config) -> TrainSettings:
    """Settings of the decided attempt."""
    decision = run.decision(k)
    changes = decision.attempts[-1].changes if decision else {}
    return TrainSettings.model_validate(config.train.model_dump() | changes)


def _results(run: RunFolder, k: int, config: Config) -> str:
    """This model and the base model on the same test prompts, and the paired difference."""
    base, model = iteration_state(run, 0), iteration_state(run, k)
    confidence, test, before = config.promote.confidence, model.test, base.test
    assert test is not None
    assert before is not None
    lines = ["| in % | base model | this model |", "|---|---|---|"]
    for metric in metrics_of(before, test):
        cells = " | ".join(with_interval(side.metric(metric)) for side in (before, test))
        lines.append(f"| {metric.replace('_', ' ')} | {cells} |")
    compared = [gain_line(metric, gain) for metric, gain in (gains(base, model, confidence) or {}).items()]
    how = (
        f"{test.prompts} held-out test prompts, one greedy response and {config.eval.samples} sampled ones "
        f"(temperature {config.eval.temperature:g}) to each; {100 * confidence:g} % intervals over prompts. Against "
        "the base model, paired by prompt:"
    )
    if test.preference_accuracy is not None:
        how = f"{test.pairs} held-out pairs of {test.prompts} prompts; {100 * confidence:g} % intervals:"
    return "\n".join([*lines, "", how, "", *(f"- {line.strip()}" for line in compared)])


CARD, METRICS = "README.md", "metrics.json"


def describe_models(run: RunFolder) -> None:
    """Give every promoted model the files it lacks, because the run was killed before they were written."""
    for k in run.iterations():
        describe_model(run, k)


def describe_model(run: RunFolder, k: int, *, anew: bool = False) -> None:
    """Write the files of iteration `k`'s model, if it was promoted and has none; with `anew`, also those it has."""
    folder, decision = run.latest(k, "train"), run.decision(k) if k else None
    if decision is None or not decision.promoted or run.stage(k, "pair").manifest() is None:
        return
    missing = [name for name in (CARD, METRICS) if anew or not (folder.model / name).exists()]
    if missing and any(folder.model.glob("*.safetensors")):  # the weights may have been pruned
        files = model_files(run, k)
        for name in missing:
            write_file(folder.model / name, files[name])


def model_files(run: RunFolder, k: int) -> dict[str, bytes]:
    """Name and content of what describes the model of iteration `k`."""
    return {CARD: model_card(run, k).encode("utf-8"), METRICS: to_json(model_metrics(run, k))}


def model_metrics(run: RunFolder, k: int) -> Json:
    """The numbers of the card for programs: this model's and the base model's, under the names of docs/watch.md."""
    decision, manifest = run.decision(k), run.latest(k, "train").manifest()
    assert manifest is not None
    start = decision and {"iteration": decision.start.iteration, "weights_hash": decision.start.hash}
    return {
        "run": run.name,
        "iteration": k,
        "weights_hash": manifest.counted(TrainCounts).weights_hash,
        "trained_from": start,
        "promoted": decision and decision.promoted,
        "reason": decision and decision.reason,
        "confidence": settings_of(run).base.promote.confidence,
        "metrics": iteration_metrics(iteration_state(run, k)),
        "base_metrics": iteration_metrics(iteration_state(run, 0)),
        "versions": manifest.versions,
    }
