"""Room loop, the stage pair: judged responses, or pairs that the data bring, become what is trained on, with replayed
and offline pairs beside them; outcomes are counted by reason, and what there was to learn is noted as the signal."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from loop import tables
from loop.config import Config
from loop.config_pairs import BY_OUTCOME
from loop.context import Campaign
from loop.errors import UserError
from loop.files import write_file
from loop.pairing.answers import read_answers, texts_of, wanted
from loop.pairing.files import judged_groups, table_of
from loop.pairing.given import answers_of, within_cap
from loop.pairing.iteration import Pairing, pair_all, why_no_pairs
from loop.pairing.records import Answers, Made
from loop.pairing.table import RULES
from loop.prompts import PromptRow, read_table
from loop.runfolder import Manifest, StageFolder
from loop.signal import Tally, entropy, use_of
from loop.stages.alarm import sound_alarms
from loop.stages.answers import tokenise
from loop.stages.beside import Beside, pairs_beside, sources_of
from loop.stages.slices import Slice


@dataclass(frozen=True, slots=True)
class Own:
    """What an iteration makes itself; `counts` says what became of prompts and responses."""

    relations: Sequence[Made]
    counts: dict[str, Any]
    files: list[Path] = field(default_factory=list)


def pair_stage(
    campaign: Campaign,
    k: int,
    sampled: Manifest,
    judged: Manifest,
    taken: Slice,
    sets: Mapping[str, Sequence[PromptRow]],
) -> Manifest:
    """Build pairs from groups and verdicts, or take those of the data; every prompt and response that gave none is
    counted under a reason. Beside them stand pairs of earlier iterations and of an offline set, if the settings ask."""
    config, folder = campaign.loaded.at(k), campaign.run.stage(k, "pair")
    inputs = pair_inputs(campaign, k, sampled, judged, taken)
    if manifest := campaign.finished(folder, inputs):
        return manifest
    campaign.begin_work()
    started = time.perf_counter()
    own = from_responses(campaign, k, sampled) if config.samples else from_data(campaign, k, taken)
    held_out = {row.id for name in ("gate", "test") for row in sets[name]}
    beside = pairs_beside(campaign, k, len(own.relations), held_out)
    return finish_pairing(campaign, folder, own, beside, inputs, time.perf_counter() - started)


def finish_pairing(
    campaign: Campaign, folder: StageFolder, own: Own, beside: Beside, inputs: dict[str, Any], wall: float
) -> Manifest:
    """Write the table of what was made and of what stands beside it, and the manifest."""
    kind = RULES[campaign.loaded.at(folder.iteration).pairs.rule].kind
    table = pa.concat_tables([table_of(own.relations, kind, folder.iteration), *beside.tables])
    path = folder.relations(kind)
    write_relations(path, table)
    counts = {"pairs": table.num_rows, "kind": kind, **own.counts, **beside.counts}
    files = [path, *own.files, *beside.files]
    manifest = campaign.finish(folder, files, inputs=inputs, counts=counts, seconds={"wall": wall})
    sound_alarms(campaign, folder.iteration, "pair")
    return manifest


def pair_inputs(campaign: Campaign, k: int, sampled: Manifest, judged: Manifest, taken: Slice) -> dict[str, Any]:
    """What decides what is made; the seed only where chance has a part."""
    config = campaign.loaded.at(k)
    recorded = {f"pairs.{key}": value for key, value in config.pairs.recorded().items()}
    others = sources_of(campaign, k)
    drawn = {"seed": config.seed} if RULES[config.pairs.rule].draws or others or not config.samples else {}
    if config.samples:
        made_from = {"sample": sampled.digest, "judge": judged.digest}
    else:
        recorded |= taken.inputs
        made_from = {"prompts": campaign.prompts_digest, **taken.made_from}
    return recorded | drawn | {"made from": made_from | others}


def from_data(campaign: Campaign, k: int, taken: Slice) -> Own:
    """The pairs that the data bring for these prompts, as tokens of the policy."""
    config, folder = campaign.loaded.at(k), campaign.run.stage(k, "pair")
    pairs = within_cap(taken.rows, config.pairs.max_pairs, k)
    tokenise(campaign, answers_of(pairs), folder.answers)
    used = len({pair.chosen.prompt.id for pair in pairs})
    outcomes = {"paired": used, "over_cap": len(taken.rows) - used}
    counts = {"responses": {}, "prompts": {name: count for name, count in outcomes.items() if count}}
    return Own([pair.made for pair in pairs], counts, [folder.answers])


def from_responses(campaign: Campaign, k: int, sampled: Manifest) -> Own:
    """What the rule makes of the judged responses. UserError if it is nothing."""
    config, folder = campaign.loaded.at(k), campaign.run.stage(k, "pair")
    samples, verdicts = campaign.run.stage(k, "sample"), campaign.run.stage(k, "judge")
    shards = [(samples.path / name, verdicts.path / name) for name in sampled.shards]
    rows = sampled_rows(campaign, [path for path, _ in shards]) if wanted(config.pairs) else []
    answers = given_answers(campaign, config, folder, rows)
    tally = tally_for(config)
    pairing = pair_all(tally.watch(judged_groups(shards)), config.pairs, k, answers=answers, seed=config.seed)
    assert sum(pairing.responses.values()) == sampled.counts["responses"]
    return own_of(pairing, folder, answers, signal_of(tally, pairing, [path for path, _ in shards]))


def own_of(
    pairing: Pairing, folder: StageFolder, answers: Mapping[str, Answers], signal: dict[str, float | None]
) -> Own:
    """What an iteration's responses came to. UserError if it is nothing."""
    refuse_nothing(pairing, folder)
    counts = {"responses": pairing.responses, "prompts": pairing.prompts, "signal": signal}
    return Own(pairing.relations, counts, [folder.answers] if answers else [])


def refuse_nothing(pairing: Pairing, folder: StageFolder) -> None:
    """UserError if an iteration has nothing to train on."""
    if not pairing.relations:
        raise UserError(
            f"There is nothing to train on: {why_no_pairs(pairing)}. The samples and verdicts are kept "
            f"in {folder.path.parent}."
        )


def write_relations(path: Path, table: pa.Table) -> None:
    """Put the table of what was made where it is read."""
    write_file(path, tables.table_bytes(tables.noted(table, {})))


def tally_for(config: Config) -> Tally:
    """A count of what the iteration's groups hold to learn from."""
    return Tally(config.pairs.correct_at, by_outcome=config.pairs.rule in BY_OUTCOME)


def signal_of(tally: Tally, pairing: Pairing, shards: list[Path]) -> dict[str, float | None]:
    """What there was to learn from the iteration, by name; the log-probs are read shard by shard."""
    numbers = tally.numbers() | {"entropy": entropy(map(log_probs_in, shards))}
    return numbers | use_of(pairing.relations, sum(pairing.prompts.values()), sum(pairing.responses.values()))


def log_probs_in(shard: Path) -> tuple[float, int]:
    """Sum and number of the sampled tokens' log-probs."""
    values = pc.list_flatten(tables.read(shard, ["logprobs"])["logprobs"])
    return pc.sum(pc.cast(values, "double")).as_py() or 0.0, len(values)


def given_answers(
    campaign: Campaign, config: Config, folder: StageFolder, rows: list[PromptRow]
) -> Mapping[str, Answers]:
    """Gold and bad answers of these prompts; none unless the rule takes any."""
    if not wanted(config.pairs):
        return {}
    texts = texts_of(rows, config.pairs)
    if not texts:
        return {}
    tokenise(campaign, texts, folder.answers)
    return read_answers(folder.answers, config.pairs)


def sampled_rows(campaign: Campaign, shards: list[Path]) -> list[PromptRow]:
    """The data rows of the prompts that were sampled."""
    ids = {id for path in shards for id in pc.unique(tables.read(path, ["prompt_id"])["prompt_id"]).to_pylist()}
    prompts = tables.read(campaign.run.prompts().path / "train.parquet")
    return [row for row in read_table(prompts) if row.id in ids]
