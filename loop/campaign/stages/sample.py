"""Stages sample and judge: samples responses to an iteration's prompts and judges them, shard by shard, overlapped."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc

from loop.campaign.context import Campaign, Iteration, keys
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
from loop.store.run_records import Json
from loop.store.stage import Manifest
from loop.view.status import known_state
from loop.workers.sampling_service import SampleTask
from loop.workers.shards import JudgeHandle, Shard, ShardTotals, shard_size


def widened(run: RunFolder, loaded: LoadedConfig, k: int) -> tuple[Config, str]:
    """The settings of iteration `k`, widened where `sampling.widen` says so, and the reason (empty if unchanged)."""
    config = loaded.at(k)
    plain, widen = config.sampling, config.sampling.widen
    if widen is None:
        return config, ""
    shares = {i: known_state(run, i).signal.get("mixed") for i in range(1, k)}
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


def announce_widening(it: Iteration) -> None:
    """Print and log the widening when the iteration starts sampling."""
    if it.widened:
        sampling = it.config.sampling
        it.campaign.display.say(f"  {it.widened}")
        it.campaign.run.event(
            "sampling_widened", iteration=it.k, temperature=sampling.temperature, n=sampling.n, why=it.widened
        )


class Sources(NamedTuple):
    """The models that sample: the policy, and for half of the responses the reference if `sampling.from_reference`."""

    policy: Model
    reference: Model | None = None

    @classmethod
    def of(cls, it: Iteration, policy: Model) -> "Sources":
        """The sources that the settings ask for."""
        return cls(policy, it.reference if it.config.sampling.from_reference else None)

    @property
    def made_from(self) -> dict[str, str]:
        """Their hashes, as a manifest records them."""
        return {name: model.hash for name, model in self._asdict().items() if model is not None}


def sample_and_judge(it: Iteration, taken: Take) -> tuple[Manifest, Manifest]:
    """Sample this iteration's prompts, and judge each shard while the next is being sampled. Adaptive sampling does
    this twice: a probe of every prompt, then more responses where the probe shows they pay off."""
    campaign, config, sources = it.campaign, it.config, Sources.of(it, it.sampler)
    samples, verdicts = it.folder("sample"), it.folder("judge")
    inputs = sample_inputs(it, sources, taken)
    sampled = campaign.finished(samples, inputs)
    labels = labels_of(verdicts) if config.human_judge else None
    if sampled:
        it.reached("sample")
    judged = campaign.finished(verdicts, judge_inputs(campaign, sampled, labels)) if sampled else None
    if sampled and judged:
        return sampled, judged
    campaign.begin_work()
    announce_widening(it)
    rows = taken.rows()
    started = time.perf_counter()
    shards, totals = draw(it, sources, rows, sampled)
    seconds = label_seconds(totals, started)
    if sampled is None:
        files = [s.task.path for s in shards]
        samples.keep_only(files)
        verdicts.keep_only([s.verdicts for s in shards])
        counts = {**response_counts(files, len(rows)), **origins(rows)}
        files += [samples.allocation] if config.sampling.adaptive is not None else []
        sampled = campaign.finish(samples, files, inputs=inputs, counts=counts, seconds=seconds | {"judge": 0.0})
    it.reached("sample")
    if config.human_judge:
        labels = label_by_people(it, shards)
    judged = campaign.finish(
        verdicts,
        [s.verdicts for s in shards],
        inputs=judge_inputs(campaign, sampled, labels),
        counts=verdict_counts([s.verdicts for s in shards]),
        seconds={"wall": 0.0, "judge": totals.seconds["judge"]},
    )
    return sampled, judged


def origins(rows: Sequence[PromptRow]) -> dict[str, dict[str, int]]:
    """The number of prompts from each source of a mixture."""
    names = Counter(row.columns[ORIGIN] for row in rows if ORIGIN in row.columns)
    return {"sources": dict(sorted(names.items()))} if names else {}


def draw(
    it: Iteration, sources: Sources, rows: list[PromptRow], sampled: Manifest | None
) -> tuple[list[Shard], ShardTotals]:
    """Sample all shards of the iteration, and judge them unless people do or the run stops after sampling."""
    totals, pool, config = ShardTotals(), it.campaign.pool, it.config
    judge = None if config.human_judge or it.campaign.until == (it.k, "sample") else pool.judge
    shards = sample_shards(it, sources, rows)
    if config.sampling.adaptive is not None:
        totals.add(label(it, shards, pool.judge, "probe"))
        shards += further_shards(it, shards, sampled)
    if not (sampled and config.human_judge):
        totals.add(label(it, shards, judge, "sample" if judge is None else "sample and judge"))
    return shards, totals


def label(it: Iteration, shards: list[Shard], judge: JudgeHandle | None, title: str) -> ShardTotals:
    """Sample the shards and judge them; without a judge, only sample."""
    with it.campaign.bar(it.folder("sample"), title, sum(s.task.responses for s in shards), "responses") as bar:
        return it.campaign.pool.label(shards, judge, bar)


def sample_inputs(it: Iteration, sources: Sources, taken: Take) -> Json:
    """Settings and digests that determine the responses; with adaptive sampling, also those of the allocation."""
    config = it.config
    online = keys("train", config.train, ("sync_every",)) if config.train.online else {}
    return {
        "seed": config.seed,
        **taken.inputs,
        **config.sampling.recorded(),
        **(adaptive_inputs(it) if config.sampling.adaptive is not None else {}),
        **engine_inputs(config),
        **online,
        "made from": {"prompts": it.campaign.prompts_digest, **sources.made_from, **taken.made_from},
    }


def judge_inputs(campaign: Campaign, sampled: Manifest, labels: str | None) -> Json:
    """Settings and digests that determine the verdicts; `labels` is the sha256 of human labels, if people judge."""
    human_judge = {"labels": labels} if campaign.base.human_judge else {}
    return {"judge": campaign.judge, **human_judge, "made from": {"sample": sampled.digest}}


def engine_inputs(config: Config) -> Json:
    """The engine and model settings that affect which responses can be sampled."""
    return {
        **keys("engine", config.engine, ("kind", "dtype", "max_model_len")),
        **keys("model", config.model, ("chat_template_kwargs", "special_tokens")),
    }


def sample_shards(it: Iteration, sources: Sources, rows: list[PromptRow]) -> list[Shard]:
    """The iteration's shards, in order; with adaptive sampling, the probe's."""
    size = it.config.sampling.shard_prompts or shard_size(it.config, per_prompt(it.config))
    return [
        one_shard(it, sources, number, rows[start : start + size])
        for number, start in enumerate(range(0, len(rows), size))
    ]


def one_shard(it: Iteration, sources: Sources, number: int, rows: Sequence[PromptRow]) -> Shard:
    """A shard of the iteration's prompts."""
    config = it.config
    sampling = config.sampling
    task = SampleTask(
        name=f"shard {number} of iteration {it.k}",
        path=it.folder("sample").shard(number),
        prompts=tuple(rows),
        temperatures=(sampling.temperature,) * per_prompt(config),
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed_words=(config.seed, it.k, "train"),
        policy=sources.policy.path,
        policy_hash=sources.policy.hash,
        reference=sources.reference.path if sources.reference else None,
        reference_hash=sources.reference.hash if sources.reference else "",
        options=sampling.decoding,
    )
    return Shard(task, it.folder("judge").shard(number))


def per_prompt(config: Config) -> int:
    """How many responses a prompt gets in the first phase."""
    adaptive = config.sampling.adaptive
    return config.sampling.n if adaptive is None else adaptive.probe


def response_counts(shards: list[Path], prompts: int) -> dict[str, int]:
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


def verdict_counts(shards: list[Path]) -> dict[str, float]:
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


def label_seconds(totals: ShardTotals, started: float) -> dict[str, float]:
    return {"wall": time.perf_counter() - started, **totals.seconds}


def record_given_prompts(it: Iteration, taken: Take) -> tuple[Manifest, Manifest]:
    """Finish both stages without responses; their manifests record which prompts the iteration takes."""
    campaign = it.campaign
    made_from = {"prompts": campaign.prompts_digest, **taken.made_from}
    inputs: Json = {"seed": campaign.base.seed, **taken.inputs, "made from": made_from}
    done = {}
    for stage in ("sample", "judge"):
        folder = it.folder(stage)
        manifest = campaign.finished(folder, inputs)
        if manifest is None:
            campaign.begin_work()
            counts = (
                dict(response_counts([], 0), prompts=len(taken.rows())) if stage == "sample" else verdict_counts([])
            )
            manifest = campaign.finish(folder, [], inputs=inputs, counts=counts, seconds={"wall": 0.0, "judge": 0.0})
        done[stage] = manifest
        it.reached(stage)
    return done["sample"], done["judge"]
