"""Room loop, the command compare: runs and iterations come in; what was set differently, what each measured, paired
tests on the same test prompts and examples of disagreement go out.

The first one named is what all others are compared with. Reads run folders only.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loop import tables
from loop.config_load import LoadedConfig, diff, load_config
from loop.errors import UserError
from loop.evaluation import compare as paired
from loop.evaluation import metrics_of
from loop.files import read_json
from loop.locate import find_run, find_run_at
from loop.runfolder import RunFolder
from loop.show import collect_prompts
from loop.stats import Difference
from loop.status import collect, public
from loop.unpaired import unpaired_difference

EVERYTHING = 10**9
"""More prompts than any test set holds."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A model that takes part: iteration `iteration` of a run, by the name it was given on the command line."""

    label: str
    run: RunFolder
    iteration: int
    loaded: LoadedConfig
    state: dict[str, Any]

    @property
    def evaluation(self) -> dict[str, Any]:
        """Its metrics on the "gate" and the "test" prompts, counts per prompt included."""
        return dict(read_json(self.run.latest(self.iteration, "eval").metrics))

    @property
    def metrics(self) -> dict[str, Any]:
        """Those on the test prompts."""
        return dict(self.evaluation["test"])

    @property
    def asked(self) -> set[str]:
        """Ids of its test prompts: hashes of their messages."""
        path = self.run.prompts().path / "test.parquet"
        return set(tables.read(path, ["id"])["id"].to_pylist())


def compare_runs(names: Sequence[str], runs: Path, limit: int) -> dict[str, Any]:
    """All that is known of how these models differ; `limit` examples for each comparison. UserError."""
    if len(names) < 2:
        raise UserError("A comparison needs two runs or more: `prefloop compare RUN RUN`, or RUN@K for an iteration.")
    entrants = [_entrant(name, runs) for name in names]
    first, *others = entrants
    return {
        "entrants": [_described(entrant) for entrant in entrants],
        "confidence": first.loaded.base.promote.confidence,
        "settings": _settings(entrants),
        "iterations": _side_by_side(entrants),
        "comparisons": [_compared(first, other, limit) for other in others],
    }


def _entrant(name: str, runs: Path) -> Entrant:
    if "@" in name and not RunFolder(Path(name)).exists():
        run, iteration = find_run_at(name, runs)
        state = collect(run)
    else:
        run = find_run(name, runs)
        state = collect(run)
        iteration = state["incumbent"]
    if run.latest(iteration, "eval").manifest() is None:
        raise UserError(
            f"Iteration {iteration} of {run} is not evaluated yet, so there is nothing to compare; continue it with "
            f"`prefloop run {run}`."
        )
    return Entrant(name, run, iteration, load_config(run.config), state)


def _described(entrant: Entrant) -> dict[str, Any]:
    return {
        "name": entrant.label,
        "run": str(entrant.run),
        "iteration": entrant.iteration,
        "incumbent": entrant.iteration == entrant.state["incumbent"],
        "parent": entrant.state["parent"],
        **public(entrant.evaluation),
    }


def _settings(entrants: Sequence[Entrant]) -> list[dict[str, Any]]:
    """The keys that are not the same everywhere, with everybody's value."""
    first, *others = entrants
    changes = [{key: (old, new) for key, old, new in diff(first.loaded.raw, other.loaded.raw)} for other in others]
    originals = {key: old for changed in changes for key, (old, _) in changed.items()}
    return [
        {"key": key, "values": [old, *(changed.get(key, (old, old))[1] for changed in changes)]}
        for key, old in originals.items()
    ]


def _side_by_side(entrants: Sequence[Entrant]) -> list[dict[str, Any]]:
    """By iteration, every run's test metrics; None where a run has no such iteration."""
    known = [{it["iteration"]: it for it in entrant.state["iterations"]} for entrant in entrants]
    numbers = sorted({number for iterations in known for number in iterations})
    return [{"iteration": k, "test": [(its.get(k) or {"test": None})["test"] for its in known]} for k in numbers]


def _compared(first: Entrant, second: Entrant, limit: int) -> dict[str, Any]:
    """`second` against `first`: paired by prompt if both answered the same test prompts, else unpaired."""
    one, two = first.asked, second.asked
    same, confidence = one == two, first.loaded.base.promote.confidence
    how = paired if same else _unpaired
    shared = metrics_of(first.metrics, second.metrics)
    metrics = {name: asdict(how(first.metrics, second.metrics, name, confidence)) for name in shared}
    return {
        "first": first.label,
        "second": second.label,
        "paired": same,
        "test_prompts": {"first": len(one), "second": len(two), "in both": len(one & two)},
        "evaluated_differently": _evaluated_differently(first, second),
        "metrics": metrics,
        **_disagreements(first, second, limit),
    }


def _unpaired(first: dict[str, Any], second: dict[str, Any], metric: str, confidence: float) -> Difference:
    one, two = (tuple(zip(*side["counts"][metric].values(), strict=True)) or ((), ()) for side in (first, second))
    return unpaired_difference((one[0], one[1]), (two[0], two[1]), confidence)


def _evaluated_differently(first: Entrant, second: Entrant) -> list[dict[str, Any]]:
    """What decided the two evaluations besides model and prompts, and was not the same."""
    manifests = [entrant.run.latest(entrant.iteration, "eval").manifest() for entrant in (first, second)]
    one, two = ({k: v for k, v in m.inputs.items() if k not in ("made from", "seed")} for m in manifests if m)
    return [{"key": key, "values": [old, new]} for key, old, new in diff(one, two)]


def _disagreements(first: Entrant, second: Entrant, limit: int) -> dict[str, Any]:
    """Prompts whose greedy responses are right for one model only: how many, and some of them."""
    one, two = _greedy(first), _greedy(second)
    examples: list[dict[str, Any]] = []
    only = {"first": 0, "second": 0}
    for prompt_id in sorted(one.keys() & two.keys()):  # ids are hashes: no order of the data shows
        a, b = one[prompt_id], two[prompt_id]
        if a["right"] != b["right"]:
            only["first" if a["right"] else "second"] += 1
            examples.append({"prompt_id": prompt_id, "prompt": a.pop("prompt"), "target": a.pop("target")})
            examples[-1] |= {"first": a, "second": {key: b[key] for key in ("text", "right", "verdict")}}
    return {"only_right": only, "disagreements": examples[:limit]}


def _greedy(entrant: Entrant) -> dict[str, dict[str, Any]]:
    """The greedy response to each test prompt, with its verdict."""
    correct_at, found = entrant.loaded.base.pairs.correct_at, {}
    for prompt in collect_prompts(entrant.run, entrant.iteration, "test", None, EVERYTHING):
        for response in prompt["responses"]:
            verdict = response["verdict"]
            if response["temperature"] == 0 and verdict is not None and verdict["kind"] == "score":
                found[prompt["prompt_id"]] = {
                    "prompt": prompt["prompt"],
                    "target": prompt["target"],
                    "text": response["text"],
                    "right": verdict["score"] >= correct_at,
                    "verdict": {key: verdict[key] for key in ("score", "extracted", "why")},
                }
    return found
