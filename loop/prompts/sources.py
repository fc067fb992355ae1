"""Opens the source of prompts that the config names; `datasets` and `reasoning_gym` are imported only then."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, count, islice
from typing import Any

from loop.config.prompts_section import FilePrompts, Gsm8kPrompts, HubPrompts, PromptsBase, ReasoningGymPrompts
from loop.config.types import did_you_mean
from loop.errors import UserError, explain_obstacle, is_obstacle
from loop.prompts.data_files import read_rows
from loop.seeds import seed_for

MEANT = ("system", "system_prompt", "reasoning", "reasoning_content", "thinking", "tools", "tool_calls", "images")
"""Columns, and keys of messages, that change what a model should answer."""
LOOKED_AT = 1000
"""Rows in which unused values are looked for."""
GSM8K = "openai/gsm8k"
GYM_ROUND = 256
"""Entries in the first round of a reasoning-gym task; every round doubles."""


@dataclass(frozen=True, slots=True)
class Source:
    """Rows, and which of their columns is what; messages call the source `name`."""

    name: str
    rows: Sequence[dict[str, Any]]
    columns: tuple[str, ...]
    prompt_column: str
    target_column: str | None
    notes: tuple[str, ...] = ()
    """What in the data looks meant, but is not used."""
    rounds: Iterator[list[dict[str, Any]]] | None = None
    """Endless rounds of further rows, for a source that generates them on demand."""


Opened = tuple[Source, Source | None]
"""The rows for train and gate, and those for test if they come from elsewhere."""


def open_sources(config: PromptsBase, seed: int, counts: dict[str, int]) -> Opened:
    """Open the source with the function that its settings class names."""
    module, _, name = config.opener.partition(":")
    opened: Opened = getattr(import_module(module), name)(config, seed, counts)
    return opened


def open_hub(config: HubPrompts, seed: int, counts: dict[str, int]) -> Opened:
    """Splits of a hub dataset."""
    return _hub(config, config.split), _hub(config, config.test_split) if config.test_split else None


def open_file(config: FilePrompts, seed: int, counts: dict[str, int]) -> Opened:
    """One or two local files."""
    return _files(config.path, config.test_path, config.prompt_column, config.target_column)


def open_gsm8k(config: Gsm8kPrompts, seed: int, counts: dict[str, int]) -> Opened:
    """GSM8K from the hub, or from local files."""
    if config.path:
        return _files(config.path, config.test_path, "question", "answer")
    hub = HubPrompts(source="hub", dataset=GSM8K, subset="main", prompt_column="question", target_column="answer")
    if config.test_path:
        return _hub(hub, "train"), _file(config.test_path, "prompts.test_path", "question", "answer")
    return _hub(hub, "train"), _hub(hub, "test")


def _files(path: str, test_path: str | None, prompt_column: str, target_column: str | None) -> Opened:
    main = _file(path, "prompts.path", prompt_column, target_column)
    return main, _file(test_path, "prompts.test_path", prompt_column, target_column) if test_path else None


def _file(path: str, key: str, prompt_column: str, target_column: str | None) -> Source:
    name, rows = read_rows(path, key)
    return _source(name, rows, prompt_column, target_column)


def _hub(config: HubPrompts, split: str) -> Source:
    otherwise = "give a local copy with prompts.source=file, or prompts.path for gsm8k"
    name, rows = read_hub(config.dataset, config.subset, split, section="prompts", otherwise=otherwise)
    return _source(name, rows, config.prompt_column, config.target_column)


def read_hub(dataset: str, subset: str | None, split: str, *, section: str, otherwise: str) -> tuple[str, Any]:
    """Name and rows of one split of a hub dataset, downloaded once into the cache of `datasets`; messages name the
    config's `section` and say what to do `otherwise`."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name = f"hub dataset {dataset}{f' ({subset})' if subset else ''}, split {split}"
    try:
        return name, load_dataset(dataset, subset, split=split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        # OSError: no connection; ValueError: no such subset or split; RuntimeError: a dataset with code of its own
        if is_obstacle(error):
            raise UserError(f"The {name} cannot be stored or read here: {explain_obstacle(error)}") from error
        raise UserError(
            f"The {name} cannot be loaded: {_reason(error)}. Check {section}.dataset, subset and split and the "
            f"connection (HF_HUB_OFFLINE and HF_DATASETS_OFFLINE unset, a token for gated data); without a connection, "
            f"{otherwise}."
        ) from error


def unused(name: str, rows: Any, used: Collection[str]) -> tuple[str, ...]:
    """A note for each column, or key of messages, that looks meant and has values, but is not used."""
    found: dict[str, None] = {}
    for row in islice(iter(rows), LOOKED_AT):
        for key, value in row.items():
            if value and key in MEANT and key not in used:
                found[f"the column {key!r}"] = None
            for message in value if isinstance(value, list) and key in used else ():
                for inner in MEANT if isinstance(message, dict) else ():
                    if message.get(inner):
                        found[f"{inner!r} of the messages in {key!r}"] = None
    return tuple(f"{name}: {what} is not used" for what in found)


def _source(name: str, rows: Any, prompt_column: str, target_column: str | None) -> Source:
    columns = tuple(rows.column_names)
    for key, column in (("prompt_column", prompt_column), ("target_column", target_column)):
        if column is not None and column not in columns:
            raise UserError(
                f"{name} has no column {column!r} (prompts.{key}){did_you_mean(column, columns) or '.'} "
                f"Its columns: {', '.join(columns) or 'none'}."
            )
    return Source(name, rows, columns, prompt_column, target_column)


def _reason(error: BaseException) -> str:
    """What went wrong in one line of at most 300 characters; `datasets` wraps some of it in unhelpful text."""
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= 300 else text[:297] + "...").rstrip(".")


def open_gym(config: ReasoningGymPrompts, seed: int, counts: dict[str, int]) -> Opened:
    """A task whose entries (question, answer, metadata) are generated as needed; the same seed gives the same ones."""
    rounds = (_gym_entries(config, GYM_ROUND << n, seed_for(seed, "prompts", config.task, n)) for n in count())
    first = next(rounds)
    name = f"the reasoning-gym task {config.task!r}"
    return Source(name, [], tuple(first[0]), "question", "answer", rounds=chain([first], rounds)), None


def _gym_entries(config: ReasoningGymPrompts, size: int, seed: int) -> list[dict[str, Any]]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(
            "prompts.source is reasoning-gym, but the package is not installed; install it with "
            "`pip install 'prefloop[reasoning-gym]'`."
        ) from error
    tasks = sorted(reasoning_gym.factory.DATASETS)
    if config.task not in tasks:
        raise UserError(
            f"prompts.task: reasoning-gym has no task {config.task!r}{did_you_mean(config.task, tasks) or '.'} "
            f"Its tasks: {', '.join(tasks)}."
        )
    if taken := {"size", "seed"} & set(config.args):
        raise UserError(
            f"prompts.args: {', '.join(sorted(taken))} cannot be given; prefloop chooses how many entries it generates "
            f"and derives their seed from the campaign's."
        )
    try:
        return list(reasoning_gym.create_dataset(config.task, size=size, seed=seed, **config.args))
    except (AssertionError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UserError(
            f"prompts.args: the reasoning-gym task {config.task!r} cannot be made with {config.args}: "
            f"{' '.join(str(error).split()) or type(error).__name__}."
        ) from error
