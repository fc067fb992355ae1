"""How many tokens does adaptive sampling save, and how many pairs does it cost?

In: a run folder, or a campaign's settings. Out: prompts, responses, tokens and pairs of both ways of sampling, and
their ratios, adaptive over uniform.

    a run folder   nothing is sampled: of the run's own responses, with their verdicts, adaptive sampling would have
                   drawn the first few of each prompt, and further ones where they promised pairs. Both ways are paired
                   as the run's settings say. The run must have sampled uniformly.
    settings       two runs side by side with the same base model, seeds and prompts, up to the pairs of iteration 1.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loop.campaign.context import StopPoint
from loop.campaign.run import run_campaign
from loop.campaign.stages.adaptive import probed
from loop.commands.fork import fork
from loop.config.load import load_config
from loop.config.sampling_section import AdaptiveSettings
from loop.config.settings import Config
from loop.errors import UserError
from loop.measure.allocation import allocate
from loop.pairing.io import judged_groups
from loop.pairing.iteration import pair_all
from loop.pairing.records import Judged
from loop.store.run_folder import RunFolder
from loop.view.display import Display

Groups = list[tuple[str, Sequence[Judged]]]


@dataclass(frozen=True, slots=True)
class Came:
    """What one way of sampling came to."""

    prompts: int
    responses: int
    tokens: int
    paired: int
    """Prompts that gave pairs."""
    pairs: int
    different: int
    """Pairs, each counted once."""


def main() -> None:
    """Entry point."""
    told = arguments()
    settings = AdaptiveSettings(probe=told.probe, keep=told.keep, different=told.different, budget=told.budget)
    run = RunFolder(Path(told.source))
    if run.exists() and told.prompts:
        raise SystemExit("--prompts samples, so it needs settings and not a finished run")
    found = (
        dict(replay(run, settings))
        if run.exists()
        else {1: side_by_side(told.source, told.overrides, settings, told.prompts)}
    )
    for k, (uniform, adaptive) in found.items():
        print(in_words(k, uniform, adaptive), flush=True)
    if told.json:
        rows = [{"iteration": k, "uniform": asdict(one), "adaptive": asdict(two)} for k, (one, two) in found.items()]
        told.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", nargs="?", default="quickstart", help="a run folder, a YAML file or a shipped config")
    parser.add_argument("overrides", nargs="*", help="key=value, for settings")
    defaults = AdaptiveSettings()
    parser.add_argument("--probe", type=int, default=defaults.probe, help="sampling.adaptive.probe")
    parser.add_argument("--keep", type=float, default=defaults.keep, help="sampling.adaptive.keep")
    parser.add_argument("--different", type=int, help="sampling.adaptive.different")
    parser.add_argument("--budget", type=float, default=defaults.budget, help="sampling.adaptive.budget")
    parser.add_argument("--prompts", type=int, help="prompts of the adaptive run, if not as many as of the uniform one")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    return parser.parse_args()


# ---- a finished run ----


def replay(run: RunFolder, settings: AdaptiveSettings) -> Iterator[tuple[int, tuple[Came, Came]]]:
    """By iteration, what its responses came to and what the chosen ones of them would have. UserError."""
    loaded = load_config(run.config)
    for k in run.iterations():
        if not run.stage(k, "pair").manifest():
            continue
        config = loaded.at(k)
        if config.sampling.adaptive is not None:
            raise UserError(f"iteration {k} of {run} sampled adaptively; name a run that sampled uniformly")
        groups = list(judged_groups(run.judged_shards(k, "train")))
        yield k, (count(groups, config, k), count(list(drawn(groups, config, k, settings)), config, k))


def drawn(groups: Groups, config: Config, k: int, settings: AdaptiveSettings) -> Iterator[tuple[str, Sequence[Judged]]]:
    """The responses that adaptive sampling would have drawn."""
    more = allocate(
        [probed(prompt_id, members[: settings.probe], config.pairs) for prompt_id, members in groups],
        n=max(len(members) for _, members in groups),
        wanted=settings.wanted(config.pairs.at_most),
        keep=settings.keep,
        budget=settings.budget,
        seed=f"{config.seed}|{k}",
    ).more
    for prompt_id, members in groups:
        yield prompt_id, members[: settings.probe + more.get(prompt_id, 0)]


def count(groups: Groups, config: Config, k: int) -> Came:
    """Pair the responses as the campaign would."""
    pairing = pair_all(groups, config.pairs, k, seed=config.seed)
    return Came(
        prompts=len(groups),
        responses=sum(len(members) for _, members in groups),
        tokens=sum(one.length for _, members in groups for one in members),
        paired=pairing.prompts.get("paired", 0),
        pairs=len(pairing.relations),
        different=len({one.responses for one in pairing.relations}),
    )


# ---- two runs ----


def side_by_side(
    source: str, overrides: list[str], settings: AdaptiveSettings, prompts: int | None
) -> tuple[Came, Came]:
    """Sample, judge and pair iteration 1 both ways, for real; the base model is evaluated once."""
    changes = [f"sampling.adaptive={settings.model_dump_json()}"]
    if prompts:
        changes.append(f"prompts.per_iteration={prompts}")
    with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-") as folder:
        runs = {name: RunFolder(Path(folder) / name) for name in ("uniform", "adaptive")}
        loaded = load_config(source, [*overrides, "sampling.adaptive=null", "iterations=1"])
        run_campaign(runs["uniform"], loaded, Display(), until=StopPoint(0, "eval"))
        fork(runs["uniform"], 0, runs["adaptive"], changes)
        uniform, adaptive = (up_to_pairs(run) for run in runs.values())
    return uniform, adaptive


def up_to_pairs(run: RunFolder) -> Came:
    """Go on with a run up to the pairs of iteration 1, and count what it has."""
    loaded: Any = load_config(run.config)
    run_campaign(run, loaded, Display(), until=StopPoint(1, "pair"))
    return count(list(judged_groups(run.judged_shards(1, "train"))), loaded.at(1), 1)


def in_words(k: int, uniform: Came, adaptive: Came) -> str:
    """Both ways and their ratios."""
    lines = [f"iteration {k}"]
    for name in ("prompts", "responses", "tokens", "paired", "pairs", "different"):
        ours, theirs = getattr(adaptive, name), getattr(uniform, name)
        said = {"paired": "prompts with pairs", "different": "different pairs"}.get(name, name)
        lines.append(f"  {said:20} uniform {theirs:9,}  adaptive {ours:9,}  ratio {ours / max(1, theirs):.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
