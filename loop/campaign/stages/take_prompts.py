"""Chooses an iteration's training prompts: applies the configured schedule to the prompts' difficulty, known from a
column, from earlier iterations or from the base model's log-probs."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from loop.campaign.context import Campaign, Iteration
from loop.campaign.stages.answer_log_probs import score, tokenise
from loop.config.prompts_section import MixturePrompts, Order, PreferencePrompts, PromptsBase, rate_columns
from loop.errors import UserError
from loop.pairing.data_answers import answers_of, given_pairs
from loop.prompts.preferences import PAIRS, number_in
from loop.prompts.row import PromptRow
from loop.prompts.sets import ORIGIN, names_of
from loop.seeds import seeded
from loop.store import tables
from loop.store.run_records import Json
from loop.workers.measure_service import read_logps


def ordered(train_ids: Sequence[str], easiness: Mapping[str, float], order: Order) -> list[str]:
    """Sort the prompts by difficulty; `random` keeps their order. `easiness` is higher for easier prompts; a prompt
    without it counts as the median, and ties keep their seeded order."""
    if order == "random":
        return list(train_ids)
    known = [easiness[key] for key in train_ids if key in easiness]
    middle = median(known) if known else 0.0
    sign = -1.0 if order == "easy_to_hard" else 1.0
    return sorted(train_ids, key=lambda key: sign * easiness.get(key, middle))


def pass_of(iteration: int, prompts: int, per_iteration: int) -> tuple[int, int]:
    """How many whole passes over the prompts precede an iteration (from 1), and its slice (from 1) within its pass.
    Prompts left at the end of a pass, fewer than a slice, are skipped in that pass."""
    slices = max(1, prompts // per_iteration)
    return (iteration - 1) // slices, (iteration - 1) % slices + 1


def part_for(iteration: int, train_ids: Sequence[str], parts: int) -> list[str]:
    """Part `iteration` (from 1) of `parts` nearly equal ones. UserError if there are fewer prompts than parts."""
    if parts > len(train_ids):
        raise UserError(
            f"prompts.parts is {parts}, but only {len(train_ids)} prompts have pairs to train on; lower it, or provide "
            "more pairs."
        )
    start, stop = ((iteration + end) * len(train_ids) // parts for end in (-1, 0))
    return list(train_ids[start:stop])


def slice_for(iteration: int, train_ids: Sequence[str], per_iteration: int | None, seed: int) -> list[int]:
    """Indexes into `train_ids` of the prompts that an iteration (from 1) samples; without `per_iteration`, all.

    Slices are consecutive parts of `train_ids` in the seeded order of `build_prompt_sets`: disjoint, and unchanged
    when training prompts are appended later. Within an iteration the order depends only on the seed and the ids.
    """
    chosen = range(len(train_ids))
    if per_iteration is not None:
        start, stop = (iteration - 1) * per_iteration, iteration * per_iteration
        if stop > len(train_ids):
            raise UserError(
                f"Iteration {iteration} needs training prompts {start + 1} to {stop} (prompts.per_iteration="
                f"{per_iteration}), but there are {len(train_ids)}; raise prompts.train, lower iterations, or set "
                f"prompts.per_iteration to null, which samples all of them every iteration."
            )
        chosen = range(start, stop)
    rank = {key: place for place, key in enumerate(seeded((train_ids[index] for index in chosen), seed))}
    return sorted(chosen, key=lambda index: rank[train_ids[index]])


@dataclass(frozen=True, slots=True)
class Take:
    """The prompts of an iteration, and what determined the choice."""

    rows: Callable[[], list[PromptRow]]
    """Finds the prompts; not called for a finished iteration. UserError if there are too few."""
    inputs: Json
    """Settings by dotted key."""
    made_from: dict[str, str]
    """Digests of the measured difficulty."""


def take_prompts(it: Iteration) -> Take:
    """The training prompts of the iteration."""
    campaign, prompts, train = it.campaign, it.campaign.base.prompts, it.prompts["train"]
    easiness, made_from = _easiness(campaign, it.k, train)
    rows = {row.id: row for row in train}
    inputs = {f"prompts.{key}": value for key, value in prompts.scheduled().items()}
    choose = partial(_chosen, prompts, it.k, ordered(list(rows), easiness, prompts.order), campaign.base.seed)
    return Take(lambda: [rows[id] for id in choose()], inputs, made_from)


def _chosen(prompts: PromptsBase, k: int, ids: list[str], seed: int) -> list[str]:
    """The ids an iteration takes, out of all ids in order."""
    if isinstance(prompts, PreferencePrompts) and prompts.parts is not None:
        return part_for(k, ids, prompts.parts)
    again = prompts.order != "random" and prompts.per_iteration is not None
    place = pass_of(k, len(ids), prompts.per_iteration or 1)[1] if again else k
    return [ids[i] for i in slice_for(place, ids, prompts.per_iteration, seed)]


def _easiness(campaign: Campaign, k: int, train: list[PromptRow]) -> tuple[dict[str, float], dict[str, str]]:
    """Each prompt's easiness, where known (higher is easier), and the digests it was computed from."""
    prompts = campaign.base.prompts
    if prompts.order == "random":
        return {}, {}
    if not isinstance(prompts, PreferencePrompts):
        assert prompts.per_iteration is not None, "refused when the config was loaded"
        passes, _ = pass_of(k, len(train), prompts.per_iteration)
        measured = measured_rates(campaign, passes * max(1, len(train) // prompts.per_iteration))
        return given_rates(prompts, train) | measured, {"solve rates": tables.digest(measured)} if measured else {}
    if prompts.order_by == "margin":
        return margins_of(train), {}
    return base_easiness(campaign, train)


def given_rates(prompts: PromptsBase, train: list[PromptRow]) -> dict[str, float]:
    """Solve rates from the data; in a mixture each source has its own column. UserError for a value outside 0 to 1."""
    if isinstance(prompts, MixturePrompts):
        by_source: dict[str, list[PromptRow]] = {name: [] for name in names_of(prompts)}
        for row in train:
            by_source[row.columns[ORIGIN]].append(row)
        each = zip(prompts.sources, by_source.values(), strict=True)
        return {id: rate for mixed, rows in each for id, rate in given_rates(mixed.prompts, rows).items()}
    return {id: rate for column in rate_columns(prompts) for id, rate in rates_in(train, column).items()}


def rates_in(train: list[PromptRow], column: str) -> dict[str, float]:
    """Solve rates from a column. UserError for a value outside 0 to 1."""
    found: dict[str, float] = {}
    for row in train:
        where = f"prompts.solve_rate_column: prompt {row.id}"
        if column not in row.columns:
            raise UserError(f"{where} has no column {column!r}; it has {', '.join(row.columns) or 'none'}.")
        rate = number_in(row.columns, column, where, "solve rate")
        if rate is not None and not 0 <= rate <= 1:
            raise UserError(f"{where}, column {column!r}: the solve rate is {rate:g}, expected a share from 0 to 1.")
        found |= {} if rate is None else {row.id: rate}
    return found


def measured_rates(campaign: Campaign, iterations: int) -> dict[str, float]:
    """Share of correct responses per prompt over the first `iterations`; the latest measurement counts."""
    correct_at, rates = campaign.base.pairs.correct_at, dict[str, float]()
    for k in range(1, iterations + 1):
        right: defaultdict[str, list[bool]] = defaultdict(list)
        for _, verdicts in campaign.run.judged_shards(k, "train"):
            for row in tables.read(verdicts, ["prompt_id", "kind", "score"]).to_pylist():
                if row["kind"] == "score":
                    right[row["prompt_id"]].append(row["score"] >= correct_at)
        rates |= {id: sum(each) / len(each) for id, each in right.items()}
    return rates


def margins_of(train: list[PromptRow]) -> dict[str, float]:
    """Mean margin over each prompt's pairs that have one. UserError if no pair has one."""
    margins = {row.id: [p["margin"] for p in row.columns[PAIRS] if p["margin"] is not None] for row in train}
    found = {id: sum(each) / len(each) for id, each in margins.items() if each}
    if not found:
        raise UserError(
            "prompts.order_by is margin, but no pair has a margin; set prompts.margin_column to the column that holds "
            "it, or prompts.order_by to model."
        )
    return found


def base_easiness(campaign: Campaign, train: list[PromptRow]) -> tuple[dict[str, float], dict[str, str]]:
    """Mean log-prob of the chosen minus the rejected answer under the base model, in nats, measured once. In this order
    the share of pairs that the base model ranks correctly falls from part to part, as in sDPO (arXiv:2403.19270,
    section 4.1)."""
    folder, initial = campaign.run.stage(0, "ease"), campaign.pool.initial
    assert initial is not None, "the base model is found before the first iteration"
    pairs = [pair for row in train for pair in given_pairs(row)]
    inputs = {"made from": {"prompts": campaign.prompts_digest, "policy": initial.digest}}
    logps = folder.logps("train")
    manifest = campaign.finished(folder, inputs)
    if manifest is None:
        campaign.begin_work()
        started, answers = time.perf_counter(), folder.answers
        tokenise(campaign, answers_of(pairs), answers)
        computed = score(campaign, folder, "measure pair difficulty", initial.folder, {answers: logps})
        gaps = _gaps(train, logps)
        right = sum(gap > 0 for each in gaps.values() for gap in each)
        counts = {"pairs": len(pairs), "known": sum(map(len, gaps.values())), "ranked_right": right}
        seconds = {"wall": time.perf_counter() - started, **computed}
        manifest = campaign.finish(folder, [answers, logps], inputs=inputs, counts=counts, seconds=seconds)
    easiness = {id: sum(each) / len(each) for id, each in _gaps(train, logps).items() if each}
    return easiness, {"ease": manifest.digest}


def _gaps(train: list[PromptRow], path: Path) -> dict[str, list[float]]:
    """By prompt, log-prob of the chosen minus the rejected answer, in nats, for each pair with both log-probs."""
    logps = read_logps(path)
    pairs = {row.id: [pair.made for pair in given_pairs(row)] for row in train}
    return {
        id: [
            logps[pair.chosen_id] - logps[pair.rejected_id]
            for pair in of_prompt
            if pair.chosen_id in logps and pair.rejected_id in logps
        ]
        for id, of_prompt in pairs.items()
    }
