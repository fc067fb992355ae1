"""Commands that steer campaigns (fork, compare, sweep, export, prune, recipes, doctor); `mount` adds them."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from loop.cli.options import (
    AsJson,
    LogFormat,
    Overrides,
    Quiet,
    RunName,
    Runs,
    Timestamps,
    Verbose,
    complete_run,
    complete_source,
    output_of,
    print_json,
)
from loop.errors import UserError
from loop.format import in_bytes

EXAMPLES = {
    "fork": ("fork my@1 my-hot per_iteration.2.sampling.temperature=1.2", "fork my@1/pair my-simpo train.loss=simpo"),
    "compare": ("compare my my-hot", "compare my@0 my@1 my-hot@2 --limit 3 --json"),
    "sweep": ("sweep my.yaml train.beta=0.1,0.3 seed=0,1", "sweep my.yaml train.loss=dpo,simpo --dry-run"),
    "export": ("export my@3 --model models/my", "export my@1 --pairs pairs.jsonl"),
    "prune": ("prune my", "prune my --no-keep-promoted --keep-last 2 --yes"),
    "recipes": ("recipes", "recipes show sppo", "run recipes/sppo --toy"),
    "doctor": ("doctor", "doctor my.yaml train.lora.rank=16", "doctor runs/my --json"),
    "report": ("report my", "report my my-hot --out comparison.html", "report my --serve"),
}
"""Examples shown in the help of each command."""


def mount(app: typer.Typer) -> None:
    """Add the commands to `prefloop`."""
    for command in (fork, compare, sweep, export, prune, recipes, doctor, report):
        examples = " · ".join(f"`prefloop {example}`" for example in EXAMPLES[command.__name__])
        app.command(epilog=f"Examples: {examples}")(command)


def fork(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN@K[/STAGE]",
            help="A run and a finished iteration (0: the base model), or a finished stage of it.",
            autocompletion=complete_run,
        ),
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name (or folder) of the new run.")],
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Start a new run from an iteration of another run, or from one of its stages, with changed settings."""
    from loop.commands.fork import fork as make_fork
    from loop.commands.fork import print_forked
    from loop.store.locate import find_stage_at, new_run

    parent, iteration, stage = find_stage_at(run, runs)
    done = make_fork(parent, iteration, new_run(new, runs), overrides or [], stage=stage)
    print_json(done.as_json()) if as_json else print_forked(done)


def compare(
    entrants: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN[@K] RUN[@K]...",
            help="Runs (their incumbents) or single iterations.",
            autocompletion=complete_run,
        ),
    ],
    runs: Runs = Path("runs"),
    limit: Annotated[int, typer.Option(min=0, help="Number of examples of disagreement.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare the settings, metrics and test answers of runs, with paired tests and examples."""
    from loop.view.comparison import compare_runs
    from loop.view.comparison_tables import print_comparison

    comparison = compare_runs(entrants, runs, limit)
    print_json(comparison.as_json()) if as_json else print_comparison(comparison, Console(soft_wrap=False))


def prune(
    run: RunName,
    runs: Runs = Path("runs"),
    keep_best: Annotated[bool, typer.Option(help="Keep the weights with the best gate score.")] = True,
    keep_promoted: Annotated[bool, typer.Option(help="Keep the weights of every promoted iteration.")] = True,
    keep_last: Annotated[int, typer.Option(help="Keep the weights of this many latest iterations.")] = 1,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete weights and leftovers that nothing needs; the run can still be resumed and reported."""
    from loop.commands.prune import Rules, plan_prune, print_plan, remove
    from loop.store.locate import find_run

    folder = find_run(run, runs)
    with folder.locked():
        plan = plan_prune(folder, Rules(keep_best, keep_promoted, keep_last))
        freed = in_bytes(plan.freed)
        print_json(plan.as_json()) if as_json else print_plan(folder, plan)
        if not plan.removals or (as_json and not yes):
            return
        if not yes and not sys.stdin.isatty():
            raise UserError(f"Nothing was removed from {folder}: no terminal to confirm on. Pass --yes to remove it.")
        if yes or typer.confirm("Remove it?"):
            remove(folder, plan)
            if not as_json:
                print(f"{freed} freed.")


def export(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN@K", help="A run and one of its iterations.", autocompletion=complete_run),
    ],
    runs: Runs = Path("runs"),
    model: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the model and its card here.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the pairs to this .jsonl or .parquet file.")
    ] = None,
    form: Annotated[
        Literal["conversational", "standard"],
        typer.Option("--format", help="Pairs as chat messages, or as plain text without a chat template."),
    ] = "conversational",
) -> None:
    """Export an iteration's model with a model card, or its pairs in a format that TRL reads."""
    from loop.commands.export import export_model, export_pairs
    from loop.store.locate import find_run_at

    folder, iteration = find_run_at(run, runs)
    if model is None and pairs is None:
        raise UserError("Nothing to export. Pass --model DIR, --pairs FILE, or both.")
    if model is not None:
        made = export_model(folder, iteration, model)
        print(f"{made}: the model of iteration {iteration} of {folder}, with its card")
    if pairs is not None:
        print(f"{pairs}: {export_pairs(folder, iteration, pairs, form)} pairs of iteration {iteration} of {folder}")


def sweep(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped config's name.")],
    values: Annotated[
        list[str], typer.Argument(metavar="KEY=A,B,C...", help="Values to try; a single value applies to all runs.")
    ],
    name: Annotated[str | None, typer.Option(help="Prefix of the runs' names; default is the config's name.")] = None,
    runs: Runs = Path("runs"),
    toy: Annotated[bool, typer.Option("--toy", help="Run all of them at toy size: minutes, no network.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    timestamps: Timestamps = False,
    log_format: LogFormat = "text",
) -> None:
    """Run one campaign per combination of values, one at a time, and compare them; rerun to continue."""
    from loop.commands.sweep import plan_sweep, print_summary, print_sweep, refuse_stopped, run_sweep, summary
    from loop.store.findings import Findings
    from loop.store.missing import missing
    from loop.view.display import Display

    members = plan_sweep(config, values, name, runs, toy=toy)
    new = [member.loaded for member in members if not member.run.exists()]
    Findings([*dict.fromkeys(text for loaded in new for text in missing(loaded))]).refuse()
    if dry_run:
        print_json([member.as_json() for member in members]) if as_json else print_sweep(members)
        return
    output = output_of(quiet, verbose, timestamps, log_format)
    outcomes = run_sweep(members, Display(output, to_stderr=as_json))
    found = summary(outcomes, runs)
    metric = members[0].loaded.base.promote.metric
    print_json(found.as_json()) if as_json else print_summary(found.comparison, metric, Console())
    refuse_stopped(outcomes)


def recipes(
    action: Annotated[
        Literal["show"] | None, typer.Argument(metavar="show", help="Show one recipe instead of the list.")
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The recipe, e.g. `sppo`.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the shipped configs of published algorithms, or show what one differs in from its paper, its size and
    its cost."""
    from loop.commands.recipe import print_recipe, recipe_of
    from loop.config.load import shipped_recipes

    if action is not None:
        if name is None:
            raise UserError("Name the recipe: `prefloop recipes show sppo`; `prefloop recipes` lists them.")
        recipe = recipe_of(name)
        print_json(asdict(recipe)) if as_json else print_recipe(recipe)
        return

    found = shipped_recipes()
    width = max(map(len, found))
    text = "\n".join(f"{name:<{width}}  {about}" for name, about in found.items())
    print_json(found) if as_json else print(text)


def doctor(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG|RUN]",
            help="A YAML file, a shipped config's name, or a run.",
            autocompletion=complete_source,
        ),
    ] = None,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Check versions, devices, engine and the tokens of one pair; exits with 1 on an error."""
    from loop.commands.doctor import examine, print_report

    found = examine(source, runs, overrides or [])
    print_json(found.as_json()) if as_json else print_report(found, Console(soft_wrap=True, highlight=False))
    if any(finding.level == "error" for finding in found.findings):
        raise typer.Exit(1)


def report(
    entrants: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [RUN[@K]...]",
            help="One run, or several to compare with the first.",
            autocompletion=complete_run,
        ),
    ],
    runs: Runs = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Output file; default: report.html in the run, comparison.html in runs."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Examples of disagreement per comparison.")] = 10,
    serve: Annotated[bool, typer.Option("--serve", help="Serve it on this machine until Ctrl-C.")] = False,
) -> None:
    """Write one offline HTML page that explains a run or compares several."""
    from loop.report.compare import write_comparison
    from loop.report.page import write_report
    from loop.report.serve import serve_page
    from loop.store.locate import check_path, find_run

    out = out and check_path(out, "a report")
    if len(entrants) == 1:
        path = write_report(find_run(entrants[0], runs), out)
    else:
        path = write_comparison(entrants, runs, out or runs / "comparison.html", limit)
    print(path)
    if serve:
        serve_page(path)
