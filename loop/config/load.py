"""Loads a config: a YAML file or shipped name plus `key=value` overrides becomes a LoadedConfig. All
mistakes of the user are reported together. Imports nothing heavy, so that `prefloop plan` is fast."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from loop.config.checks import schedule_problem
from loop.config.paths import overrides_with_absolute_paths, with_absolute_paths
from loop.config.problems import all_problems, shown, validate, value_at
from loop.config.schedule import Raw, changing_iterations, flat_overrides, resolve, schedules, set_at
from loop.config.settings import Config
from loop.config.types import did_you_mean, models_of
from loop.config.yaml_text import parse_yaml
from loop.errors import UserError, explain_obstacle

REWARD = "reward"
"""Shipped configs whose names begin so are for `prefloop train-reward`, all others are campaigns."""
RECIPES = "recipes/"
"""Names of published algorithms begin so."""
TOY_SLICING = ("parts", "order", "order_by")
"""Keys of `prompts` that toy size keeps: they belong to the algorithm, not to its data."""
TOY_PAIRS = ("replay", "correct_at")
"""Keys of `pairs` that toy size keeps with preference data."""


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A campaign's settings, valid in every iteration.

    `raw` holds every key, defaults included, schedules as lists and `per_iteration` with dotted keys: written as YAML
    it loads as the same campaign. `folder` is the folder of the YAML file, `name` the file's name without its ending
    (at toy size with `-toy`).
    """

    name: str
    source: Path
    folder: Path
    raw: Raw
    _seen: dict[int, Config] = field(default_factory=dict, init=False, compare=False, repr=False)

    def at(self, iteration: int) -> Config:
        """The settings of one iteration (from 1): schedules looked up, overrides applied."""
        assert iteration >= 1, iteration
        if not self._seen:
            self._seen.update((k, validate(resolve(self.raw, k))) for k in changing_iterations(self.raw))
        return self._seen[max(k for k in self._seen if k <= iteration)]

    @property
    def each(self) -> list[Config]:
        """The settings of all iterations, without repetitions of those of the one before."""
        return [self.at(k) for k in changing_iterations(self.raw) if k <= self.iterations]

    @property
    def base(self) -> Config:
        """The settings of the first iteration, and all those that cannot change."""
        return self.at(1)

    @property
    def iterations(self) -> int:
        """Number of iterations."""
        return int(self.raw["iterations"])


def load_config(source: str | Path, overrides: Sequence[str] = (), *, toy: bool = False) -> LoadedConfig:
    """Read a YAML file, or a config that prefloop ships by its name, and apply `key.sub=value` overrides; `toy`
    shrinks it to toy size first. UserError with one paragraph per problem."""
    path = find_config(source, shipped_configs())
    if toy:
        raw = made_small(load_config(path).raw, _shipped_folder() / "toy")
    else:
        raw = read_sections(path, Config, "prompts and judge")
    raw["per_iteration"], wrong = flat_overrides(raw.get("per_iteration"))
    problems = [f"{path}: {text}" for text in wrong]
    origins = {key: text for text in overrides for key in [apply_override(raw, text)]}
    problems += list(all_problems(raw, str(path), origins))
    if problems:
        raise UserError("\n\n".join(dict.fromkeys(problems)))
    raw = with_absolute_paths(Config, raw)
    raw["per_iteration"] = {k: overrides_with_absolute_paths(Config, at) for k, at in raw["per_iteration"].items()}
    loaded = LoadedConfig(path.stem + ("-toy" if toy else ""), path, path.parent, _complete(raw))
    if problem := schedule_problem(loaded.at, loaded.iterations):
        raise UserError(f"{path}: {problem}.")
    return loaded


def shipped_configs() -> dict[str, Path]:
    """The campaigns that come with prefloop, by name: inside the package when it is installed, else the checkout's."""
    return {name: path for name, path in _all_shipped().items() if not name.startswith(REWARD)}


def shipped_recipes() -> dict[str, str]:
    """The published algorithms that come with prefloop: name and first line of the file."""
    named = {name: path for name, path in shipped_configs().items() if name.startswith(RECIPES)}
    return {name: path.read_text(encoding="utf-8").partition("\n")[0].strip("# ") for name, path in named.items()}


def shipped_reward_configs() -> dict[str, Path]:
    """The configs for reward models that come with prefloop, by name."""
    return {name: path for name, path in _all_shipped().items() if name.startswith(REWARD)}


def _all_shipped() -> dict[str, Path]:
    """By name; recipes are named with their folder: `recipes/sppo`."""
    folder = _shipped_folder()
    paths = [
        path
        for inside in ("*.yaml", "recipes/*.yaml")
        for path in sorted(folder.glob(inside), key=lambda path: path.stem)
    ]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def _shipped_folder() -> Path:
    packaged = Path(__file__).parents[1] / "shipped"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def find_config(source: str | Path, shipped: Mapping[str, Path]) -> Path:
    """The file that `source` means: an existing file first, then the name of one of the shipped configs."""
    path = Path(source).expanduser()
    if path.is_file():
        return path.absolute()
    if str(source) in shipped:
        return shipped[str(source)]
    if path.is_dir():
        raise UserError(f"{source} is a folder, expected a YAML file or one of the configs {', '.join(shipped)}.")
    nearby = [str(file) for file in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
    raise UserError(
        f"There is no file {source}, and no config of this name comes with prefloop"
        f"{did_you_mean(str(source), [*shipped, *nearby]) or '.'} Shipped configs: {', '.join(shipped) or 'none'}."
    )


def is_config(source: str) -> bool:
    """Whether a file or a shipped config has this name."""
    return Path(source).expanduser().is_file() or source in shipped_configs()


def read_sections(path: Path, root: type[BaseModel], required: str) -> Raw:
    """The file's keys and values; messages name the `required` sections."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(explain_obstacle(error)) from error
    if values is None:
        raise UserError(f"{path} is empty; a config needs at least the sections {required}.")
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {shown(values)}, expected sections such as {required}.")
    sections = [name for name, field in root.model_fields.items() if models_of(field)]
    # A section whose keys are all commented out reads as null: it means the defaults.
    filled = [name for name in sections if root.model_fields[name].default is not None]
    return {key: {} if value is None and key in filled else value for key, value in _text_keys(values).items()}


def _text_keys(value: Any) -> Any:
    """Every key as text: YAML also reads numbers, dates and booleans as keys."""
    if isinstance(value, list):
        return [_text_keys(item) for item in value]
    return {str(key): _text_keys(item) for key, item in value.items()} if isinstance(value, dict) else value


def apply_override(raw: Raw, text: str) -> str:
    """Apply one `key.sub=value`; returns the dotted key."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise UserError(f"The override {text!r} is not of the form key.sub=value, e.g. train.beta=0.2.")
    if not value.strip():
        raise UserError(f"The override {text!r} gives no value; write {key}=null for none, or {key}='' for no text.")
    parsed = _text_keys(parse_yaml(value, f"The override {text!r}"))
    try:
        if key.partition(".")[0] == "per_iteration":
            _apply_per_iteration(raw, key, parsed)
        else:
            set_at(raw, key, parsed)
    except ValueError as error:
        raise UserError(f"The override {text!r} cannot be applied: {error}.") from error
    return key


def _apply_per_iteration(raw: Raw, key: str, value: Any) -> None:
    """Merge an override of `per_iteration`, of one of its iterations, or of a key in one."""
    for part in reversed(key.split(".")[1:]):
        value = {part: value}
    flat, wrong = flat_overrides(value)
    if wrong:
        raise ValueError("; ".join(wrong))
    for iteration, settings in flat.items():
        raw["per_iteration"].setdefault(iteration, {}).update(settings)


def _complete(raw: Raw) -> Raw:
    """Every key with its value or default; schedules and overrides as they are."""
    undisturbed = max(changing_iterations(raw))  # an iteration without overrides
    complete: Raw = validate(resolve(raw, undisturbed)).model_dump(mode="json")
    for key, values in schedules(raw).items():
        set_at(complete, key, values)
    complete["per_iteration"] = raw["per_iteration"]
    return complete


def diff(old: Raw, new: Raw, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values; None means that the key is missing."""
    found: list[tuple[str, Any, Any]] = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += diff(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append((f"{prefix}{key}", before, after))
    return found


def refuse_comparing(loaded: LoadedConfig, compares: bool) -> None:
    """UserError if adaptive sampling would split the groups of a judge that needs them whole."""
    adaptive = [k for k in range(1, loaded.iterations + 1) if loaded.at(k).sampling.adaptive is not None]
    if compares and adaptive:
        assert loaded.base.judge is not None, "it is the judge that compares"
        raise UserError(
            f"sampling.adaptive judges a first part of a prompt's responses before the rest, but the judge "
            f"{loaded.base.judge.name} judges them against each other (or scales scores within a prompt), so the parts "
            "could not be compared. Set sampling.adaptive to null, or use a judge of single responses."
        )


def made_small(raw: Raw, folder: Path) -> Raw:
    """Valid settings, defaults included, shrunk to the same algorithm on a small model, sums and a rule; `folder` holds
    settings.yaml and sums.jsonl. Nothing is downloaded."""
    toy = parse_yaml((folder / "settings.yaml").read_text(encoding="utf-8"), str(folder / "settings.yaml"))
    small, data = copy.deepcopy(raw), str(folder / "sums.jsonl")
    for key, most in toy["at_most"].items():
        set_at(small, key, _at_most(value_at(small, key.split(".")), most))
    for key, value in toy["set"].items():
        set_at(small, key, value)
    settled = toy["at_most"] | toy["set"]
    for changes in small["per_iteration"].values():
        for key in settled.keys() & changes.keys():
            del changes[key]
    if small["judge"] is not None:
        small["judge"], small["eval"]["judge"] = toy["judge"], None
    elif small["eval"]["judge"] is not None:
        small["eval"]["judge"] = toy["judge"]
    small |= {"model": toy["model"], "engine": toy["engine"], "prompts": _toy_prompts(small, toy["prompts"], data)}
    _use_toy_data(small, data)
    _remove_unused(small)
    return small


def _at_most(value: Any, most: int) -> Any:
    """A number, or each of a schedule, lowered; null means no bound."""
    if isinstance(value, list):
        return [_at_most(one, most) for one in value]
    return most if value is None else min(value, most)


def _toy_prompts(raw: Raw, sizes: Raw, data: str) -> Raw:
    """The section `prompts`: sums, sliced if the campaign slices its own data."""
    before, each = raw["prompts"], sizes["train"]
    kept = {key: before[key] for key in TOY_SLICING if before.get(key) is not None}
    slices = kept.get("parts") or (raw["iterations"] if before["per_iteration"] else 1)
    sizes = sizes | kept | {"train": each * slices, "per_iteration": each if before["per_iteration"] else None}
    if before["source"] != "preferences":
        return {"source": "file", "path": data, "target_column": "response", **sizes}
    margin = "margin" if before["margin_column"] else None
    return {"source": "preferences", "path": data, "chosen_column": "response", "margin_column": margin, **sizes}


def _use_toy_data(raw: Raw, data: str) -> None:
    """The other places where a campaign names data or a model."""
    pairs, train = raw["pairs"], raw["train"]
    for key, column in (("gold_column", "response"), ("negative_column", "rejected")):
        pairs[key] = pairs[key] and column
    if offline := pairs["offline"]:
        pairs["offline"] = {"path": data, "chosen_column": "response", "share": offline["share"]}
    if train["mix"]:
        train["mix"] |= {"path": data}
    if raw["reference"] == "path":
        raw["reference_path"] = raw["model"]["base"]


def _remove_unused(raw: Raw) -> None:
    """Remove what has no effect with fewer iterations, preference data or online rounds."""
    pairs, train = raw["pairs"], raw["train"]
    pairs["replay"] = {back: share for back, share in pairs["replay"].items() if int(back) < raw["iterations"]}
    if raw["prompts"]["source"] == "preferences":
        raw["pairs"] = {key: pairs[key] for key in TOY_PAIRS}
    if train.get("sync_every", "round") != "round":
        train["max_steps"] = None  # an online round ends with its prompts
