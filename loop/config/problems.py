"""Validates plain settings: returns a valid model, or one paragraph per problem, which names the file or the override,
the dotted key, what was given and what is expected. `root` is the model that the settings should fill."""

import json
import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from loop.config.checks import check, fill_metric
from loop.config.schedule import Raw, changing_iterations, resolve, schedules
from loop.config.settings import PER_ITERATION_SECTIONS, Config
from loop.config.types import (
    did_you_mean,
    field_at,
    model_behind,
    models_of,
    of_field,
    own_first,
    places_of,
    tags_of,
    takes_list,
)


def validate(plain: Raw) -> Config:
    """Strict, via JSON: text is not a number, true is not 1, but a list may fill a tuple. Without a judge, the metric
    defaults to that of preference data."""
    config = Config.model_validate_json(json.dumps(fill_metric(plain), default=str), strict=True)
    check(config)
    return config


def all_problems(raw: Raw, where: str, origins: dict[str, str]) -> Iterator[str]:
    """Describe all problems; one that occurs only in some iterations names them."""
    empty = [key for key, values in schedules(raw).items() if not values]
    if empty:
        yield from (f"{where}: {key} is an empty list, expected a value or one value per iteration." for key in empty)
        return
    iterations = changing_iterations(raw)
    seen: dict[str, list[int]] = {}
    for iteration in iterations:
        try:
            plain = resolve(raw, iteration)
        except ValueError as error:
            yield f"{where}: {error}."
            return
        try:
            validate(plain)
        except ValidationError as error:
            for text in texts_of(error, plain, where, _origins_at(iteration, origins), Config):
                seen.setdefault(text, []).append(iteration)
        except ValueError as error:  # of `check`: several sections together
            seen.setdefault(f"{where}: {error}.", []).append(iteration)
    if not seen:
        yield from not_finite(raw, where, origins)
    for text, at in seen.items():
        yield text if at == iterations else f"{text.rstrip('.')} (in iteration {', '.join(map(str, at))})."


def texts_of(
    error: ValidationError, plain: Raw, where: str, origins: dict[str, str], root: type[BaseModel]
) -> list[str]:
    """One message per key, although every member of a union reports the mistake; none if one lies deeper."""
    texts: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        path = _path(detail["loc"], plain, root)
        key = ".".join(path)
        texts.setdefault(key, f"{_place(key, where, origins)}: {_explain(detail, path, plain, root)}")
    return [text for key, text in texts.items() if not any(inner.startswith(f"{key}.") for inner in texts)]


def _place(key: str, where: str, origins: dict[str, str]) -> str:
    """The last override that set this key or a part of it, else the file."""
    origin = next((text for name, text in reversed(origins.items()) if _overlap(name, key)), None)
    return f"override {origin!r}" if origin else where


def _origins_at(iteration: int, origins: dict[str, str]) -> dict[str, str]:
    """The overrides that can have set a value of this iteration, by the key that they set in it."""
    own = f"per_iteration.{iteration}."
    return {
        key.removeprefix(own): text
        for key, text in origins.items()
        if key.startswith(own) or not key.startswith("per_")
    }


def _overlap(name: str, key: str) -> bool:
    return bool(key) and (key == name or key.startswith(name + ".") or name.startswith(key + "."))


def _path(loc: tuple[int | str, ...], data: Any, root: type[BaseModel]) -> list[str]:
    """Dotted key of an error: pydantic's location without the names of union members."""
    path: list[str] = []
    model: type[BaseModel] | None = root
    member: object = None  # of a union, named in the location like a key
    for part in loc:
        if part == member:
            member = None
        elif isinstance(data, list) and isinstance(part, int):
            path.append(str(part))
            data = data[part]
        elif model is not None and part in model.model_fields:
            path.append(str(part))
            data = data.get(part) if isinstance(data, dict) else None
            field = model.model_fields[str(part)]
            model = model_behind(field, data)
            member = data.get(str(field.discriminator)) if field.discriminator and isinstance(data, dict) else None
        elif isinstance(data, dict) and part in data:
            path.append(str(part))
            data, model = data[part], None
    return path


def _explain(detail: ErrorDetails, path: list[str], plain: Raw, root: type[BaseModel]) -> str:
    """What was given, what is expected."""
    key, kind = ".".join(path), detail["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, plain, root)
    field = field_at(root, path, plain)
    if kind == "missing":
        about = field.description if field is not None else None
        meaning = f": {about[:1].lower()}{about[1:]}" if about else "."
        choices = f" Its key source is one of {', '.join(tags)}." if (tags := _sources(field)) else ""
        return f"{key} is missing{meaning}{choices}"
    if kind.startswith("union_tag"):
        tags = _sources(field)
        given = (value_at(plain, path) or {}).get("source")
        problem = "is missing" if given is None else f"is {shown(given)}"
        return f"{key}.source {problem}, expected one of {', '.join(tags)}{did_you_mean(str(given), tags) or '.'}"
    if kind == "value_error":
        text = str(detail["ctx"]["error"])
        return f"{key}: {text}." if key else f"{text}."
    if field is None:
        return f"{key} is {shown(detail['input'])}: {detail['msg']}."
    value = value_at(plain, path)
    return f"{key} is {shown(value)}, expected {_expected(field)}.{_list_hint(field, path, value, root)}"


def _unknown_key(path: list[str], plain: Raw, root: type[BaseModel]) -> str:
    *section, name = path
    field = field_at(root, section, plain)
    model = root if field is None else model_behind(field, value_at(plain, section))
    assert model is not None, path
    known = list(model.model_fields)
    guess = did_you_mean(name, known).replace("mean ", f"mean {'.'.join([*section, ''])}")
    elsewhere = places_of(root, name)
    if not guess and elsewhere and not section:
        guess = f"; did you mean {' or '.join(elsewhere)}?"
    inside = f"Known keys of {'.'.join(section)}" if section else "Known keys"
    guess = guess or _of_other_sources(section, name, plain, root)
    return f"{'.'.join(path)} is not a known key{guess or '.'} {inside}: {', '.join(known)}."


def _of_other_sources(section: list[str], name: str, plain: Raw, root: type[BaseModel]) -> str:
    """What to do about a key that was left over when another override changed the section's source."""
    field = field_at(root, section, plain)
    models = models_of(field) if field is not None else []
    others = [str(tag) for model in models if name in model.model_fields for tag in tags_of(model, "source")]
    if len(models) <= 1 or not others:
        return ""
    where = ".".join(section)
    return f" of this source, but of {', '.join(others)}; to change {where}.source, replace all of {where}."


def value_at(plain: Any, path: list[str]) -> Any:
    """The value at a dotted key, through sections and lists; None where there is none."""
    for part in path:
        plain = plain[int(part)] if isinstance(plain, list) else plain.get(part) if isinstance(plain, dict) else None
    return plain


def _expected(field: FieldInfo) -> str:
    if models := models_of(field):
        keys = list(own_first(models[0])) if len(models) == 1 else []
        return f"{of_field(field)}{' with the keys ' + ', '.join(keys) if keys else ''}"
    return of_field(field).replace("`", "")


def _sources(field: FieldInfo | None) -> list[str]:
    """The kinds of a section that has several."""
    models = models_of(field) if field is not None else []
    return [str(tag) for model in models for tag in tags_of(model, "source")] if len(models) > 1 else []


def _list_hint(field: FieldInfo, path: list[str], value: Any, root: type[BaseModel]) -> str:
    varies = root is not Config or path[0] in PER_ITERATION_SECTIONS
    if varies or not isinstance(value, list) or takes_list(field.annotation):
        return ""
    return f" One value per iteration can be given in {', '.join(PER_ITERATION_SECTIONS)} only."


def not_finite(value: Any, where: str, origins: dict[str, str], path: tuple[str, ...] = ()) -> Iterator[str]:
    """A message for every number that is not finite, or beyond what the libraries can hold."""
    key = ".".join(path)
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{_place(key, where, origins)}: {key} is {value}; numbers must be finite."
    if isinstance(value, int) and abs(value) >= 2**64:
        yield f"{_place(key, where, origins)}: {key} has {len(str(abs(value)))} digits; numbers must be below 2^64."
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inside:
        yield from not_finite(item, where, origins, (*path, str(name)))


def shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
