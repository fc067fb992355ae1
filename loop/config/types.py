"""Describes the types of config fields in plain English, for the error messages and the generated reference."""

import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

OnTemplateChange = Literal["refuse", "drop", "allow"]
"""What to do with a given answer whose text the chat template changes."""
SpecialTokens = Literal["text", "token"]
"""What the name of a special token inside a message is."""
PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Any: "anything"}


def readable(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Describe the type: "a number above 0", "one of `a`, `b`", "a list of text", "a whole number or null"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [one for item in args[1:] for one in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return readable(args[0], [*limits, *metadata])
    if origin in (Union, types.UnionType):
        known = sorted(args, key=lambda arg: arg is type(None))
        return " or ".join(dict.fromkeys(readable(arg, metadata) for arg in known))
    if origin is Literal:
        shown = ", ".join(f"`{choice}`" for choice in args)
        return shown if len(args) == 1 else f"one of {shown}"
    if origin in (list, tuple):
        item = readable(args[0])
        return f"a list of {_plural(item)}"
    if origin is dict or annotation is dict:
        return "a mapping"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section"
    return " ".join([PLAIN.get(annotation, str(annotation)), *_bounds(annotation, metadata)])


def _plural(item: str) -> str:
    """Several of what a description names, e.g. "whole numbers of at least 0"."""
    return item.removeprefix("a ").replace("section", "sections").replace("number", "numbers")


def _bounds(kind: Any, metadata: Sequence[Any]) -> list[str]:
    """ "above 0", "and at most 1": the limits of a number."""
    words = []
    for item in metadata:
        if isinstance(item, Gt):
            words.append(f"of at least {item.gt + 1}" if kind is int else f"above {item.gt}")  # type: ignore[operator]
        elif isinstance(item, Ge):
            words.append(f"of at least {item.ge}")
        elif isinstance(item, Lt):
            words.append(f"below {item.lt}")
        elif isinstance(item, Le):
            words.append(f"of at most {item.le}")
    return [" and ".join(words)] if words else []


def of_field(field: FieldInfo) -> str:
    """Describe a field's type."""
    return readable(field.annotation, field.metadata)


def takes_list(annotation: Any) -> bool:
    """Whether a list may be the field's own value (not a schedule)."""
    return any(get_origin(part) in (list, tuple) for part in alternatives(annotation))


def alternatives(annotation: Any) -> Iterator[Any]:
    """The members of a union, of Annotated[...] and, for models inside them, of a list."""
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        for part in get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]:
            yield from alternatives(part)
    else:
        yield annotation


def models_of(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections that a field may hold: none for a plain value, several for a union such as `prompts`."""
    parts = list(alternatives(field.annotation))
    parts += [item for part in parts if get_origin(part) is list for item in get_args(part)]
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


def own_first(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The section's fields, with those that it shares with another section last."""
    names = sorted(model.model_fields, key=lambda name: name not in model.__annotations__)
    return {name: model.model_fields[name] for name in names}


def model_behind(field: FieldInfo, value: Any) -> type[BaseModel] | None:
    """The section that a field holds with this value; a union is decided by its discriminator."""
    models = models_of(field)
    if len(models) <= 1:
        return models[0] if models else None
    tag = value.get(field.discriminator) if isinstance(value, Mapping) else None
    return next((model for model in models if tag in tags_of(model, str(field.discriminator))), None)


def tags_of(model: type[BaseModel], discriminator: str) -> tuple[Any, ...]:
    """The values of the discriminator that choose this member of a union."""
    return get_args(model.model_fields[discriminator].annotation)


def field_at(root: type[BaseModel], path: Sequence[str], data: Any) -> FieldInfo | None:
    """The field that a dotted key names, or None if it leads nowhere or into free-form values."""
    model: type[BaseModel] | None = root
    field = None
    for part in path:
        if model is None:
            return None
        if isinstance(data, list):
            data = data[int(part)] if part.isdigit() and int(part) < len(data) else None
            continue
        field = model.model_fields.get(part)
        if field is None:
            return None
        data = data.get(part) if isinstance(data, Mapping) else None
        model = model_behind(field, data)
    return field


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """ "; did you mean x?", or nothing."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def places_of(root: type[BaseModel], name: str) -> list[str]:
    """Dotted keys of other sections that end with this name: where a misplaced key may belong."""
    return [
        f"{section}.{name}"
        for section, field in root.model_fields.items()
        if any(name in model.model_fields for model in models_of(field))
    ]
