"""Extra pairs added to an iteration's own: replayed from earlier iterations, and drawn from an offline preference set.
The seed decides the draw; `source_iteration` in the table says where a pair is from (0: the offline set)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from loop.campaign.context import Iteration
from loop.campaign.stages.answer_log_probs import tokenise
from loop.config.prompts_section import PromptsBase
from loop.config.rule_table import RULES
from loop.pairing.data_answers import RULE, answers_of, given_pairs
from loop.pairing.io import table_of
from loop.prompts.messages import messages_of
from loop.prompts.preferences import read_pairs_of
from loop.prompts.row import PromptRow, prompt_id, write_table
from loop.prompts.sources import Source
from loop.prompts.supervised import file_digest
from loop.seeds import hash_of
from loop.store import tables
from loop.store.files import write_file


def draw(keys: Sequence[str], count: int, seed: str) -> list[int]:
    """Ascending indexes of `count` keys (or all), drawn from the seed and the keys alone."""
    ranked = sorted(range(len(keys)), key=lambda i: (hash_of(seed, keys[i]), i))
    return sorted(ranked[:count])


def how_many(new: int, share: float) -> int:
    """The number of extra pairs that makes them `share` of the total, given `new` others."""
    return round(new * share / (1 - share))


def replayed(table: pa.Table, source: int, count: int, seed: str) -> pa.Table:
    """Up to `count` of the relations that iteration `source` itself made."""
    own = table.filter(pc.equal(table["source_iteration"], source))
    return own.take(pa.array(draw([key_of(row) for row in own.to_pylist()], count, seed), pa.int64()))


def key_of(row: Mapping[str, Any]) -> str:
    """Key of a relation: the ids of its responses."""
    return "|".join(
        str(row[name]) for name in ("chosen_id", "rejected_id", "response_id", "response_ids") if name in row
    )


KEY = "pairs.offline"


@dataclass(frozen=True, slots=True)
class ExtraPairs:
    """Rows for the pair table, with their counts and files for the manifest."""

    tables: list[pa.Table] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def sources_of(it: Iteration) -> dict[str, str]:
    """Digests of the sources of replayed and offline pairs; empty if there are none."""
    k, pairs, found = it.k, it.config.pairs, dict[str, str]()
    for back in sorted(pairs.replay):
        for stage in ("sample", "pair") if back < k else ():
            manifest = it.campaign.run.stage(k - back, stage).manifest()
            assert manifest is not None, "iterations finish in order"
            found[f"{stage} of iteration {k - back}"] = manifest.digest
    if pairs.offline is not None and pairs.offline.path is not None:
        found["offline"] = file_digest(pairs.offline.path, f"{KEY}.path", "set pairs.offline to null")
    return found


def extra_pairs(it: Iteration, new: int) -> ExtraPairs:
    """The extra pairs for `new` pairs, singles or groups; offline pairs of held-out prompts are left out."""
    earlier = replayed_pairs(it, new)
    offline = offline_pairs(it, new + sum(table.num_rows for table in earlier.tables))
    return ExtraPairs(earlier.tables + offline.tables, earlier.counts | offline.counts, offline.files)


def replayed_pairs(it: Iteration, new: int) -> ExtraPairs:
    """Up to `share * new` pairs from each earlier iteration that `pairs.replay` names."""
    config, k, parts, counts = it.config, it.k, list[pa.Table](), dict[str, int]()
    kind = RULES[config.pairs.rule].kind
    for back, share in sorted(config.pairs.replay.items()):
        source = k - back
        if source < 1:
            continue
        seed = f"{config.seed}|{k}|replay|{source}"
        earlier = tables.read(it.campaign.run.stage(source, "pair").relations(kind))
        parts.append(replayed(earlier, source, round(share * new), seed))
        counts[str(source)] = parts[-1].num_rows
    return ExtraPairs(parts, {"replayed": counts} if counts else {})


def offline_pairs(it: Iteration, others: int) -> ExtraPairs:
    """Pairs of the offline set, if any: enough to make up their share of the total, given `others` other pairs."""
    config, folder = it.config, it.folder("pair")
    offline = config.pairs.offline
    if offline is None:
        return ExtraPairs()
    held_out = {row.id for name in ("gate", "test") for row in it.prompts[name]}
    source = read_pairs_of(offline, KEY, read := dict[str, int]())
    rows = [row for row in rows_of(source, config.prompts) if row.id not in held_out]
    pairs = [pair for row in rows for pair in given_pairs(row)]
    keys = [f"{pair.made.prompt_id}|{pair.made.chosen_id}|{pair.made.rejected_id}" for pair in pairs]
    places = draw(keys, how_many(others, offline.share), f"{config.seed}|{it.k}|offline")
    chosen = [pairs[place] for place in places]
    prompts = {pair.chosen.prompt.id: pair.chosen.prompt for pair in chosen}
    write_file(folder.offline_prompts, tables.table_bytes(write_table(list(prompts.values()))))
    kept = tokenise(it.campaign, answers_of(chosen), folder.offline).without_dropped(chosen)
    counts = {"offline": len(kept), "offline_of": len(pairs), "offline_held_out": len(source.rows) - len(rows)}
    read["changed_by_template"] = len(chosen) - len(kept)
    dropped = {f"offline_{what}": n for what, n in read.items() if what != "pairs" and n}
    table = table_of([pair.made for pair in kept], "pairs", 0, RULE)
    return ExtraPairs([table], counts | dropped, [folder.offline, folder.offline_prompts])


def rows_of(source: Source, prompts: PromptsBase) -> list[PromptRow]:
    """The set's prompts in the campaign's format: with its few-shot examples, and its system message unless they have
    their own."""
    with_system = PromptsBase(system=prompts.system, few_shot=prompts.few_shot)
    without = PromptsBase(few_shot=prompts.few_shot)
    found: dict[str, PromptRow] = {}
    for number, row in enumerate(source.rows):
        own = row["prompt"][0]["role"] == "system"
        messages = messages_of(without if own else with_system, source, row, number)
        if messages is not None:
            found.setdefault(prompt_id(messages), PromptRow(prompt_id(messages), messages, None, dict(row)))
    return list(found.values())
