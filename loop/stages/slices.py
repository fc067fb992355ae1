"""Room loop, which training prompts an iteration takes: the schedule of the settings is applied to what is known of the
prompts' ease, from a column, from earlier iterations or from the base model's log-probs."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loop import tables
from loop.answer_scores import read_logps
from loop.config_prompts import MixturePrompts, PreferencePrompts, PromptsBase, rate_columns
from loop.context import Campaign
from loop.errors import UserError
from loop.pairing.given import answers_of, given_pairs
from loop.preference_data import PAIRS
from loop.preferences import number_in
from loop.prompt_mixture import ORIGIN, names_of
from loop.prompts import PromptRow
from loop.slices import ordered, part_for, pass_of, slice_for
from loop.stages.answers import score, tokenise


@dataclass(frozen=True, slots=True)
class Slice:
    """The prompts of an iteration, and what decided that it is these."""

    choose: Callable[[], list[PromptRow]]
    """Finds them; not called for an iteration that is finished."""
    inputs: dict[str, Any]
    """Settings by their dotted key."""
    made_from: dict[str, str]
    """Digests of what was measured."""

    @property
    def rows(self) -> list[PromptRow]:
        """The prompts. UserError if there are too few."""
        return self.choose()


def slice_of(campaign: Campaign, k: int, train: list[PromptRow]) -> Slice:
    """The training prompts of iteration `k`."""
    prompts = campaign.base.prompts
    ease, made_from = _ease(campaign, k, train)
    rows = {row.id: row for row in train}
    inputs = {f"prompts.{key}": value for key, value in prompts.scheduled().items()}
    choose = partial(_chosen, prompts, k, ordered(list(rows), ease, prompts.order), campaign.base.seed)
    return Slice(lambda: [rows[id] for id in choose()], inputs, made_from)


def _chosen(prompts: PromptsBase, k: int, ids: list[str], seed: int) -> list[str]:
    """The ids of an iteration, out of all in their order."""
    if isinstance(prompts, PreferencePrompts) and prompts.parts is not None:
        return part_for(k, ids, prompts.parts)
    again = prompts.order != "random" and prompts.per_iteration is not None
    place = pass_of(k, len(ids), prompts.per_iteration or 1)[1] if again else k
    return [ids[i] for i in slice_for(place, ids, prompts.per_iteration, seed)]


def _ease(campaign: Campaign, k: int, train: list[PromptRow]) -> tuple[dict[str, float], dict[str, str]]:
    """How easy each prompt is, as far as it is known, and the digests of what says so."""
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
    return model_ease(campaign, train)


def given_rates(prompts: PromptsBase, train: list[PromptRow]) -> dict[str, float]:
    """Solve rates that the prompts bring, in a mixture each source in its own column. UserError for what is no
    share."""
    if isinstance(prompts, MixturePrompts):
        by_source: dict[str, list[PromptRow]] = {name: [] for name in names_of(prompts)}
        for row in train:
            by_source[row.columns[ORIGIN]].append(row)
        each = zip(prompts.sources, by_source.values(), strict=True)
        return {id: rate for mixed, rows in each for id, rate in given_rates(mixed.prompts, rows).items()}
    return {id: rate for column in rate_columns(prompts) for id, rate in rates_in(train, column).items()}


def rates_in(train: list[PromptRow], column: str) -> dict[str, float]:
    """Solve rates from a column. UserError for what is no share."""
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
    """Shares of correct responses by prompt, in the first so many iterations; what was measured last counts."""
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
    """Mean margin of each prompt's pairs that have one. UserError if none has."""
    margins = {row.id: [p["margin"] for p in row.columns[PAIRS] if p["margin"] is not None] for row in train}
    found = {id: sum(each) / len(each) for id, each in margins.items() if each}
    if not found:
        raise UserError(
            "prompts.order_by is margin, but no pair has one; name their column in prompts.margin_column, or set "
            "prompts.order_by to model"
        )
    return found


def model_ease(campaign: Campaign, train: list[PromptRow]) -> tuple[dict[str, float], dict[str, str]]:
    """Mean log-prob of chosen less rejected answers under the base model, in nats, measured once for all iterations. In
    this order the share of pairs that the base model ranks right falls from part to part, which is how sDPO orders
    its data (arXiv:2403.19270, section 4.1)."""
    folder, initial = campaign.run.stage(0, "ease"), campaign.crew.initial
    assert initial is not None, "the base model is found before the first iteration"
    pairs = [pair for row in train for pair in given_pairs(row)]
    inputs = {"made from": {"prompts": campaign.prompts_digest, "policy": initial.digest}}
    logps = folder.logps("train")
    manifest = campaign.finished(folder, inputs)
    if manifest is None:
        campaign.begin_work()
        started, answers = time.perf_counter(), folder.answers
        tokenise(campaign, answers_of(pairs), answers)
        computed = score(campaign, folder, "how easy the pairs are", initial.folder, {answers: logps})
        gaps = _gaps(train, logps)
        right = sum(gap > 0 for each in gaps.values() for gap in each)
        counts = {"pairs": len(pairs), "known": sum(map(len, gaps.values())), "ranked_right": right}
        seconds = {"wall": time.perf_counter() - started, **computed}
        manifest = campaign.finish(folder, [answers, logps], inputs=inputs, counts=counts, seconds=seconds)
    ease = {id: sum(each) / len(each) for id, each in _gaps(train, logps).items() if each}
    return ease, {"ease": manifest.digest}


def _gaps(train: list[PromptRow], path: Path) -> dict[str, list[float]]:
    """By prompt, log-prob of the chosen less that of the rejected answer, in nats, of each pair that has both."""
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
