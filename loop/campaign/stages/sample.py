"""Stages sample and judge: samples responses to an iteration's prompts and judges them, shard by shard, overlapped."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc

from loop.campaign.context import Campaign, keys
from loop.campaign.stages.adaptive import adaptive_inputs, further_shards
from loop.campaign.stages.people import label_by_people, labels_of
from loop.campaign.stages.take_prompts import Take
from loop.config.load import LoadedConfig
from loop.config.settings import Config
from loop.prompts.row import PromptRow
from loop.prompts.sets import ORIGIN
from loop.store import tables
from loop.store.model_refs import Model
from loop.store.run_folder import RunFolder
from loop.store.stage import Manifest
from loop.view.status import numbers_of
from loop.workers.pool import JudgeHandle, Shard, ShardTotals, shard_size
from loop.workers.sampling_service import SampleTask


def settings_now(campaign: Campaign, k: int) -> tuple[Config, str]:
    """The settings of iteration `k`, widened where `sampling.widen` says so, and the reason (empty if unchanged)."""
    return widened(campaign.run, campaign.loaded, k)


def widened(run: RunFolder, loaded: LoadedConfig, k: int) -> tuple[Config, str]:
    """Like `settings_now`, without a campaign: for read-only views of a run folder."""
    config = loaded.at(k)
    plain, widen = config.sampling, config.sampling.widen
    if widen is None:
        return config, ""
    shares = {i: numbers_of(run, i).get("mixed") for i in range(1, k)}
    low = {i: share for i, share in shares.items() if share is not None and share < widen.below}
    sampling = plain.widened(len(low))
    if sampling == plain:
        return config, ""
    found = ", ".join(f"iteration {i} {share:.0%}" for i, share in low.items())
    why = (
        f"sampling widened to temperature {sampling.temperature:g} and n={sampling.n} (configured: "
        f"{plain.temperature:g} and {plain.n}) because too few prompts had both right and wrong responses: {found} "
        f"(sampling.widen.below is {widen.below:g})"
    )
    return config.model_copy(update={"sampling": sampling}), why


def tell_widened(campaign: Campaign, k: int, why: str) -> None:
    """Print and log the widening when the iteration starts sampling."""
    if why:
        sampling = settings_now(campaign, k)[0].sampling
        campaign.display.say(f"  {why}")
        campaign.run.event("sampling_widened", iteration=k, temperature=sampling.temperature, n=sampling.n, why=why)


class Sources(NamedTuple):
    """The models that sample: the policy, and for half of the responses the reference if `sampling.from_reference`."""

    policy: Model
    reference: Model | None = None

    @classmethod
    def of(cls, config: Config, policy: Model, reference: Model) -> "Sources":
        """The sources that the settings ask for."""
        return cls(policy, reference if config.sampling.from_reference else None)

    @property
    def made_from(self) -> dict[str, str]:
        """Their hashes, as a manifest records them."""
        return {name: model.hash for name, model in self._asdict().items() if model is not None}


def sample_and_judge(campaign: Campaign, k: int, sources: Sources, taken: Take) -> tuple[Manifest, Manifest]:
    """Sample this iteration's prompts, and judge each shard while the next is being sampled. Adaptive sampling does
    this twice: a probe of every prompt, then more responses where the probe shows they pay off."""
    config, why = settings_now(campaign, k)
    samples, verdicts = campaign.run.stage(k, "sample"), campaign.run.stage(k, "judge")
    inputs = sample_inputs(campaign, config, sources, taken)
    sampled = campaign.finished(samples, inputs)
    labels = labels_of(verdicts) if config.human_judge else None
    if sampled:
        campaign.reached(k, "sample")
    judged = campaign.finished(verdicts, judge_inputs(campaign, sampled, labels)) if sampled else None
    if sampled and judged:
        return sampled, judged
    campaign.begin_work()
    tell_widened(campaign, k, why)
    rows = taken.rows
    started = time.perf_counter()
    shards, labelled = draw(campaign, k, config, sources, rows, sampled)
    seconds = label_seconds(labelled, started)
    if sampled is None:
        files = [s.task.path for s in shards]
        samples.sweep(files)
        verdicts.sweep([s.verdicts for s in shards])
        counts = response_counts(files, len(rows)) | origins(rows)
        files += [samples.allocation] if config.sampling.adaptive is not None else []
        sampled = campaign.finish(samples, files, inputs=inputs, counts=counts, seconds=seconds | {"judge": 0.0})
    campaign.reached(k, "sample")
    if config.human_judge:
        labels = label_by_people(campaign, k, shards)
    judged = campaign.finish(
        verdicts,
        [s.verdicts for s in shards],
        inputs=judge_inputs(campaign, sampled, labels),
        counts=verdict_counts([s.verdicts for s in shards]),
        seconds={"wall": 0.0, "judge": labelled.seconds["judge"]},
    )
    return sampled, judged


def origins(rows: Sequence[PromptRow]) -> dict[str, Any]:
    """The number of prompts from each source of a mixture."""
    names = Counter(row.columns[ORIGIN] for row in rows if ORIGIN in row.columns)
    return {"sources": dict(sorted(names.items()))} if names else {}


def draw(
    campaign: Campaign, k: int, config: Config, sources: Sources, rows: list[PromptRow], sampled: Manifest | None
) -> tuple[list[Shard], ShardTotals]:
    """Sample all shards of the iteration, and judge them unless people do or the run stops after sampling."""
    labelled = ShardTotals()
    judge = None if config.human_judge or campaign.until == (k, "sample") else campaign.crew.judge
    shards = sample_shards(campaign, k, config, sources, rows)
    if config.sampling.adaptive is not None:
        labelled.add(label(campaign, k, shards, campaign.crew.judge, "probe"))
        shards += further_shards(campaign, k, config, shards, sampled)
    if not (sampled and config.human_judge):
        labelled.add(label(campaign, k, shards, judge, "sample" if judge is None else "sample and judge"))
    return shards, labelled


def label(campaign: Campaign, k: int, shards: list[Shard], judge: JudgeHandle | None, title: str) -> ShardTotals:
    """Sample the shards and judge them; without a judge, only sample."""
    folder = campaign.run.stage(k, "sample")
    with campaign.bar(folder, title, sum(s.responses for s in shards), "responses") as bar:
        return campaign.crew.label(shards, judge, bar)


def sample_inputs(campaign: Campaign, config: Config, sources: Sources, taken: Take) -> dict[str, Any]:
    """Settings and digests that determine the responses; with adaptive sampling, also those of the allocation."""
    online = keys("train", config.train, ("sync_every",)) if config.train.online else {}
    return {
        "seed": config.seed,
        **taken.inputs,
        **config.sampling.recorded(),
        **(adaptive_inputs(campaign, config) if config.sampling.adaptive is not None else {}),
        **engine_inputs(config),
        **online,
        "made from": {"prompts": campaign.prompts_digest, **sources.made_from, **taken.made_from},
    }


def judge_inputs(campaign: Campaign, sampled: Manifest, labels: str | None) -> dict[str, Any]:
    """Settings and digests that determine the verdicts; `labels` is the sha256 of human labels, if people judge."""
    human_judge = {"labels": labels} if campaign.base.human_judge else {}
    return {"judge": campaign.judge, **human_judge, "made from": {"sample": sampled.digest}}


def engine_inputs(config: Config) -> dict[str, Any]:
    """The engine and model settings that affect which responses can be sampled."""
    return {
        **keys("engine", config.engine, ("kind", "dtype", "max_model_len")),
        **keys("model", config.model, ("chat_template_kwargs",)),
    }


def sample_shards(campaign: Campaign, k: int, config: Config, sources: Sources, rows: list[PromptRow]) -> list[Shard]:
    """The iteration's shards, in order; with adaptive sampling, the probe's."""
    size = config.sampling.shard_prompts or shard_size(config, per_prompt(config))
    return [
        one_shard(campaign, k, config, sources, number, rows[start : start + size])
        for number, start in enumerate(range(0, len(rows), size))
    ]


def one_shard(
    campaign: Campaign, k: int, config: Config, sources: Sources, number: int, rows: Sequence[PromptRow]
) -> Shard:
    """A shard of the iteration's prompts."""
    sampling = config.sampling
    task = SampleTask(
        name=f"shard {number} of iteration {k}",
        path=campaign.run.stage(k, "sample").shard(number),
        prompts=tuple(rows),
        temperatures=(sampling.temperature,) * per_prompt(config),
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed_words=(config.seed, k, "train"),
        policy=sources.policy.path,
        policy_hash=sources.policy.hash,
        reference=sources.reference.path if sources.reference else None,
        reference_hash=sources.reference.hash if sources.reference else "",
    )
    return Shard(task, campaign.run.stage(k, "judge").shard(number))


def per_prompt(config: Config) -> int:
    """How many responses a prompt gets in the first phase."""
    adaptive = config.sampling.adaptive
    return config.sampling.n if adaptive is None else adaptive.probe


def response_counts(shards: list[Path], prompts: int) -> dict[str, Any]:
    """Totals over sample shards; prompts = sampled prompts + those too long."""
    too_long = sum(tables.notes_of(path)["too_long"] for path in shards)
    responses = tokens = truncated = sampled = 0
    for path in shards:
        table = tables.read(path, ["index", "token_ids", "finish_reason"])
        responses += table.num_rows
        tokens += pc.sum(pc.list_value_length(table["token_ids"])).as_py() or 0
        truncated += pc.sum(pc.equal(table["finish_reason"], "length")).as_py() or 0
        sampled += pc.sum(pc.equal(table["index"], 0)).as_py() or 0
    assert sampled + too_long == prompts, (sampled, too_long, prompts)
    return {
        "prompts": prompts,
        "prompts_too_long": too_long,
        "responses": responses,
        "tokens": tokens,
        "truncated": truncated,
    }


def verdict_counts(shards: list[Path]) -> dict[str, Any]:
    """Verdicts by kind, and how many of the scored ones had no extracted answer."""
    counts: Counter[str] = Counter()
    for path in shards:
        table = tables.read(path, ["kind", "extracted", "well_formed"])
        counts.update(table["kind"].to_pylist())
        unparsable = pc.and_(pc.equal(table["kind"], "score"), pc.is_null(table["extracted"]))
        counts["unparsable"] += pc.sum(unparsable).as_py() or 0
        counts["well_formed"] += pc.sum(table["well_formed"]).as_py() or 0
    named = {name: counts[name] for name in ("score", "abstain", "error", "unparsable", "well_formed")}
    return named | judge_usage(shards)


def judge_usage(shards: list[Path]) -> dict[str, float]:
    """Usage of a paid judge: `judge_calls`, `judge_prompt_tokens`, `judge_completion_tokens`; priced, `judge_cost`."""
    used: Counter[str] = Counter()
    for path in shards:
        used.update(tables.notes_of(path).get("used", {}))
    return {f"judge_{what}": amount for what, amount in used.items()}


def label_seconds(labelled: ShardTotals, started: float) -> dict[str, float]:
    return {"wall": time.perf_counter() - started, **labelled.seconds}


def record_given_prompts(campaign: Campaign, k: int, taken: Take) -> tuple[Manifest, Manifest]:
    """Finish both stages without responses; their manifests record which prompts the iteration takes."""
    made_from = {"prompts": campaign.prompts_digest, **taken.made_from}
    inputs: dict[str, Any] = {"seed": campaign.base.seed, **taken.inputs, "made from": made_from}
    done = {}
    for stage in ("sample", "judge"):
        folder = campaign.run.stage(k, stage)
        manifest = campaign.finished(folder, inputs)
        if manifest is None:
            campaign.begin_work()
            sample = response_counts([], 0) | {"prompts": len(taken.rows)}
            counts = sample if stage == "sample" else verdict_counts([])
            manifest = campaign.finish(folder, [], inputs=inputs, counts=counts, seconds={"wall": 0.0, "judge": 0.0})
        done[stage] = manifest
        campaign.reached(k, stage)
    return done["sample"], done["judge"]
