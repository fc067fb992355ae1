"""Reference models that no iteration trained: the one named by `reference: path`, and the moving average of
`reference: ema`. Each is located or computed once, and recorded with its hash."""

import time
from dataclasses import replace

from loop.campaign.context import Campaign, ModelRoles, refuse_changes
from loop.store.files import sealed_json, write_file
from loop.store.model_refs import Model, model_of, model_record
from loop.store.run_records import ReferenceRecord, plain, read_record
from loop.store.run_state import ReferenceCounts
from loop.workers.process import Job, call
from loop.workers.train_service import AverageTask


def first_reference(campaign: Campaign, initial: Model) -> Model | None:
    """The reference of the first iteration under `path` or `ema`, else None; the average starts at the base model."""
    if campaign.base.reference == "ema":
        return initial
    named = campaign.base.reference_path
    if named is None:
        return None
    path = campaign.run.named_reference
    before = read_record(path, ReferenceRecord).named if path.exists() else None
    if before != named:
        _refuse_another(campaign, before, named)
        campaign.begin_work()
        job = Job(f"finding the reference {named}", "reference", {"named": named, "base": initial.path})
        folder, found = call(campaign.pool.trainer, job)
        model = model_record(campaign.run, Model(folder, found, 0, f"the model {named}"))
        write_file(path, sealed_json(plain(ReferenceRecord(named, model))))
    return model_of(campaign.run, read_record(path, ReferenceRecord).model)


def _refuse_another(campaign: Campaign, before: str | None, named: str) -> None:
    """UserError if a finished round was trained against another reference; one that is not on record any more is
    compared by its hash."""
    folder = campaign.run.stage(1, "train")
    if manifest := folder.manifest():
        then = {key: manifest.inputs[key] for key in ("start", "reference") if key in manifest.inputs}
        now = {"start": campaign.base.start, "reference": campaign.base.reference}
        paths = ({}, {}) if before is None else ({"reference_path": before}, {"reference_path": named})
        refuse_changes(folder, then | paths[0], now | paths[1])


def update_average(campaign: Campaign, k: int, models: ModelRoles) -> ModelRoles:
    """With `reference: ema`, update the average if the previous iteration promoted its candidate."""
    config, newest, average = campaign.base, models.incumbent, models.separate
    if config.reference != "ema" or not newest.iteration or newest.iteration != k - 1:
        return models
    assert average is not None, "the average starts as the base model"
    folder = campaign.run.stage(k, "reference")
    inputs = {
        "reference_decay": config.reference_decay,
        "made from": {"average": average.hash, "promoted": newest.hash},
    }
    manifest = campaign.finished(folder, inputs)
    if manifest is None:
        campaign.begin_work()
        folder.claim(inputs)
        started = time.perf_counter()
        task = AverageTask(average.path, average.hash, newest.path, newest.hash, config.reference_decay, folder.model)
        found = campaign.pool.train(Job(f"averaging the reference of iteration {k}", "average", {"task": task}))
        files = [path for path in folder.model.rglob("*") if path.is_file()]
        seconds = {"wall": time.perf_counter() - started}
        manifest = campaign.finish(folder, files, inputs=inputs, counts={"weights_hash": found}, seconds=seconds)
    words = f"the average of base and promoted models up to iteration {newest.iteration}"
    return replace(models, separate=Model(folder.model, manifest.counted(ReferenceCounts).weights_hash, k, words))
