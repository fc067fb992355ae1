"""Values that change per iteration: resolves a config with schedules into a plain one.

A schedule is a list for a field that is not a list: its k-th value applies in iteration k, the last one stays.
`per_iteration` overrides single keys in single iterations. Both only in the sections of PER_ITERATION_SECTIONS.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from loop.config.settings import PER_ITERATION_SECTIONS, Config
from loop.config.types import did_you_mean, field_at, model_behind, takes_list

Raw = dict[str, Any]


def schedules(raw: Raw) -> dict[str, list[Any]]:
    """Every schedule by its dotted key."""
    sections = {name: raw[name] for name in PER_ITERATION_SECTIONS if isinstance(raw.get(name), dict)}
    return dict(_schedules_in(Config, sections, ""))


def _schedules_in(model: type[BaseModel], values: Raw, prefix: str) -> Iterator[tuple[str, list[Any]]]:
    for name, value in values.items():
        field = model.model_fields.get(name)
        if field is None:
            continue  # an unknown key is refused by the validation
        inner = model_behind(field, value)
        if isinstance(value, list) and not takes_list(field.annotation):
            yield f"{prefix}{name}", value
        elif isinstance(value, dict) and inner is not None:
            yield from _schedules_in(inner, value, f"{prefix}{name}.")


def changing_iterations(raw: Raw) -> list[int]:
    """Iterations whose settings may differ from those of the one before; from the last one on nothing changes."""
    longest = max((len(values) for values in schedules(raw).values()), default=1)
    single = [k + after for k in raw.get("per_iteration", {}) for after in (0, 1)]
    return sorted({1, *range(1, longest + 1), *single})


def resolve(raw: Raw, iteration: int) -> Raw:
    """The plain settings of one iteration: schedules looked up, overrides applied, `per_iteration` gone."""
    plain = copy.deepcopy(raw)
    overrides = plain.pop("per_iteration", {})
    for key, values in schedules(raw).items():
        set_at(plain, key, values[min(iteration - 1, len(values) - 1)])
    for key, value in overrides.get(iteration, {}).items():
        set_at(plain, key, value)
    return plain


def set_at(tree: Raw, key: str, value: Any) -> None:
    """Set a dotted key, making the sections on its way; ValueError if something on the way is a plain value."""
    *way, last = key.split(".")
    for depth, part in enumerate(way):
        if tree.get(part) is None:
            tree[part] = {}
        tree = tree[part]
        if not isinstance(tree, dict):
            raise ValueError(f"{'.'.join(way[: depth + 1])} is {tree!r}, expected a section with keys")
    tree[last] = value


def flat_overrides(given: Any) -> tuple[dict[int, Raw], list[str]]:
    """`per_iteration` with dotted keys, {2: {"train.beta": 0.2}}, and the problems with it."""
    if given is None:
        return {}, []
    if not isinstance(given, Mapping):
        return {}, [
            f"per_iteration is {given!r}, expected iterations with their settings, e.g. {{2: {{train.beta: 0.2}}}}"
        ]
    flat: dict[int, Raw] = {}
    problems: list[str] = []
    for iteration, settings in given.items():
        number = int(iteration) if str(iteration).isdecimal() else 0
        if number < 1 or isinstance(iteration, bool):
            problems.append(f"per_iteration.{iteration}: the key must be an iteration, a whole number of at least 1")
        elif not isinstance(settings, Mapping):
            problems.append(f"per_iteration.{iteration} is {settings!r}, expected settings such as {{train.beta: 0.2}}")
        else:
            flat[number] = dict(_leaves(settings, ()))
            problems += [f"per_iteration.{number}.{key} {why}" for key in flat[number] if (why := _refused(key))]
    return dict(sorted(flat.items())), problems


def _leaves(settings: Mapping[Any, Any], above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values; only sections are descended into; a mapping that is a value is kept."""
    for key, value in settings.items():
        path = (*above, *str(key).split("."))
        field = field_at(Config, path, None)
        if isinstance(value, Mapping) and value and field is not None and model_behind(field, value) is not None:
            yield from _leaves(value, path)
        else:
            yield ".".join(path), value


def _refused(key: str) -> str:
    """Why a key may not change from iteration to iteration, or nothing."""
    section = key.partition(".")[0]
    if section in PER_ITERATION_SECTIONS:
        return f"must name a key inside the section {section}" if section == key else ""
    sections = ", ".join(PER_ITERATION_SECTIONS)
    if section not in Config.model_fields:
        return f"names no section{did_you_mean(section, PER_ITERATION_SECTIONS)} Known here: {sections}"
    return (
        f"cannot change from iteration to iteration, only keys of {sections} can: model, prompts, judge, evaluation "
        f"and reference rule stay the same through a campaign, so that its iterations can be compared"
    )
