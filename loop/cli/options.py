"""Options that several commands share, their JSON output, and what a mistake in the command line says."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from loop.config.load import shipped_configs
from loop.errors import UserError
from loop.redact import redacted
from loop.store.run_folder import RunFolder
from loop.view.run_log import Output, Verbosity


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Names of runs, for the shell's completion."""
    runs = context.params.get("runs") or "runs"
    return [name for name in RunFolder.names_in(Path(runs)) if name.startswith(incomplete)]


def complete_source(context: typer.Context, incomplete: str) -> list[str]:
    """Names of shipped configs, recipes and runs, for the shell's completion, which adds files itself."""
    shipped = [name for name in shipped_configs() if name.startswith(incomplete)]
    return [*shipped, *complete_run(context, incomplete)]


Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.", envvar="PREFLOOP_RUNS")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder.", autocompletion=complete_run)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, e.g. `train.beta=0.2`.")
]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings alone, on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also print the events of the run.")]
Timestamps = Annotated[bool, typer.Option("--timestamps", help="Begin every line with its time (UTC).")]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option(help="Messages and log as text, or one JSON object a line.")
]


def output_of(
    quiet: bool,
    verbose: bool,
    timestamps: bool,
    log_format: str,
    log_file: Path | None = None,
    metrics_file: Path | None = None,
) -> Output:
    """How the options ask a command to print. UserError if they contradict each other."""
    if quiet and verbose:
        raise UserError("--quiet and --verbose contradict each other; leave one of them out.")
    verbosity: Verbosity = "quiet" if quiet else "verbose" if verbose else "normal"
    return Output(verbosity, log_format == "json", timestamps, log_file, metrics_file)


def print_json(value: Any) -> None:
    """Print as JSON, without secrets."""
    print(json.dumps(redacted(json.loads(json.dumps(value, default=str))), indent=1))


UsageError: Any = typer.BadParameter.__base__
"""A mistake in the command line: click's class, or that of the click inside of typer."""


class Commands(TyperGroup):
    """All commands. A mistake in the command line is a UserError like any other."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run the command that the arguments name, and exit."""
        try:
            code = super().main(*args, **{**options, "prog_name": "prefloop", "standalone_mode": False})
        except typer.Abort:  # at a question
            sys.exit(1)
        except UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                print(error.message, file=sys.stderr)
                sys.exit(2)
            text = error.format_message().replace("Value error, ", "").removesuffix(".")
            command = error.ctx.command_path if error.ctx is not None else "prefloop"
            raise UserError(f"{text}{'' if text.endswith('?') else '.'} See `{command} --help`.") from error
        sys.exit(code if isinstance(code, int) else 0)
