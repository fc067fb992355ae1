"""Room loop, what goes into a model folder beside weights and tokenizer: a run and an iteration come in, README.md and
metrics.json go out.

Every promoted model gets them, right after the decision that they state is on disk. The train stage's manifest is
older and does not list them, and neither name is part of a model's hash. So `--verify` and the identity of the weights
read past them, a folder that is copied away takes its story along, and so does a fork.
"""

from typing import Any

from loop.config_load import load_config
from loop.files import read_json, to_json, write_file
from loop.metric_names import iteration_metrics
from loop.model_card import model_card
from loop.runfolder import RunFolder, StageFolder
from loop.status import iteration_state

CARD, METRICS = "README.md", "metrics.json"


def describe_models(run: RunFolder) -> None:
    """Give every promoted model what it lacks: of a run that was killed at that point, or of an old one."""
    for k in run.iterations():
        describe_model(run, k)


def describe_model(run: RunFolder, k: int) -> None:
    """Write the files of iteration `k`'s model, if it was promoted and has none."""
    folder = run.latest(k, "train")
    if not k or not run.promotion(k).exists() or not read_json(run.promotion(k))["promoted"]:
        return
    missing = [name for name in (CARD, METRICS) if not (folder.model / name).exists()]
    if missing and has_weights(folder):
        files = model_files(run, k)
        for name in missing:
            write_file(folder.model / name, files[name])


def has_weights(folder: StageFolder) -> bool:
    """Whether the weights are there; they may have been pruned."""
    return any(folder.model.glob("*.safetensors"))


def model_files(run: RunFolder, k: int) -> dict[str, bytes]:
    """Name and content of what describes the model of iteration `k`."""
    return {CARD: model_card(run, k).encode("utf-8"), METRICS: to_json(model_metrics(run, k))}


def model_metrics(run: RunFolder, k: int) -> dict[str, Any]:
    """The numbers of the card for programs: this model's and the base model's, under the names of docs/watch.md."""
    path, manifest = run.promotion(k), run.latest(k, "train").manifest()
    assert manifest is not None
    decision = read_json(path) if path.exists() else {}
    start = decision.get("start", decision.get("incumbent"))  # earlier versions always started from the incumbent
    return {
        "run": run.name,
        "iteration": k,
        "weights_hash": manifest.counts["weights_hash"],
        "trained_from": start and {"iteration": start["iteration"], "weights_hash": start["hash"]},
        "promoted": decision.get("promoted"),
        "reason": decision.get("reason"),
        "confidence": load_config(run.config).base.promote.confidence,
        "metrics": iteration_metrics(iteration_state(run, k)),
        "base_metrics": iteration_metrics(iteration_state(run, 0)),
        "versions": manifest.versions,
    }
