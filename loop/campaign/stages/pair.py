"""Stage pair: turns judged responses, or pairs from the data, into training examples, adds replayed and offline pairs,
counts outcomes by reason, and records the training signal."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from loop.campaign.context import Campaign, Iteration, sound_alarms
from loop.campaign.stages.answer_log_probs import tokenise
from loop.campaign.stages.extra_pairs import ExtraPairs, extra_pairs, sources_of
from loop.campaign.stages.take_prompts import Take
from loop.config.rule_table import RULES
from loop.config.settings import Config
from loop.errors import UserError
from loop.measure.signal import Tally, entropy, use_of
from loop.pairing.data_answers import RULE, answers_of, read_answers, texts_of, wanted, within_cap
from loop.pairing.io import judged_groups, table_of
from loop.pairing.iteration import Pairing, pair_all
from loop.pairing.reasons import why_nothing
from loop.pairing.records import Answers, Made
from loop.prompts.row import PromptRow, read_table
from loop.store import tables
from loop.store.files import write_file
from loop.store.run_records import Json
from loop.store.run_state import SampleCounts
from loop.store.stage import Manifest, StageFolder


@dataclass(frozen=True, slots=True)
class Own:
    """What an iteration makes itself; `counts` holds the outcomes of prompts and responses by reason."""

    relations: Sequence[Made]
    counts: Json
    files: list[Path] = field(default_factory=list)


def pair_stage(it: Iteration, sampled: Manifest, judged: Manifest, taken: Take) -> Manifest:
    """Build pairs from judged responses, or take them from the data, and add the configured extra pairs. Every prompt
    and response that gave none is counted under a reason."""
    inputs = pair_inputs(it, sampled, judged, taken)
    if manifest := it.campaign.finished(it.folder("pair"), inputs):
        return manifest
    it.campaign.begin_work()
    started = time.perf_counter()
    own = from_responses(it, sampled) if it.config.samples else from_data(it, taken)
    extra = extra_pairs(it, len(own.relations))
    return finish_pairing(it, own, extra, inputs, time.perf_counter() - started)


def finish_pairing(it: Iteration, own: Own, extra: ExtraPairs, inputs: Json, wall: float) -> Manifest:
    """Write the table of own and extra pairs, and the manifest."""
    kind, folder = RULES[it.config.pairs.rule].kind, it.folder("pair")
    rule = it.config.pairs.rule if it.config.samples else RULE
    table = pa.concat_tables([table_of(own.relations, kind, it.k, rule), *extra.tables])
    path = folder.relations(kind)
    write_relations(path, table)
    counts = {"pairs": table.num_rows, "kind": kind, **own.counts, **extra.counts}
    files = [path, *own.files, *extra.files]
    manifest = it.campaign.finish(folder, files, inputs=inputs, counts=counts, seconds={"wall": wall})
    sound_alarms(it.campaign, it.k, "pair")
    return manifest


def pair_inputs(it: Iteration, sampled: Manifest, judged: Manifest, taken: Take) -> Json:
    """Settings and digests that determine the pairs; the seed only where something is drawn."""
    config = it.config
    recorded = {f"pairs.{key}": value for key, value in config.pairs.model_dump(mode="json").items()}
    others = sources_of(it)
    drawn = {"seed": config.seed} if RULES[config.pairs.rule].draws or others or not config.samples else {}
    if config.samples:
        made_from = {"sample": sampled.digest, "judge": judged.digest}
    else:
        recorded |= taken.inputs
        made_from = {"prompts": it.campaign.prompts_digest, **taken.made_from}
    return recorded | drawn | {"made from": made_from | others}


def from_data(it: Iteration, taken: Take) -> Own:
    """The pairs that the data hold for these prompts, as policy tokens."""
    folder, rows = it.folder("pair"), taken.rows()
    pairs = within_cap(rows, it.config.pairs.max_pairs, it.k)
    tokenised = tokenise(it.campaign, answers_of(pairs), folder.answers)
    kept = tokenised.without_dropped(pairs)
    used = len({pair.chosen.prompt.id for pair in kept})
    changed = len({pair.chosen.prompt.id for pair in pairs}) - used
    outcomes = {"paired": used, "over_cap": len(rows) - used - changed, "changed_by_template": changed}
    counts = {"responses": {}, "prompts": {name: count for name, count in outcomes.items() if count}}
    if not kept:
        raise UserError(f"There is nothing to train on: {tokenised.note or 'the data hold no pair'}.")
    return Own([pair.made for pair in kept], counts, [folder.answers])


def from_responses(it: Iteration, sampled: Manifest) -> Own:
    """Apply the pair rule to the judged responses. UserError if that yields nothing."""
    config, folder = it.config, it.folder("pair")
    samples, verdicts = it.folder("sample"), it.folder("judge")
    shards = [(samples.path / name, verdicts.path / name) for name in sampled.shards]
    rows = sampled_rows(it.campaign, [path for path, _ in shards]) if wanted(config.pairs) else []
    answers = given_answers(it, rows)
    tally = tally_for(config)
    pairing = pair_all(tally.watch(judged_groups(shards)), config.pairs, it.k, answers=answers, seed=config.seed)
    assert sum(pairing.responses.values()) == sampled.counted(SampleCounts).responses
    return own_of(pairing, folder, answers, signal_of(tally, pairing, [path for path, _ in shards]))


def own_of(
    pairing: Pairing, folder: StageFolder, answers: Mapping[str, Answers], signal: dict[str, float | None]
) -> Own:
    """Collect the pairs and counts of an iteration's responses. UserError if there are no pairs."""
    refuse_nothing(pairing, folder)
    counts = {"responses": pairing.responses, "prompts": pairing.prompts, "signal": signal}
    return Own(pairing.relations, counts, [folder.answers] if answers else [])


def refuse_nothing(pairing: Pairing, folder: StageFolder) -> None:
    """UserError if an iteration has nothing to train on."""
    if not pairing.relations:
        why = why_nothing(pairing.iteration, pairing.prompts, pairing.responses)
        kept = f"The samples and verdicts are kept in {folder.path.parent}."
        raise UserError(f"There is nothing to train on: {why}. {kept}")


def write_relations(path: Path, table: pa.Table) -> None:
    """Write the table of pairs, singles or groups."""
    write_file(path, tables.table_bytes(tables.noted(table, {})))


def tally_for(config: Config) -> Tally:
    """A new tally of the iteration's training signal."""
    return Tally(config.pairs.correct_at, by_outcome=RULES[config.pairs.rule].by_outcome)


def signal_of(tally: Tally, pairing: Pairing, shards: list[Path]) -> dict[str, float | None]:
    """The iteration's training signal, by metric name; log-probs are read shard by shard."""
    numbers = tally.numbers() | {"entropy": entropy(map(log_probs_in, shards))}
    return numbers | use_of(pairing.relations, sum(pairing.prompts.values()), sum(pairing.responses.values()))


def log_probs_in(shard: Path) -> tuple[float, int]:
    """Sum (nats) and number of the sampled tokens' log-probs."""
    values = pc.list_flatten(tables.read(shard, ["logprobs"])["logprobs"])
    return pc.sum(pc.cast(values, "double")).as_py() or 0.0, len(values)


def given_answers(it: Iteration, rows: list[PromptRow]) -> Mapping[str, Answers]:
    """Gold and bad answers for these prompts; empty unless the rule uses them."""
    pairs, path = it.config.pairs, it.folder("pair").answers
    if not wanted(pairs):
        return {}
    texts = texts_of(rows, pairs)
    if not texts:
        return {}
    tokenise(it.campaign, texts, path)
    return read_answers(path, pairs)


def sampled_rows(campaign: Campaign, shards: list[Path]) -> list[PromptRow]:
    """The rows of the prompts that were sampled."""
    ids = {id for path in shards for id in pc.unique(tables.read(path, ["prompt_id"])["prompt_id"]).to_pylist()}
    prompts = tables.read(campaign.run.prompts().path / "train.parquet")
    return [row for row in read_table(prompts) if row.id in ids]
