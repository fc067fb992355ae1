"""Makes the local paths of a config absolute, so that the stored config means the same from every directory.

A setting that can hold a path has one of these types, which say how its value is read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from loop.config.types import field_at, model_behind
from trainer.settings import IsPath, absolute


def _absolute_model(name: str) -> str:
    """A model's folder or GGUF file as an absolute path; anything else is a hub id or pypi:name."""
    local = name.startswith(("/", ".", "~")) or name.endswith(".gguf") or Path(name).exists()
    return absolute(name) if local else name


def _absolute_judge(name: str) -> str:
    file, colon, attribute = name.rpartition(":")
    return f"{absolute(file)}{colon}{attribute}" if file.endswith(".py") else name


def _absolute_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The known arguments that can name files, also those of the judges in a combination. Names and malformed values
    stay."""
    result = dict(arguments)
    for key in TEXT_ARGUMENTS & result.keys():
        if _exists(result[key]):
            result[key] = absolute(result[key])
    for key in MODEL_ARGUMENTS & result.keys():
        if _exists(result[key], "config.json") or str(result[key]).endswith(".gguf"):
            result[key] = absolute(result[key])
    if isinstance(parts := result.get("parts"), list):
        result["parts"] = [_absolute_part(part) for part in parts]
    return result


TEXT_ARGUMENTS = {"template", "text"}
"""Arguments of judges that hold a text file, or a name or the text itself."""
MODEL_ARGUMENTS = {"model", "reference"}
"""Arguments of judges that hold a model's folder, or its name at an endpoint, on the hub or of a package."""


def _absolute_part(part: Any) -> Any:
    if not isinstance(part, dict) or not isinstance(part.get("judge"), str):
        return part
    arguments = {"args": _absolute_arguments(part["args"])} if isinstance(part.get("args"), dict) else {}
    return part | {"judge": _absolute_judge(part["judge"])} | arguments


def _exists(value: Any, inside: str = "") -> bool:
    """Whether an argument names an existing file, or a folder that holds the file `inside`."""
    if not isinstance(value, str) or "\n" in value or len(value) > 1000:
        return False
    return (Path(value).expanduser() / inside).is_file()


ModelName = Annotated[str, IsPath(_absolute_model)]
JudgeName = Annotated[str, IsPath(_absolute_judge)]
JudgeArguments = Annotated[dict[str, Any], IsPath(_absolute_arguments)]


def with_absolute_paths(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `model` with every path made absolute; a schedule has its paths made absolute one by one."""
    fields = model.model_fields
    return {key: _absolute_value(fields[key], value) if key in fields else value for key, value in values.items()}


def overrides_with_absolute_paths(root: type[BaseModel], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The same for values by dotted key."""
    fields = {key: field_at(root, key.split("."), None) for key in overrides}
    return {key: _absolute_value(field, overrides[key]) if field else overrides[key] for key, field in fields.items()}


def path_type(field: FieldInfo) -> IsPath | None:
    """How the field's value is made absolute; None if it holds no path."""
    return next((mark for part in (field.annotation, *field.metadata) for mark in _marks(part)), None)


def _marks(annotation: Any) -> Iterator[IsPath]:
    if isinstance(annotation, IsPath):
        yield annotation
    for part in get_args(annotation):
        yield from _marks(part)


def _absolute_value(field: FieldInfo, value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute_value(field, item) for item in value]
    if not value:
        return value
    if (kind := path_type(field)) is not None:
        return kind.absolute(value)
    section = model_behind(field, value)
    return with_absolute_paths(section, value) if section is not None and isinstance(value, Mapping) else value
