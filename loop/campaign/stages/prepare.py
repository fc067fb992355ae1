"""Prepares a run before its first iteration: records the three prompt sets and the base model in the run folder."""

import itertools
import time

from loop.campaign.context import Campaign, ModelRoles
from loop.errors import UserError
from loop.prompts.row import PromptRow, read_table, write_table
from loop.prompts.sets import build_prompt_sets
from loop.store import tables
from loop.store.files import sealed_json, write_file
from loop.store.model_refs import model_of
from loop.store.run_records import BaseRecord, ModelRecord, plain
from loop.view.describe import describe_counts
from loop.workers.process import Job, call
from loop.workers.train_service import FoundBase


def prompts_stage(campaign: Campaign) -> dict[str, list[PromptRow]]:
    """The three prompt sets: built once, then always read from the run folder."""
    folder = campaign.run.prompts()
    section = campaign.base.prompts.recorded()
    inputs = {"seed": campaign.base.seed, **{f"prompts.{key}": value for key, value in section.items()}}
    names = ("train", "gate", "test")
    files = {name: folder.path / f"{name}.parquet" for name in names}
    manifest = campaign.finished(folder, inputs)
    if manifest is None:
        campaign.begin_work()
        started = time.perf_counter()
        sets = build_prompt_sets(campaign.base.prompts, campaign.base.seed)
        for name in names:
            write_file(files[name], tables.table_bytes(write_table(getattr(sets, name))))
        seconds = {"wall": time.perf_counter() - started}
        manifest = campaign.finish(folder, list(files.values()), inputs=inputs, counts=sets.counts, seconds=seconds)
        for note in sets.notes:
            campaign.warn(note)
        campaign.display.say(f"prompts: {describe_counts(sets.counts)}")
    campaign.prompts_digest = manifest.digest
    sets_read = {name: read_table(tables.read(files[name])) for name in names}
    _check_disjoint(sets_read)
    return sets_read


def _check_disjoint(sets: dict[str, list[PromptRow]]) -> None:
    """Check, by content and in every run, that held-out prompts are never trained on."""
    ids = {name: {row.id for row in rows} for name, rows in sets.items()}
    for one, other in itertools.combinations(ids.values(), 2):
        assert not one & other


def base_stage(campaign: Campaign) -> ModelRoles:
    """Locate the base model, and record it as the promotion that iteration 1 reads."""
    path = campaign.run.promotion(0)
    base = campaign.base.model.base
    if not path.exists():
        campaign.begin_work()
        job = Job(f"finding the model {base}", "base", {"base": base, "longest": campaign.base.longest_sampled})
        found: FoundBase = call(campaign.pool.trainer, job)
        policy = ModelRecord(str(found.folder), found.hash, 0)
        write_file(path, sealed_json(plain(BaseRecord(base, policy, threads=found.threads))))
    record = campaign.run.base()
    if record.base != base:
        raise UserError(
            f"This run started from model.base={record.base}, but model.base is now {base}. Set it back, or start "
            "a new run with --name."
        )
    initial = model_of(campaign.run, record.policy)
    return ModelRoles(initial, initial, initial)
