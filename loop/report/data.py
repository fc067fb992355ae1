"""Read the report's numbers from a run folder, at whatever point the campaign is; parts that are missing stay empty."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter

from loop.config.checks import PREFERENCE
from loop.config.load import LoadedConfig
from loop.config.settings import Config
from loop.report.set_numbers import SetNumbers, set_numbers
from loop.store.files import read_lines
from loop.store.kept import computed_once, sources_of
from loop.store.lineage import Lineage, read_lineage, settings_of
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json, ModelRecord, Numbers, PromotionRecord, SetMetrics
from loop.store.run_state import IterationState, RunState
from loop.store.stage import STAGES, Manifest
from loop.store.tables import digest
from loop.view.status import collect

SETS = ("train", "gate", "test")


@dataclass(frozen=True, slots=True, eq=False)  # so that a figure can remember what it made of one
class IterationData:
    """One iteration (0: the base model)."""

    number: int
    state: IterationState
    promotion: PromotionRecord | None
    """None before the decision, and for the base model."""
    policy: ModelRecord | None
    """The incumbent after the iteration; None before the decision."""
    steps: list[Json]
    """The training log of the last attempt."""
    sets: dict[str, SetNumbers]
    """By set, what was sampled and judged."""
    manifests: dict[str, Manifest]
    """By stage, the manifest of the last attempt, where it is finished."""

    @property
    def test(self) -> SetMetrics | None:
        """The test metrics; None before the evaluation."""
        return self.state.test

    @property
    def gate(self) -> SetMetrics | None:
        """The gate metrics; None before the evaluation."""
        return self.state.gate

    @property
    def measured(self) -> Numbers:
        """What the gate's limits measured of the candidate, e.g. `kl` in nats."""
        return self.promotion.attempts[-1].measured if self.promotion else {}

    @property
    def sampler(self) -> str | None:
        """Hash of the model that answered the training prompts."""
        made: dict[str, str] = self.manifests["sample"].inputs["made from"] if "sample" in self.manifests else {}
        return made.get("policy")


@dataclass(frozen=True, slots=True)
class RunData:
    """All that the report says of a run, before it is drawn."""

    run: RunFolder
    loaded: LoadedConfig
    state: RunState
    lineage: Lineage
    iterations: list[IterationData]
    configs: dict[int, Config] = field(default_factory=dict)

    def settings(self, number: int) -> Config:
        """The settings of an iteration from 1 on, looked up once."""
        if number not in self.configs:
            self.configs[number] = self.loaded.at(number)
        return self.configs[number]

    @property
    def correct_at(self) -> float:
        """From which score on a response is right."""
        return self.settings(1).pairs.correct_at

    @property
    def unjudged(self) -> bool:
        """Whether evaluations have no judge, so that held-out preferences measure."""
        return self.settings(1).eval_judge is None

    @property
    def metric(self) -> str:
        """The accuracy that the campaign is about."""
        return PREFERENCE if self.unjudged else "sampled_accuracy"

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def confidence(self) -> float:
        """Of every interval."""
        return self.state.confidence

    @property
    def evaluated(self) -> list[IterationData]:
        """The iterations that have test metrics."""
        return [it for it in self.iterations if it.test is not None]

    @property
    def rounds(self) -> list[IterationData]:
        """The iterations after the base model."""
        return [it for it in self.iterations if it.number]

    @property
    def best(self) -> int:
        """The incumbent's iteration."""
        return self.state.incumbent

    def incumbent_of(self, it: IterationData) -> IterationData | None:
        """The model that a candidate was compared with; None before the decision."""
        return None if it.promotion is None else self.iteration(it.promotion.incumbent.iteration)

    def iteration(self, number: int) -> IterationData | None:
        """An iteration, if it is there."""
        return next((it for it in self.iterations if it.number == number), None)


def read_run(run: RunFolder) -> RunData:
    """Everything known of a run. UserError if there is none, or a file of it is damaged."""
    loaded = settings_of(run)
    state, first = collect(run, loaded), loaded.base
    iterations = [_known_iteration(run, it, first) for it in state.iterations]
    return RunData(run, loaded, state, read_lineage(run), iterations, {1: first})


_FINISHED: dict[tuple[Path, int], tuple[str, IterationData]] = {}
"""By run and iteration, in this process: the identity of a decided iteration, and its data."""
NUMBERS = TypeAdapter(dict[str, SetNumbers])


def _known_iteration(run: RunFolder, state: IterationState, first: Config) -> IterationData:
    """The data of an iteration, read once if it is decided; alarms depend on today's thresholds."""
    k, sources = state.iteration, sources_of(run, state.iteration)
    correct_at, confidence = first.pairs.correct_at, first.promote.confidence
    if sources is None:
        return _iteration(run, state, _numbers(run, k, correct_at, confidence))
    sources = digest([sources, correct_at, confidence])
    known = _FINISHED.get((run.root, k))
    if known is not None and known[0] == sources:
        same = known[1].state.alarms == state.alarms
        return known[1] if same else replace(known[1], state=state)
    path = run.cached_iteration(k, "report")
    numbers = computed_once(path, sources, NUMBERS, lambda: _numbers(run, k, correct_at, confidence))
    found = _iteration(run, state, numbers)
    _FINISHED[run.root, k] = (sources, found)
    return found


def _numbers(run: RunFolder, k: int, correct_at: float, confidence: float) -> dict[str, SetNumbers]:
    """Of the sets that have been sampled and judged."""
    found = {which: set_numbers(run.judged_shards(k, which), correct_at, confidence) for which in SETS}
    return {which: numbers for which, numbers in found.items() if numbers is not None}


def _iteration(run: RunFolder, state: IterationState, numbers: dict[str, SetNumbers]) -> IterationData:
    k = state.iteration
    return IterationData(
        number=k,
        state=state,
        promotion=run.decision(k) if k else None,
        policy=run.policy(k) if run.promotion(k).exists() else None,
        steps=read_lines(run.latest(k, "train").steps),
        sets=numbers,
        manifests={stage: found for stage in STAGES if (found := run.latest(k, stage).manifest())},
    )
