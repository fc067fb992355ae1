"""Read the report's numbers from a run folder, and from nothing else. Nothing is decided or drawn here.

A campaign may be at any point: iterations without an evaluation, without a decision, or with a round that failed
half-way keep the parts that exist.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from loop.config.checks import PREFERENCE
from loop.config.load import LoadedConfig, load_config
from loop.config.settings import Config
from loop.report.set_numbers import SetNumbers, set_numbers
from loop.store.files import read_json
from loop.store.lineage import read_lineage
from loop.store.run_folder import RunFolder
from loop.store.stage import STAGES, StageFolder
from loop.view.status import collect

SETS = ("train", "gate", "test")


@dataclass(frozen=True, slots=True)
class IterationData:
    """One iteration (0: the base model)."""

    number: int
    state: dict[str, Any]
    """As `status.collect` has it."""
    metrics: dict[str, Any]
    """"gate" and "test" with their counts per prompt; empty before the evaluation."""
    promotion: dict[str, Any]
    """Empty before the decision."""
    steps: list[dict[str, Any]]
    """The training log of the last attempt."""
    sets: dict[str, SetNumbers]
    """By set, what was sampled and judged."""
    manifests: dict[str, Any]
    """By stage, the manifest of the last attempt, where it is finished."""

    @property
    def test(self) -> dict[str, Any] | None:
        """The test metrics."""
        found: dict[str, Any] | None = self.state["test"]
        return found

    @property
    def gate(self) -> dict[str, Any] | None:
        """The gate metrics."""
        found: dict[str, Any] | None = self.state["gate"]
        return found

    def counts(self, stage: str) -> dict[str, Any]:
        """What a finished stage counted; empty otherwise."""
        return dict(self.state["counts"].get(stage, {}))

    @property
    def measured(self) -> dict[str, Any]:
        """What the gate's limits measured of the candidate, e.g. `kl` in nats."""
        attempts = self.promotion.get("attempts") or [{}]
        return dict(attempts[-1].get("measured") or {})

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
    state: dict[str, Any]
    lineage: dict[str, Any]
    turns: list[IterationData]
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
        return float(self.state["confidence"])

    @property
    def evaluated(self) -> list[IterationData]:
        """The iterations that have test metrics."""
        return [turn for turn in self.turns if turn.test is not None]

    @property
    def rounds(self) -> list[IterationData]:
        """The iterations after the base model."""
        return [turn for turn in self.turns if turn.number]

    @property
    def best(self) -> int:
        """The incumbent's iteration."""
        return int(self.state["incumbent"])

    def turn(self, number: int) -> IterationData | None:
        """An iteration, if it is there."""
        return next((turn for turn in self.turns if turn.number == number), None)


def read_run(run: RunFolder) -> RunData:
    """Everything known of a run. UserError if there is none, or a file of it is damaged."""
    state, loaded = collect(run), load_config(run.config)
    first = loaded.base
    turns = [_turn(run, it, first) for it in state["iterations"]]
    return RunData(run, loaded, state, read_lineage(run), turns, {1: first})


def _turn(run: RunFolder, state: dict[str, Any], first: Config) -> IterationData:
    k = state["iteration"]
    folders = {stage: run.latest(k, stage) for stage in STAGES}
    manifests = {stage: found for stage in STAGES if (found := folders[stage].manifest())}
    correct_at, confidence = first.pairs.correct_at, first.promote.confidence
    sets = {which: set_numbers(run.judged_shards(k, which), correct_at, confidence) for which in SETS}
    return IterationData(
        number=k,
        state=state,
        metrics=read_json(folders["eval"].metrics) if "eval" in manifests else {},
        promotion=read_json(run.promotion(k)) if run.promotion(k).exists() else {},
        steps=_read_steps(folders["train"]),
        sets={which: found for which, found in sets.items() if found is not None},
        manifests=manifests,
    )


def _read_steps(folder: StageFolder) -> list[dict[str, Any]]:
    """The step log; a line that is still being written is left out."""
    path = folder.steps
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [row for line in lines if (row := _row(line)) is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except ValueError:
        return None
