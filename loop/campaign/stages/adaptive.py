"""Adaptive sampling, phase 2: allocates more responses to promising prompts, given the probe's verdicts. The decision
is a function of the probe's files and the settings, so a killed run reaches the same one again."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from pydantic import Field

from loop.campaign.context import Iteration
from loop.config.pairs_section import PairsConfig
from loop.config.settings import Config
from loop.measure.allocation import ProbeResult, allocate
from loop.pairing.io import judged_groups
from loop.pairing.records import Judged
from loop.prompts.row import PromptRow
from loop.store.files import sha256_of, to_json, write_file
from loop.store.run_records import Json, read_record
from loop.store.stage import FURTHER, Manifest
from loop.workers.shards import BATCHES_PER_SHARD, Shard

OF_PAIRS = ("rule", "per_prompt", "correct_at", "drop_truncated")
"""Keys of `pairs` that define a usable pair."""


def adaptive_inputs(it: Iteration) -> Json:
    """What determines the allocation: the judge, and the definition of a usable pair."""
    return {"judge": it.campaign.judge, **{f"pairs.{key}": getattr(it.config.pairs, key) for key in OF_PAIRS}}


@dataclass(frozen=True, slots=True)
class AllocationRecord:
    """allocation.json: how many more responses each prompt gets, and what the decision rests on."""

    more: dict[str, int]
    """By prompt id."""
    prior: dict[str, float]
    expected_pairs: float
    expected_pairs_uniform: float
    """With the same number of responses to every prompt."""
    prompts: int
    responses: dict[str, int]
    """Of the probe, and `more`."""
    made_from: Annotated[Json, Field(validation_alias="made from")]
    """Hashes of the probe's files."""

    def as_json(self) -> Json:
        """Plain values."""
        values = asdict(self)
        return {"made from": values.pop("made_from"), **values}


def further_shards(it: Iteration, probe: list[Shard], sampled: Manifest | None) -> list[Shard]:
    """The shards of phase 2, in the order of the probe's prompts; the allocation is read if the stage is finished,
    else decided and written."""
    path = it.folder("sample").allocation
    if sampled is None:
        decision = decide(it.config, it.k, probe)
        write_file(path, to_json(decision.as_json()))
        print_allocation(it, decision)
    more = read_record(path, AllocationRecord).more
    rows = [(row, more[row.id]) for shard in probe for row in shard.task.prompts if row.id in more]
    return [further_shard(it, probe[0], number, part) for number, part in enumerate(cut(it.config, rows))]


def decide(config: Config, k: int, probe: list[Shard]) -> AllocationRecord:
    """How many more responses each prompt gets, with the inputs of the decision."""
    adaptive = config.sampling.adaptive
    assert adaptive is not None
    groups = judged_groups([(shard.task.path, shard.verdicts) for shard in probe])
    found = [probed(prompt_id, responses, config.pairs) for prompt_id, responses in groups]
    allocation = allocate(
        found,
        n=config.sampling.n,
        wanted=adaptive.wanted(config.pairs.at_most),
        keep=adaptive.keep,
        budget=adaptive.budget,
        seed=f"{config.seed}|{k}",
    )
    return AllocationRecord(
        more=allocation.more,
        prior=allocation.prior._asdict(),
        expected_pairs=allocation.expected,
        expected_pairs_uniform=allocation.uniform,
        prompts=len(found),
        responses={"probe": sum(one.seen for one in found), "more": allocation.responses},
        made_from={
            shard.task.path.name: {"sample": sha256_of(shard.task.path), "judge": sha256_of(shard.verdicts)}
            for shard in probe
        },
    )


def probed(prompt_id: str, responses: Sequence[Judged], pairs: PairsConfig) -> ProbeResult:
    """Summarise the probe of one prompt."""
    return ProbeResult(
        prompt_id,
        right=sum(_is_usable(one, pairs, right=True) for one in responses),
        wrong=sum(_is_usable(one, pairs, right=False) for one in responses),
        seen=len(responses),
        tokens=sum(one.length for one in responses),
    )


def _is_usable(one: Judged, pairs: PairsConfig, *, right: bool) -> bool:
    """Whether the response can be the chosen (`right`) or the rejected one of a pair."""
    if one.kind != "score" or (one.value >= pairs.correct_at) != right:
        return False
    refused = ("chosen", "both") if right else ("both",)
    return one.finish_reason != "length" or pairs.drop_truncated not in refused


def cut(config: Config, rows: list[tuple[PromptRow, int]]) -> list[list[tuple[PromptRow, int]]]:
    """Split prompts with their response counts into shards: of `sampling.shard_prompts` prompts each, or of about as
    many responses as a probe shard."""
    parts: list[list[tuple[PromptRow, int]]] = []
    room = 0
    for row, responses in rows:
        if room <= 0:
            parts.append([])
            room = config.sampling.shard_prompts or BATCHES_PER_SHARD * config.engine.batch
        parts[-1].append((row, responses))
        room -= 1 if config.sampling.shard_prompts else responses
    return parts


def further_shard(it: Iteration, like: Shard, number: int, part: list[tuple[PromptRow, int]]) -> Shard:
    """One shard of phase 2: indices, and so seeds and ids, continue where the probe's end."""
    sampling = it.config.sampling
    assert sampling.adaptive is not None
    probe = sampling.adaptive.probe
    task = replace(
        like.task,
        name=f"further shard {number} of iteration {it.k}",
        path=it.folder("sample").shard(number, FURTHER),
        prompts=tuple(row for row, _ in part),
        temperatures=(sampling.temperature,) * sampling.n,
        spans=tuple((probe, probe + more) for _, more in part),
    )
    return Shard(task, it.folder("judge").shard(number, FURTHER))


def print_allocation(it: Iteration, decision: AllocationRecord) -> None:
    """Print a summary of phase 2."""
    more, total = decision.responses["more"], sum(decision.responses.values())
    it.campaign.display.say(
        f"  after the probe: {more} more responses to {len(decision.more)} of {decision.prompts} prompts; "
        f"{total} in total instead of {it.config.sampling.n * decision.prompts}, expected to give "
        f"{decision.expected_pairs:.0f} usable pairs instead of {decision.expected_pairs_uniform:.0f}"
    )
