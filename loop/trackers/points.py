"""Find the points in a run folder that trackers have not received yet, in the order of the campaign.

Every point has a number in a series that only grows, so the last number sent says which points are left.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from loop.measure.metric_names import ITERATION, STEP, alarm_metrics, decided_metrics, labelled_metrics, step_metrics
from loop.store.files import read_lines
from loop.store.run_folder import RunFolder
from loop.store.run_state import TrainCounts
from loop.store.stage import StageFolder
from loop.view.prompt_records import collect_prompts
from loop.view.status import collect, iteration_state

COLUMNS = ("iteration", "prompt", "target", "kind", "response", "cut_off", "verdict", "score", "why")
LONGEST = 2000
"""Characters of a text that are shown."""


class SampleTable(NamedTuple):
    """Rows of COLUMNS, all of them text."""

    name: str
    rows: list[list[str]]

    @property
    def markdown(self) -> str:
        """The same for trackers that show text."""
        lines = [COLUMNS, ["---"] * len(COLUMNS), *self.rows]
        return "\n".join("| " + " | ".join(map(_in_a_cell, line)) + " |" for line in lines)


def sample_table(run: RunFolder, k: int, prompts: int) -> SampleTable:
    """The first `prompts` gate prompts by id, with every response of iteration `k`'s model and its verdict."""
    asked = sorted(collect_prompts(run, k, "gate"), key=lambda one: one.prompt_id)[:prompts]
    rows = []
    for prompt in asked:
        for response in prompt.responses:
            verdict = response.verdict
            assert verdict is not None, response.response_id
            greedy = "greedy" if response.temperature == 0 else "sampled"
            cut_off = "yes" if response.finish_reason == "length" else ""
            texts = [str(k), prompt.prompt, prompt.target, greedy, response.text, cut_off]
            rows.append([_shown(value) for value in (*texts, verdict.kind, verdict.score, verdict.why)])
    return SampleTable("samples/gate", rows)


def _shown(value: Any) -> str:
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _in_a_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


Axis = Literal["iteration", "train/step"]


@dataclass(frozen=True, slots=True)
class Point:
    """Numbers (or a table) at one place of an axis."""

    series: str
    number: int
    axis: Axis
    at: int
    values: dict[str, float]
    table: SampleTable | None = None


def new_points(run: RunFolder, sent: Mapping[str, int], *, samples: int) -> Iterator[Point]:
    """All points that come after what was `sent`: by series, the last number. `samples` prompts are in each table."""
    steps = 0
    for k in run.iterations():
        if k and f"{k} labelled" not in sent and run.stage(k, "pair").manifest():
            yield _of_iteration(k, "labelled", labelled_metrics(iteration_state(run, k)))
        for attempt in range(1, run.attempts(k) + 1) if k else ():
            folder = run.stage(k, "train", attempt)
            finished = steps_of(folder)
            if not finished or sent.get(series_of(folder), -1) < finished - 1:
                yield from _trained(folder, sent, steps)
            steps += finished
        if run.promotion(k).exists() and run.latest(k, "eval").manifest():
            yield from _decided(run, k, sent, samples)


def _of_iteration(k: int, what: str, values: dict[str, float], table: SampleTable | None = None) -> Point:
    return Point(f"{k} {what}", 0, "iteration", k, values | {ITERATION: k}, table)


def _trained(folder: StageFolder, sent: Mapping[str, int], before: int) -> Iterator[Point]:
    """The steps of a round, while it runs and after; `before`: steps in the campaign before it."""
    series = series_of(folder)
    for line in read_lines(folder.step_log):
        if line["step"] > sent.get(series, -1):
            at = before + line["step"]
            values = step_metrics(line) | {"train/iteration": folder.iteration, STEP: at}
            yield Point(series, line["step"], "train/step", at, values)


def series_of(folder: StageFolder) -> str:
    """The series that the steps of a round belong to."""
    return f"{folder.iteration} train {folder.attempt}"


def steps_of(folder: StageFolder) -> int:
    """How many steps a finished round has; 0 for one that still runs, because no other follows it."""
    manifest = folder.manifest()
    return 0 if manifest is None else manifest.counted(TrainCounts).steps


def _decided(run: RunFolder, k: int, sent: Mapping[str, int], samples: int) -> Iterator[Point]:
    if f"{k} decided" not in sent:
        state = collect(run).state_of(k)
        yield _of_iteration(k, "decided", decided_metrics(state) | alarm_metrics(state))
    if samples and f"{k} samples" not in sent and run.judged_shards(k, "gate"):
        yield _of_iteration(k, "samples", {}, sample_table(run, k, samples))
