"""Room loop, the pairs that a reward model is trained on: the config's `data` section comes in, preference data for the
room `trainer` go out. Pairs of a campaign keep the token ids that were sampled; pairs of a file are rendered here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loop.answers import Renderer
from loop.config_types import did_you_mean
from loop.errors import UserError
from loop.files import read_json
from loop.preferences import Conversations, PairReader
from loop.prompt_sources import read_hub, read_rows
from loop.reward_config import FilePairs, HubPairs, RunPairs
from loop.runfolder import RunFolder
from loop.training import read_preferences
from trainer.data import Pair, PreferenceData, PromptGroup, Response

Tick = Callable[[int, int], None]
"""Called with how many rows are done, of how many."""

TICK_EVERY = 500


# ---- a campaign ----


def run_of(data: RunPairs) -> RunFolder:
    """The run that gives the pairs. UserError if there is none."""
    run = RunFolder(Path(data.run))
    if not run.exists():
        known = RunFolder.names_in(run.root.parent)
        there = f"The runs in {run.root.parent}: {', '.join(known) or 'none'}"
        raise UserError(
            f"data.run: there is no run in {run}{did_you_mean(run.name, known) or '.'} {there}. `prefloop run "
            f"{run.name}` starts one of that name."
        )
    return run


def base_of(run: RunFolder) -> Path:
    """The model that the run started from. UserError if it has not got that far, or the model is gone."""
    record = run.promotion(0)
    if not record.exists():
        raise UserError(f"data.run: {run} has found no base model yet; continue it with `prefloop run {run}`.")
    folder = run.root / read_json(record)["policy"]["path"]
    if not folder.is_dir():
        raise UserError(f"The base model of {run} is no longer in {folder}. Put it back, or set base.")
    return folder


def read_run(data: RunPairs) -> PreferenceData:
    """The pairs of the run's iterations, with the responses they name. UserError if there are none."""
    run = run_of(data)
    finished = {k: m for k in run.iterations() if (m := run.stage(k, "pair").manifest())}
    wanted = list(finished) if data.iterations is None else sorted(set(data.iterations))
    if missing := [k for k in wanted if k not in finished]:
        raise UserError(
            f"data.iterations: {run} has no finished pairs of iteration {', '.join(map(str, missing))}; it has those "
            f"of: {', '.join(map(str, finished)) or 'none'}."
        )
    if not wanted:
        raise UserError(f"data.run: {run} has no finished pairs yet; continue it with `prefloop run {run}`.")
    parts = []
    for k in wanted:
        folder = run.stage(k, "pair")
        folder.check(finished[k], verify=False)
        if (made := finished[k].counts.get("kind", "pairs")) != "pairs":
            raise UserError(
                f"data.iterations: iteration {k} of {run} made {made}, and a reward model learns from pairs. Name "
                "iterations that made pairs."
            )
        own, others = run.behind(k)
        again = [other for other in wanted if other != k]  # what is replayed counts once
        parts.append(read_preferences(own, folder.pairs, others, leave_out=again))
    return _joined(parts)


def _joined(parts: Sequence[PreferenceData]) -> PreferenceData:
    """One group per prompt, also if several iterations have sampled it."""
    groups: dict[str, PromptGroup] = {}
    for group in (group for part in parts for group in part.groups):
        before = groups.get(group.id)
        known = {response.id: response for response in (*(before.responses if before else ()), *group.responses)}
        responses = tuple(known.values())  # a gold answer comes again in every iteration
        groups[group.id] = PromptGroup(group.id, group.token_ids, responses)
    return PreferenceData(tuple(groups.values()), tuple(pair for part in parts for pair in part.relations))


# ---- a file or dataset ----


def read_pairs(data: FilePairs | HubPairs, renderer: Renderer, tick: Tick) -> PreferenceData:
    """One pair per row; rows with the same prompt share a group. UserError names the row that cannot be read."""
    if isinstance(data, FilePairs):
        name, rows = read_rows(data.path, "data.path")
    else:
        otherwise = "give a local copy with data.source=file"
        name, rows = read_hub(data.dataset, data.subset, data.split, section="data", otherwise=otherwise)
    reader = PairReader(data, "data", data.chat)
    reader.check(name, rows.column_names)
    made = _Made(renderer)
    for number, row in enumerate(rows, start=1):
        where = f"{name}, row {number}"
        made.add(f"row {number}", where, reader.conversations(row, where), reader.margin(row, where))
        if number % TICK_EVERY == 0:
            tick(number, len(rows))
    return made.data


@dataclass(slots=True)
class _Made:
    """Groups and pairs made so far."""

    renderer: Renderer
    groups: dict[tuple[int, ...], tuple[str, dict[tuple[int, ...], str]]] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)

    def add(self, id: str, where: str, talk: Conversations, margin: float | None) -> None:
        """A row's pair; what is empty stays empty and is dropped and counted by the trainer."""
        prompt = tuple(self.renderer.prompt(talk.prompt, where)) if talk.prompt else ()
        group, responses = self.groups.setdefault(prompt, (id, {}))
        ids = [
            tuple(self.renderer.answer(talk.prompt, turns, where)) if talk.prompt and turns else ()
            for turns in (talk.chosen, talk.rejected)
        ]
        chosen, rejected = (
            responses.setdefault(ids[0], f"{id}, chosen"),
            responses.setdefault(ids[1], f"{id}, rejected"),
        )
        self.pairs.append(Pair(group, chosen, rejected, margin=margin))

    @property
    def data(self) -> PreferenceData:
        """Everything that was added."""
        groups = (
            PromptGroup(id, prompt, tuple(Response(name, ids) for ids, name in responses.items()))
            for prompt, (id, responses) in self.groups.items()
        )
        return PreferenceData(tuple(groups), tuple(self.pairs))
