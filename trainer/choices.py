"""Optimizers and learning-rate schedules by name, with their arguments. No torch here."""

import difflib
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """One name of a table."""

    about: str
    arguments: Arguments = field(default_factory=dict)
    """Every argument with its default, whose type it must have; None stands for a whole number from 1 on."""
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Least and largest value of an argument, where it is not any number from 0 on."""
    needs: str | None = None
    """A package that must be installed."""
    sharded: bool = True
    """Whether its states can be split over processes (`distribute: fsdp`)."""


class Moment(NamedTuple):
    """A step after the warm-up. Rates are relative to the peak, which they reach at `warmup`."""

    step: int
    warmup: int
    total: int
    peak: float

    @property
    def progress(self) -> float:
        """0 at the end of the warm-up, below 1 at the last step."""
        return (self.step - self.warmup) / max(1, self.total - self.warmup)


OPTIMIZERS: dict[str, Choice] = {
    "adamw": Choice("torch's AdamW; two moments in fp32"),
    "adamw_8bit": Choice(
        "AdamW of torchao, whose moments take 8 bits", {"block_size": 256}, needs="torchao", sharded=False
    ),
    "muon": Choice(
        "torch's Muon for matrices, one moment; AdamW for embeddings, output head and everything else",
        {"momentum": 0.95, "nesterov": True, "ns_steps": 5},
        {"momentum": (0.0, 1.0), "ns_steps": (1, 99)},
        sharded=False,
    ),
    "sgd": Choice(
        "torch's SGD; no moment, or one with `momentum`", {"momentum": 0.0, "nesterov": False}, {"momentum": (0.0, 1.0)}
    ),
    "adafactor": Choice(
        "torch's Adafactor; a row and a column instead of each matrix's moments",
        {"beta2_decay": -0.8, "d": 1.0},
        {"beta2_decay": (-math.inf, 0.0), "d": (1.0, math.inf)},
        sharded=False,
    ),
}
SCHEDULES: dict[str, Choice] = {
    "constant": Choice("the peak after the warm-up"),
    "constant_with_warmup": Choice("the same as `constant`, under the name of transformers"),
    "linear": Choice("to 0 at the end of the round"),
    "cosine": Choice("half a cosine wave to 0", {"num_cycles": 0.5}),
    "cosine_with_restarts": Choice("half waves to 0, each from the peak again", {"num_cycles": 1}),
    "cosine_with_min_lr": Choice(
        "a cosine wave to a share of the peak", {"num_cycles": 0.5, "min_lr_rate": 0.1}, {"min_lr_rate": (0.0, 1.0)}
    ),
    "polynomial": Choice("a power of what is left, to `lr_end`", {"lr_end": 1e-7, "power": 1.0}),
    "inverse_sqrt": Choice(
        "as one by the root of the steps; null: `timescale` is the warm-up, or 10000 without one", {"timescale": None}
    ),
    "warmup_stable_decay": Choice(
        "the peak, then down within the last `num_decay_steps` (null: a tenth of the round)",
        {"num_decay_steps": None, "decay_type": "linear", "min_lr_ratio": 0.0, "num_cycles": 0.5},
        {"min_lr_ratio": (0.0, 1.0)},
    ),
}
DECAYS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda progress, cycles: 1.0 - progress,
    "cosine": lambda progress, cycles: 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * progress)),
    "1-sqrt": lambda progress, cycles: 1.0 - math.sqrt(progress),
}
"""`decay_type` of warmup_stable_decay."""


def chosen(given: str | Mapping[str, Any], table: Mapping[str, Choice], what: str) -> tuple[str, Arguments]:
    """A name and its arguments, those not given at their defaults. ValueError names what is wrong and what there is."""
    entry = {"name": given} if isinstance(given, str) else dict(given)
    name = entry.pop("name", None)
    if not isinstance(name, str) or name not in table:
        near = difflib.get_close_matches(str(name), table, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"there is no {what} {name!r}{hint}; there are {', '.join(table)}")
    known = table[name].arguments
    for key, value in entry.items():
        listed = ", ".join(f"{key}={'null' if default is None else default}" for key, default in known.items())
        if key not in known:
            raise ValueError(f"the {what} {name} has no argument {key!r} (its arguments: {listed or 'none'})")
        if not _fits(value, known[key], *table[name].limits.get(key, (0.0, math.inf))):
            raise ValueError(f"the {what} {name} cannot have {key} {value!r} (its arguments: {listed})")
    if entry.get("nesterov") and not (known | entry)["momentum"]:
        raise ValueError(f"the {what} {name} needs a momentum above 0 for nesterov")
    if entry.get("decay_type", "linear") not in DECAYS:
        raise ValueError(f"decay_type of the {what} {name} must be one of {', '.join(DECAYS)}")
    return name, known | entry


def not_installed(name: str) -> str | None:
    """What to do if an optimizer's package is not there; None if nothing is missing."""
    package = OPTIMIZERS[name].needs
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return (
        f"train.optimizer: {name} needs {package}, which is not installed; install it with `pip install {package}` "
        f"(the extra `{package}`), or use adamw."
    )


def shape(name: str, arguments: Arguments, at: Moment) -> float:
    """The rate of a schedule after the warm-up, as a share of the peak: the formulas of transformers.optimization."""
    progress = at.progress
    match name:
        case "linear":
            return 1.0 - progress
        case "cosine" | "cosine_with_min_lr":
            wave = (1 + math.cos(math.pi * (2 * arguments["num_cycles"]) * progress)) / 2
            least = arguments.get("min_lr_rate", 0.0)
            return float(wave * (1 - least) + least) if least else wave
        case "cosine_with_restarts":
            return (1 + math.cos(math.pi * (arguments["num_cycles"] * progress % 1.0))) / 2
        case "polynomial":
            end = arguments["lr_end"]
            return float(((at.peak - end) * (1 - progress) ** arguments["power"] + end) / at.peak)
        case "inverse_sqrt":
            timescale = arguments["timescale"] or at.warmup or 10_000
            return 1.0 / math.sqrt((at.step + timescale - at.warmup) / timescale)
        case "warmup_stable_decay":
            return _stable_decay(arguments, at)
    return 1.0


def _stable_decay(arguments: Arguments, at: Moment) -> float:
    steps = min(arguments["num_decay_steps"] or math.ceil(at.total / 10), at.total - at.warmup)
    begin, least = at.total - steps, arguments["min_lr_ratio"]
    if at.step < begin:
        return 1.0
    factor = DECAYS[arguments["decay_type"]]((at.step - begin) / max(1, steps), arguments["num_cycles"])
    return max(0.0, factor * (1.0 - least) + least)


def _fits(value: Any, default: Any, least: float, most: float) -> bool:
    if default is None:
        return value is None or (type(value) is int and value > 0)
    if isinstance(default, bool | str):
        return isinstance(value, type(default))
    number = type(value) is int or (type(value) is float and isinstance(default, float) and math.isfinite(value))
    return number and max(least, type(default) is int) <= value <= most
