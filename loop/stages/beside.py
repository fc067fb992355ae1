"""Room loop, pairs beside those that an iteration makes: replayed from earlier iterations, and drawn from an offline
preference set. Drawn by the seed; `source_iteration` of the table says where a pair is from (0: the offline set)."""

from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from loop import tables
from loop.config_prompts import PromptsBase
from loop.context import Campaign
from loop.files import write_file
from loop.mix import file_digest
from loop.pairing.drawn import draw, how_many, replayed
from loop.pairing.files import SCHEMAS, table_of
from loop.pairing.given import answers_of, given_pairs
from loop.pairing.table import RULES
from loop.preference_data import read_pairs_of
from loop.prompt_messages import messages_of
from loop.prompt_sources import Source
from loop.prompts import PromptRow, prompt_id, write_table
from loop.stages.answers import tokenise
from trainer.losses.method import Kind

KEY = "pairs.offline"


@dataclass(frozen=True, slots=True)
class Beside:
    """Rows for the table of pairs, and what the manifest says of them."""

    tables: list[pa.Table] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def sources_of(campaign: Campaign, k: int) -> dict[str, str]:
    """Digests of what replayed and offline pairs are drawn from; empty if there are none."""
    pairs, found = campaign.loaded.at(k).pairs, dict[str, str]()
    for back in sorted(pairs.replay):
        for stage in ("sample", "pair") if back < k else ():
            manifest = campaign.run.stage(k - back, stage).manifest()
            assert manifest is not None, "iterations are finished in their order"
            found[f"{stage} of iteration {k - back}"] = manifest.digest
    if pairs.offline is not None and pairs.offline.path is not None:
        found["offline"] = file_digest(pairs.offline.path, f"{KEY}.path", "set pairs.offline to null")
    return found


def pairs_beside(campaign: Campaign, k: int, new: int, held_out: Set[str]) -> Beside:
    """What stands beside `new` pairs, singles or groups; no offline pair has a prompt that is held out."""
    kind = RULES[campaign.loaded.at(k).pairs.rule].kind
    earlier = replayed_pairs(campaign, k, new, kind)
    offline = offline_pairs(campaign, k, new + sum(table.num_rows for table in earlier.tables), held_out)
    return Beside(earlier.tables + offline.tables, earlier.counts | offline.counts, offline.files)


def replayed_pairs(campaign: Campaign, k: int, new: int, kind: Kind) -> Beside:
    """Pairs of earlier iterations, each so many times as many as there are `new` ones, if there are enough."""
    config, parts, counts = campaign.loaded.at(k), list[pa.Table](), dict[str, int]()
    for back, share in sorted(config.pairs.replay.items()):
        source = k - back
        if source < 1:
            continue
        seed = f"{config.seed}|{k}|replay|{source}"
        earlier = tables.read(campaign.run.stage(source, "pair").relations(kind))
        parts.append(replayed(earlier, source, round(share * new), seed, SCHEMAS[kind]))
        counts[str(source)] = parts[-1].num_rows
    return Beside(parts, {"replayed": counts} if counts else {})


def offline_pairs(campaign: Campaign, k: int, others: int, held_out: Set[str]) -> Beside:
    """Pairs of the offline set, as many as make up their share beside the `others`, if there are enough; none without
    such a set."""
    config, folder = campaign.loaded.at(k), campaign.run.stage(k, "pair")
    offline = config.pairs.offline
    if offline is None:
        return Beside()
    source = read_pairs_of(offline, KEY, read := dict[str, int]())
    rows = [row for row in rows_of(source, config.prompts) if row.id not in held_out]
    pairs = [pair for row in rows for pair in given_pairs(row)]
    keys = [f"{pair.made.prompt_id}|{pair.made.chosen_id}|{pair.made.rejected_id}" for pair in pairs]
    places = draw(keys, how_many(others, offline.share), f"{config.seed}|{k}|offline")
    chosen = [pairs[place] for place in places]
    prompts = {pair.chosen.prompt.id: pair.chosen.prompt for pair in chosen}
    write_file(folder.offline_prompts, tables.table_bytes(write_table(list(prompts.values()))))
    tokenise(campaign, answers_of(chosen), folder.offline)
    counts = {"offline": len(chosen), "offline_of": len(pairs), "offline_held_out": len(source.rows) - len(rows)}
    dropped = {f"offline_{what}": n for what, n in read.items() if what != "pairs" and n}
    table = table_of([pair.made for pair in chosen], "pairs", 0)
    return Beside([table], counts | dropped, [folder.offline, folder.offline_prompts])


def rows_of(source: Source, prompts: PromptsBase) -> list[PromptRow]:
    """The prompts of the set as the campaign asks its own: with its system message, unless they bring one, and its
    solved examples."""
    with_system = PromptsBase(system=prompts.system, few_shot=prompts.few_shot)
    without = PromptsBase(few_shot=prompts.few_shot)
    found: dict[str, PromptRow] = {}
    for number, row in enumerate(source.rows):
        own = row["prompt"][0]["role"] == "system"
        messages = messages_of(without if own else with_system, source, row, number)
        if messages is not None:
            found.setdefault(prompt_id(messages), PromptRow(prompt_id(messages), messages, None, dict(row)))
    return list(found.values())
