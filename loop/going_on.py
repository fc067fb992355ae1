"""Room loop, what a run goes on from: a finished iteration and the settings come in, the models that the next one needs
go out. A fork checks that they are there, and prune leaves them alone.
"""

from loop.config import Config
from loop.context import Model, read_model
from loop.files import read_json
from loop.runfolder import RunFolder


def models_needed(run: RunFolder, k: int, config: Config) -> list[Model]:
    """The models that an iteration after `k` finished ones starts from, samples from or is anchored to, the base model
    first. (A reference of the user's own is found and checked when it is used.)"""
    decision = read_json(run.promotion(k))
    records = [read_json(run.promotion(0))["policy"], decision["policy"]]
    if k and "previous" in (config.start, config.reference):
        records.append(decision["candidate"])
    models = [read_model(run, record) for record in records]
    return list(dict.fromkeys(models + (averages(run, k)[-1:] if config.reference == "ema" else [])))


def averages(run: RunFolder, k: int) -> list[Model]:
    """The moving averages of `reference: ema` that were made for iterations 1 to `k`; the last one stands."""
    folders = [run.stage(i, "reference") for i in run.iterations() if 1 <= i <= k]
    made = [(folder, manifest) for folder in folders if (manifest := folder.manifest())]
    words = "the moving average for iteration {}"
    return [Model(f.model, m.counts["weights_hash"], f.iteration, words.format(f.iteration)) for f, m in made]
