"""Adaptive sampling, phase 2: allocates more responses to promising prompts, given the probe's verdicts.

The decision and its inputs are kept in the stage's allocation file. It is a function of the probe's files and the
settings, so a killed run reaches the same one again.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loop.campaign.context import Campaign
from loop.config.pairs_section import PairsConfig
from loop.config.settings import Config
from loop.measure.allocation import ProbeResult, allocate
from loop.pairing.io import judged_groups
from loop.pairing.records import Judged
from loop.prompts.row import PromptRow
from loop.store.files import read_json, sha256_of, to_json, write_file
from loop.store.stage import Manifest
from loop.workers.pool import BATCHES_PER_SHARD, Shard

OF_PAIRS = ("rule", "per_prompt", "correct_at", "drop_truncated")
"""Keys of `pairs` that define a usable pair."""


def adaptive_inputs(campaign: Campaign, config: Config) -> dict[str, Any]:
    """What determines the allocation: the judge, and the definition of a usable pair."""
    return {"judge": campaign.judge, **{f"pairs.{key}": getattr(config.pairs, key) for key in OF_PAIRS}}


def further_shards(
    campaign: Campaign, k: int, config: Config, probe: list[Shard], sampled: Manifest | None
) -> list[Shard]:
    """The shards of phase 2, in the order of the probe's prompts; the allocation is read if the stage is finished,
    else decided and written."""
    path = campaign.run.stage(k, "sample").allocation
    if sampled is None:
        decision = decide(config, k, probe)
        write_file(path, to_json(decision))
        say_decided(campaign, config, decision)
    more: dict[str, int] = read_json(path)["more"]
    rows = [(row, more[row.id]) for shard in probe for row in shard.task.prompts if row.id in more]
    return [further_shard(campaign, k, config, probe[0], number, part) for number, part in enumerate(cut(config, rows))]


def decide(config: Config, k: int, probe: list[Shard]) -> dict[str, Any]:
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
    return {
        "more": allocation.more,
        "prior": allocation.prior._asdict(),
        "expected_pairs": allocation.expected,
        "expected_pairs_uniform": allocation.uniform,
        "prompts": len(found),
        "responses": {"probe": sum(one.seen for one in found), "more": allocation.responses},
        "made from": {
            shard.task.path.name: {"sample": sha256_of(shard.task.path), "judge": sha256_of(shard.verdicts)}
            for shard in probe
        },
    }


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


def further_shard(
    campaign: Campaign, k: int, config: Config, like: Shard, number: int, part: list[tuple[PromptRow, int]]
) -> Shard:
    """One shard of phase 2: indices, and so seeds and ids, continue where the probe's end."""
    sampling = config.sampling
    assert sampling.adaptive is not None
    probe = sampling.adaptive.probe
    task = replace(
        like.task,
        name=f"further shard {number} of iteration {k}",
        path=campaign.run.stage(k, "sample").further_shard(number),
        prompts=tuple(row for row, _ in part),
        temperatures=(sampling.temperature,) * sampling.n,
        spans=tuple((probe, probe + more) for _, more in part),
    )
    return Shard(task, campaign.run.stage(k, "judge").further_shard(number))


def say_decided(campaign: Campaign, config: Config, decision: dict[str, Any]) -> None:
    """Print a summary of phase 2."""
    more, all_of_them = decision["responses"]["more"], sum(decision["responses"].values())
    uniform = config.sampling.n * decision["prompts"]
    campaign.display.say(
        f"  after the probe: {more} more responses to {len(decision['more'])} of {decision['prompts']} prompts; "
        f"{all_of_them} in total instead of {uniform}, expected to give {decision['expected_pairs']:.0f} usable pairs "
        f"instead of {decision['expected_pairs_uniform']:.0f}"
    )
