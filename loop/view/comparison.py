"""Compare runs and iterations with the first one: settings, metrics, paired tests, examples of disagreement."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loop.config.load import LoadedConfig, diff
from loop.errors import UserError
from loop.measure.evaluation import compare as paired
from loop.measure.evaluation import metrics_of, read_evaluation
from loop.measure.stats import unpaired_difference
from loop.store import tables
from loop.store.lineage import Parent, settings_of
from loop.store.locate import find_run, find_run_at
from loop.store.run_folder import RunFolder
from loop.store.run_records import Difference, Evaluation, Json, SetMetrics
from loop.store.run_state import RunState
from loop.view.prompt_records import GreedyAnswer, greedy_answers
from loop.view.status import collect


@dataclass(frozen=True, slots=True)
class EntrantSummary:
    """A compared model: an iteration of a run, with its metrics on both held-out sets."""

    name: str
    """As on the command line."""
    run: str
    iteration: int
    incumbent: bool
    """Whether it is the run's incumbent."""
    parent: Parent | None
    """Run and iteration that the run was forked from."""
    gate: SetMetrics
    test: SetMetrics

    def as_json(self) -> Json:
        """Plain values, without the counts per prompt."""
        return asdict(self) | {
            "parent": self.parent and self.parent.as_json(),
            "gate": self.gate.as_json(counts=False),
            "test": self.test.as_json(counts=False),
        }


@dataclass(frozen=True, slots=True)
class ChangedSetting:
    """A key with its value in each of the compared models."""

    key: str
    values: list[Any]


@dataclass(frozen=True, slots=True)
class IterationMetrics:
    """Test metrics of one iteration in each run; None where a run has none."""

    iteration: int
    test: list[SetMetrics | None]

    def as_json(self) -> Json:
        """Plain values, without the counts per prompt."""
        return {"iteration": self.iteration, "test": [one and one.as_json(counts=False) for one in self.test]}


@dataclass(frozen=True, slots=True)
class PromptCounts:
    """Test prompts of the first and of the second model, and of both."""

    first: int
    second: int
    both: int


@dataclass(frozen=True, slots=True)
class CorrectInOne:
    """Number of test prompts whose greedy response is correct in only one of two models."""

    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A test prompt whose greedy response is correct in only one of two models."""

    prompt_id: str
    first: GreedyAnswer
    second: GreedyAnswer

    def as_json(self) -> Json:
        """Plain values."""
        shared = {"prompt_id": self.prompt_id, "prompt": self.first.prompt, "target": self.first.target}
        return shared | {"first": self.first.as_json(), "second": self.second.as_json()}


@dataclass(frozen=True, slots=True)
class ModelDifference:
    """How the second model differs from the first on the test prompts."""

    first: str
    second: str
    paired: bool
    """Whether the test prompts are the same, so that the tests are paired by prompt."""
    test_prompts: PromptCounts
    evaluated_differently: list[ChangedSetting]
    """Inputs of the evaluation that differ, other than model and prompts."""
    metrics: dict[str, Difference]
    only_right: CorrectInOne
    disagreements: list[Disagreement]
    """As many examples as were asked for."""

    def as_json(self) -> Json:
        """Plain values."""
        plain = asdict(self) | {"disagreements": [one.as_json() for one in self.disagreements]}
        plain["test_prompts"]["in both"] = plain["test_prompts"].pop("both")
        return plain


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several models, each compared with the first."""

    entrants: list[EntrantSummary]
    confidence: float
    settings: list[ChangedSetting]
    """The settings that differ."""
    iterations: list[IterationMetrics]
    comparisons: list[ModelDifference]
    """One for each entrant after the first."""

    def as_json(self) -> Json:
        """Plain values."""
        parts = ("entrants", "iterations", "comparisons")
        plain = {name: [one.as_json() for one in getattr(self, name)] for name in parts}
        return plain | {"confidence": self.confidence, "settings": [asdict(one) for one in self.settings]}


@dataclass(frozen=True, slots=True)
class Entrant:
    """A model to compare: one iteration of a run. `label` is its name on the command line."""

    label: str
    run: RunFolder
    iteration: int
    loaded: LoadedConfig
    state: RunState

    @property
    def evaluation(self) -> Evaluation:
        """Metrics on the gate and test prompts, with counts per prompt."""
        return read_evaluation(self.run.latest(self.iteration, "eval").metrics)

    @property
    def asked(self) -> set[str]:
        """Ids of the test prompts: hashes of their messages."""
        path = self.run.prompts().path / "test.parquet"
        return set(tables.read(path, ["id"])["id"].to_pylist())

    @property
    def greedy(self) -> dict[str, GreedyAnswer]:
        """The greedy answers to the test prompts."""
        return greedy_answers(self.run, self.iteration, self.loaded.base.pairs.correct_at)


def compare_runs(names: Sequence[str], runs: Path, limit: int) -> Comparison:
    """How the models differ, with up to `limit` examples for each. Raises UserError."""
    if len(names) < 2:
        raise UserError("compare needs at least two runs: `prefloop compare RUN RUN`, or RUN@K for an iteration.")
    entrants = [_entrant(name, runs) for name in names]
    first, *others = entrants
    return Comparison(
        entrants=[_summary(entrant) for entrant in entrants],
        confidence=first.loaded.base.promote.confidence,
        settings=_changed_settings(entrants),
        iterations=_by_iteration(entrants),
        comparisons=[_difference(first, other, limit) for other in others],
    )


def _entrant(name: str, runs: Path) -> Entrant:
    if "@" in name and not RunFolder(Path(name)).exists():
        run, iteration = find_run_at(name, runs)
        state = collect(run)
    else:
        run = find_run(name, runs)
        state = collect(run)
        iteration = state.incumbent
    if run.latest(iteration, "eval").manifest() is None:
        raise UserError(
            f"Iteration {iteration} of {run} is not evaluated yet, so it cannot be compared; continue the run with "
            f"`prefloop run {run}`."
        )
    return Entrant(name, run, iteration, settings_of(run), state)


def _summary(entrant: Entrant) -> EntrantSummary:
    return EntrantSummary(
        name=entrant.label,
        run=str(entrant.run),
        iteration=entrant.iteration,
        incumbent=entrant.iteration == entrant.state.incumbent,
        parent=entrant.state.parent,
        gate=entrant.evaluation.gate,
        test=entrant.evaluation.test,
    )


def _changed_settings(entrants: Sequence[Entrant]) -> list[ChangedSetting]:
    """Keys that differ between entrants, with the value of each."""
    first, *others = entrants
    changes = [{key: (old, new) for key, old, new in diff(first.loaded.raw, other.loaded.raw)} for other in others]
    originals = {key: old for changed in changes for key, (old, _) in changed.items()}
    return [
        ChangedSetting(key, [old, *(changed.get(key, (old, old))[1] for changed in changes)])
        for key, old in originals.items()
    ]


def _by_iteration(entrants: Sequence[Entrant]) -> list[IterationMetrics]:
    known = [{it.iteration: it.test for it in entrant.state.iterations} for entrant in entrants]
    numbers = sorted({number for tests in known for number in tests})
    return [IterationMetrics(number, [tests.get(number) for tests in known]) for number in numbers]


def _difference(first: Entrant, second: Entrant, limit: int) -> ModelDifference:
    """Compare `second` with `first`: paired by prompt if the test prompts are the same, else unpaired."""
    asked, confidence = (first.asked, second.asked), first.loaded.base.promote.confidence
    same = asked[0] == asked[1]
    test = paired if same else _unpaired
    one, two = first.evaluation.test, second.evaluation.test
    disagreements = _disagreements(first.greedy, second.greedy)
    only_first = sum(example.first.right for example in disagreements)
    return ModelDifference(
        first=first.label,
        second=second.label,
        paired=same,
        test_prompts=PromptCounts(len(asked[0]), len(asked[1]), len(asked[0] & asked[1])),
        evaluated_differently=_evaluated_differently(first, second),
        metrics={name: test(one, two, name, confidence) for name in metrics_of(one, two)},
        only_right=CorrectInOne(only_first, len(disagreements) - only_first),
        disagreements=disagreements[:limit],
    )


def _unpaired(first: SetMetrics, second: SetMetrics, metric: str, confidence: float) -> Difference:
    one, two = (tuple(zip(*side.counts[metric].values(), strict=True)) or ((), ()) for side in (first, second))
    return unpaired_difference((one[0], one[1]), (two[0], two[1]), confidence)


def _evaluated_differently(first: Entrant, second: Entrant) -> list[ChangedSetting]:
    manifests = [entrant.run.latest(entrant.iteration, "eval").manifest() for entrant in (first, second)]
    one, two = ({k: v for k, v in m.inputs.items() if k not in ("made from", "seed")} for m in manifests if m)
    return [ChangedSetting(key, [old, new]) for key, old, new in diff(one, two)]


def _disagreements(first: Mapping[str, GreedyAnswer], second: Mapping[str, GreedyAnswer]) -> list[Disagreement]:
    """In the order of the prompts' ids, which are hashes and so unrelated to the order of the data."""
    both = sorted(first.keys() & second.keys())
    return [Disagreement(id, first[id], second[id]) for id in both if first[id].right != second[id].right]
