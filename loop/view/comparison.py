"""Compare runs and iterations with the first one: settings, metrics, paired tests, examples of disagreement."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loop.config.checks import PREFERENCE
from loop.config.load import LoadedConfig, diff, load_config
from loop.errors import UserError
from loop.measure.evaluation import METRICS, metrics_of
from loop.measure.evaluation import compare as paired
from loop.measure.stats import Difference, unpaired_difference
from loop.redact import redacted
from loop.store import tables
from loop.store.files import read_json
from loop.store.locate import find_run, find_run_at
from loop.store.run_folder import RunFolder
from loop.view.show import collect_prompts
from loop.view.status import collect, public
from loop.view.status_tables import percent

EVERYTHING = 10**9
"""More prompts than any test set holds."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A model to compare: one iteration of a run. `label` is its name on the command line."""

    label: str
    run: RunFolder
    iteration: int
    loaded: LoadedConfig
    state: dict[str, Any]

    @property
    def evaluation(self) -> dict[str, Any]:
        """Metrics on the "gate" and "test" prompts, with counts per prompt."""
        return dict(read_json(self.run.latest(self.iteration, "eval").metrics))

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics on the test prompts."""
        return dict(self.evaluation["test"])

    @property
    def asked(self) -> set[str]:
        """Ids of the test prompts: hashes of their messages."""
        path = self.run.prompts().path / "test.parquet"
        return set(tables.read(path, ["id"])["id"].to_pylist())


def compare_runs(names: Sequence[str], runs: Path, limit: int) -> dict[str, Any]:
    """How the models differ, with up to `limit` examples per comparison. Raises UserError."""
    if len(names) < 2:
        raise UserError("compare needs at least two runs: `prefloop compare RUN RUN`, or RUN@K for an iteration.")
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
            f"Iteration {iteration} of {run} is not evaluated yet, so it cannot be compared; continue the run with "
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
    """Keys that differ between entrants, with the value of each."""
    first, *others = entrants
    changes = [{key: (old, new) for key, old, new in diff(first.loaded.raw, other.loaded.raw)} for other in others]
    originals = {key: old for changed in changes for key, (old, _) in changed.items()}
    return [
        {"key": key, "values": [old, *(changed.get(key, (old, old))[1] for changed in changes)]}
        for key, old in originals.items()
    ]


def _side_by_side(entrants: Sequence[Entrant]) -> list[dict[str, Any]]:
    """Test metrics of every run by iteration; None where a run lacks the iteration."""
    known = [{it["iteration"]: it for it in entrant.state["iterations"]} for entrant in entrants]
    numbers = sorted({number for iterations in known for number in iterations})
    return [{"iteration": k, "test": [(its.get(k) or {"test": None})["test"] for its in known]} for k in numbers]


def _compared(first: Entrant, second: Entrant, limit: int) -> dict[str, Any]:
    """Compare `second` with `first`: paired by prompt if the test prompts are the same, else unpaired."""
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
    """Evaluation inputs that differ, other than model and prompts."""
    manifests = [entrant.run.latest(entrant.iteration, "eval").manifest() for entrant in (first, second)]
    one, two = ({k: v for k, v in m.inputs.items() if k not in ("made from", "seed")} for m in manifests if m)
    return [{"key": key, "values": [old, new]} for key, old, new in diff(one, two)]


def _disagreements(first: Entrant, second: Entrant, limit: int) -> dict[str, Any]:
    """Count prompts that only one model answers correctly (greedy), with examples."""
    one, two = _greedy(first), _greedy(second)
    examples: list[dict[str, Any]] = []
    only = {"first": 0, "second": 0}
    for prompt_id in sorted(one.keys() & two.keys()):  # ids are hashes, so this order is unrelated to the data's
        a, b = one[prompt_id], two[prompt_id]
        if a["right"] != b["right"]:
            only["first" if a["right"] else "second"] += 1
            examples.append({"prompt_id": prompt_id, "prompt": a.pop("prompt"), "target": a.pop("target")})
            examples[-1] |= {"first": a, "second": {key: b[key] for key in ("text", "right", "verdict")}}
    return {"only_right": only, "disagreements": examples[:limit]}


def _greedy(entrant: Entrant) -> dict[str, dict[str, Any]]:
    """The greedy response to each test prompt, with its verdict, by prompt id."""
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


def print_comparison(found: dict[str, Any], console: Console) -> None:
    """Print differing settings, metrics side by side, tests and examples."""
    names = [entrant["name"] for entrant in found["entrants"]]
    for entrant in found["entrants"]:
        console.print(_who(entrant), markup=False, highlight=False)
    console.print(_settings_table(found["settings"], names))
    console.print(_metrics_table(found["iterations"], names))
    for compared in found["comparisons"]:
        _print_test(compared, found["confidence"], console)
        for example in compared["disagreements"]:
            _print_example(example, compared, console)


def _who(entrant: dict[str, Any]) -> str:
    k = entrant["iteration"]
    model = f"the model of iteration {k}" if k else "the base model"
    role = ", its incumbent" if entrant["incumbent"] else ""
    parent = entrant["parent"]
    origin = f"; forked from iteration {parent['iteration']} of {parent['run']}" if parent else ""
    return f"{entrant['name']}: {model}{role}{origin}"


def _settings_table(settings: list[dict[str, Any]], names: list[str]) -> Table | str:
    if not settings:
        return "\nAll settings are equal."
    table = Table(title="settings that differ", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("key", *names):
        table.add_column(column, overflow="fold")
    for row in settings:
        table.add_row(
            row["key"], *(Text(json.dumps(redacted(value, row["key"]), ensure_ascii=False)) for value in row["values"])
        )
    return table


def _metrics_table(iterations: list[dict[str, Any]], names: list[str]) -> Table:
    table = Table(title="test prompts, in %, with intervals", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("iter", "metric", *names):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for row in iterations:
        for place, metric in enumerate((*METRICS, PREFERENCE)):
            cells = [percent(test and test.get(metric)) for test in row["test"]]
            if set(cells) != {"–"}:
                table.add_row("" if place else str(row["iteration"]), metric.replace("_", " "), *cells)
    return table


def _print_test(compared: dict[str, Any], confidence: float, console: Console) -> None:
    prompts = compared["test_prompts"]
    how = f"paired on the same {prompts['first']} test prompts"
    if not compared["paired"]:
        how = (
            f"UNPAIRED, because the test sets differ ({prompts['first']} and {prompts['second']} prompts, "
            f"{prompts['in both']} in both)"
        )
    title = f"{compared['second']} against {compared['first']}, {how}, {100 * confidence:g} % intervals:"
    console.print(title, markup=False, highlight=False)
    for metric, difference in compared["metrics"].items():
        console.print(f"  {metric.replace('_', ' ')}: {_in_points(difference)}", markup=False, highlight=False)
    for row in compared["evaluated_differently"]:
        was, now = row["values"]
        console.print(f"  evaluated differently: {row['key']} {was!r} and {now!r}", markup=False, highlight=False)
    only = compared["only_right"]
    console.print(
        f"  greedy responses correct in only one: {only['first']} of {compared['first']}, {only['second']} of "
        f"{compared['second']}",
        markup=False,
        highlight=False,
    )


def _in_points(difference: dict[str, Any]) -> str:
    if difference["value"] is None:
        return "cannot be compared"
    value, low, high = (100 * difference[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}], p = {difference['p_value']:.3g}"


def _print_example(example: dict[str, Any], compared: dict[str, Any], console: Console) -> None:
    console.print(Text(f"\n{example['prompt_id']}  {example['prompt']}", style="bold"))
    console.print(Text(f"  target: {example['target']}"))
    for side in ("first", "second"):
        one = example[side]
        style, mark = ("green", "right") if one["right"] else ("red", "wrong")
        why = f" ({one['verdict']['why']})" if one["verdict"]["why"] else ""
        line = Text(f"  {compared[side]} ").append(mark, style=style)
        console.print(line.append(f"{why}: {' '.join(one['text'].split())}"))
