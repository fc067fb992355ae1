"""The `prefloop` command line; heavy modules are imported by the commands that need them."""

import signal
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from judges.types import JudgeError
from loop import interrupt
from loop.cli.judge_commands import judge_app
from loop.cli.options import (
    AsJson,
    Commands,
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
from loop.cli.steer_commands import mount
from loop.errors import AwaitingLabels, UserError, explain_obstacle, is_obstacle
from loop.format import visible
from loop.redact import redacted
from loop.store.run_state import SCHEMA
from trainer.errors import TrainerError

app = typer.Typer(
    name="prefloop",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Iterative preference training: sample, judge, pair, train, evaluate, promote, repeat.",
    epilog="Start with: `prefloop plan quickstart`, then `prefloop run quickstart`.",
)

app.add_typer(judge_app, name="judge")

WAITING = 3
"""Exit code of a run that waits until people have labelled its responses (judge `external`)."""

Source = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG|RUN",
        help="A YAML file, a shipped config's name, or an existing run's folder or name.",
        autocompletion=complete_source,
    ),
]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run; default is the config's name.")]
Toy = Annotated[
    bool, typer.Option("--toy", help="Try the algorithm on a small model with arithmetic prompts: minutes, no network.")
]


def print_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        print(f"prefloop {version('prefloop')}")
        raise typer.Exit


@app.callback()
def prefloop(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of `prefloop` itself."""


@app.command(
    epilog="Examples: `prefloop run quickstart` · `prefloop run my.yaml seed=1 --name my-1` · `prefloop run my-1`"
)
def run(
    config: Source,
    overrides: Overrides = None,
    name: Name = None,
    runs: Runs = Path("runs"),
    toy: Toy = False,
    verify: Annotated[bool, typer.Option(help="Check the hashes of all finished files before continuing.")] = False,
    repair: Annotated[bool, typer.Option(help="Rebuild damaged or missing files of finished stages.")] = False,
    until: Annotated[
        str | None, typer.Option(metavar="ITER|ITER/STAGE", help="Stop after this point, e.g. `2` or `2/pair`.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    timestamps: Timestamps = False,
    log_format: LogFormat = "text",
    log_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The log; default is `logs/run.log` in the run folder.")
    ] = None,
    metrics_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the run's numbers here, in the OpenMetrics text format.")
    ] = None,
) -> None:
    """Run a campaign, or continue it where it stopped.

    CONFIG is your own file or a shipped config: `quickstart`, `gsm8k`, or a published algorithm `recipes/NAME`
    (`prefloop recipes` lists them). RUN continues a run with its own settings; a config of the same name goes before,
    and `runs/NAME` always means the run.
    """
    from loop.campaign.context import read_stop_point
    from loop.campaign.run import run_campaign
    from loop.store.locate import locate
    from loop.view.display import Display
    from loop.view.status_tables import print_status

    folder, loaded = locate(config, overrides or [], name, runs, toy=toy, repair=repair)
    goal = None if until is None else read_stop_point(until, loaded.iterations)
    output = output_of(quiet, verbose, timestamps, log_format, log_file, metrics_file)
    display = Display(output, to_stderr=as_json)
    if not as_json:
        display.say(f"{'continuing' if folder.exists() else 'starting'} {folder} from {loaded.source}")
    state = run_campaign(folder, loaded, display, verify=verify, repair=repair, until=goal)
    if as_json:
        print_json(state.as_json())
    elif output.prints("info") and not output.json_lines:
        print_status(state, Console())


@app.command(epilog="Examples: `prefloop plan quickstart` · `prefloop plan my.yaml sampling.n=16 --check`")
def plan(
    config: Source,
    overrides: Overrides = None,
    name: Name = None,
    runs: Runs = Path("runs"),
    toy: Toy = False,
    check: Annotated[bool, typer.Option(help="Also import libraries, build the judge and open the data.")] = False,
    as_json: AsJson = False,
) -> None:
    """Validate the settings and print what a run would do, in under a second."""
    from loop.commands.plan import make_plan, print_plan
    from loop.store.locate import locate

    folder, loaded = locate(config, overrides or [], name, runs, toy=toy)
    planned = make_plan(folder, loaded, check=check)
    print_json(planned.as_json()) if as_json else print_plan(planned)


@app.command(epilog="Examples: `prefloop status quickstart` · `prefloop status my-1 --last 5 --json`")
def status(
    run: RunName,
    runs: Runs = Path("runs"),
    last: Annotated[int | None, typer.Option(min=1, help="Show only this many latest iterations.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the iterations, stages, accuracies and times of a run."""
    from loop.store.locate import find_run
    from loop.view.progress import read_writer
    from loop.view.status import collect
    from loop.view.status_tables import print_status

    folder = find_run(run, runs)
    state = collect(folder)
    state = state if last is None else replace(state, iterations=state.iterations[-last:])
    print_json(state.as_json()) if as_json else print_status(state, Console(), read_writer(folder))


@app.command(name="runs", epilog="Examples: `prefloop runs` · `prefloop runs --runs /shared/runs --json`")
def list_runs(runs: Runs = Path("runs"), as_json: AsJson = False) -> None:
    """List the runs: state, iteration, accuracy, disk space, last change."""
    from loop.view.run_list import print_runs, summaries

    found = summaries(runs)
    plain = {"schema": SCHEMA, "runs": [one.as_json() for one in found]}
    print_json(plain) if as_json else print_runs(found, runs, Console())


@app.command(epilog="Examples: `prefloop watch quickstart` · `prefloop watch runs/my-1 --once`")
def watch(
    run: RunName,
    runs: Runs = Path("runs"),
    once: Annotated[bool, typer.Option("--once", help="Show one frame and exit.")] = False,
) -> None:
    """Follow a campaign in another process until it ends (exit code 0 if complete, else 1)."""
    from loop.store.locate import find_run
    from loop.view.watch import watch as watch_run

    raise typer.Exit(watch_run(find_run(run, runs), Console(), once=once))


@app.command(epilog="Examples: `prefloop show quickstart@1` · `prefloop show runs/my-1@2 --set test --limit 3`")
def show(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN@K", help="A run and one of its iterations.", autocompletion=complete_run),
    ],
    runs: Runs = Path("runs"),
    cache: Annotated[
        bool, typer.Option("--cache", help="Show RUN's verdict cache instead: judge answers, calls and tokens.")
    ] = False,
    which: Annotated[str, typer.Option("--set", help="Prompt set: train (with pairs), gate or test.")] = "train",
    prompt: Annotated[str | None, typer.Option(help="Only prompts (with --cache: answers) that contain this.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Number of prompts.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show prompts with their responses, verdicts and pairs, or the verdict cache."""
    from loop.store.locate import find_run, find_run_at
    from loop.view.prompt_records import collect_prompts
    from loop.view.show import collect_caches, print_caches, print_prompts

    if cache:
        caches = collect_caches(find_run(run.partition("@")[0], runs), prompt, limit)
        print_json([asdict(one) for one in caches]) if as_json else print_caches(caches)
        return
    folder, iteration = find_run_at(run, runs)
    prompts = collect_prompts(folder, iteration, which, prompt, limit)
    print_json([asdict(one) for one in prompts]) if as_json else print_prompts(prompts)


@app.command(
    name="train-reward",
    epilog="Examples: `prefloop train-reward reward` · `prefloop train-reward my.yaml train.epochs=2 out=models/rm`",
)
def train_reward(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped config's name.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, e.g. `train.epochs=2`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a reward model on pairs, or continue where it stopped."""
    from loop.commands.train_reward import print_reward, run_reward
    from loop.config.reward_settings import load_reward_config
    from loop.view.display import Display

    settings = load_reward_config(config, overrides or [])
    summary = run_reward(settings, Display(to_stderr=as_json))
    found = {"out": settings.out, **summary.model_dump()}
    print_json(found) if as_json else print_reward(summary, settings.out, Console())


mount(app)


def main() -> None:
    """Entry point of `prefloop`. What the user can mend is one paragraph, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except BaseException as error:  # the boundary to the shell
        number = interrupt.received()
        at_its_end = isinstance(error, SystemExit) and not error.code
        if number == signal.SIGTERM or (number == signal.SIGINT and not at_its_end):  # whatever it has become by now
            interrupt.end(number)
        if isinstance(error, SystemExit):
            raise
        refuse(error)


def refuse(error: BaseException) -> NoReturn:
    """Print the error's paragraph and exit; raise it if it is no error of the user's or of the machine."""
    code = WAITING if isinstance(error, AwaitingLabels) else 2
    if isinstance(error, UserError | JudgeError | TrainerError | AwaitingLabels):
        text = str(error)
    elif isinstance(error, OSError | UnicodeError) or is_obstacle(error):
        text = explain_obstacle(error)
    else:
        raise error
    print(f"\nprefloop: {visible(redacted(text))}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
