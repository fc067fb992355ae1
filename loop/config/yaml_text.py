"""Parses YAML into plain values; a mistake is a UserError with its line.

Four differences from PyYAML's own loader: `1e-6` is a number (YAML 1.1 reads it as text, because it has no dot), a key
given twice is refused instead of the last one winning, so are aliases that grow without end, and errors are readable.
"""

import math
import re
from typing import Any

import yaml

from loop.errors import UserError

FLOAT = re.compile(
    r"""^(?: [-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        | [-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        | [-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN) )$""",
    re.VERBOSE,
)


LARGEST = 100_000
"""Values that a text may hold, its aliases written out."""


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with numbers as YAML 1.2 has them, without repeated keys and endless aliases."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) > LARGEST:
            problem = f"aliases (*name) make it endless, or larger than {LARGEST:,} values; write the values out"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a text, not a list or a mapping", key_node.start_mark
                )
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node holds, its aliases written out: infinitely many if it holds itself. `known` has the sizes
    of other nodes by their id."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is counted
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        inside = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_size(one, known) for one in inside)
    return known[id(node)]


def parse_yaml(text: str, where: str) -> Any:
    """The values of a YAML text; `where` names it in errors."""
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        shown = mark.get_snippet(indent=2) if mark else None
        raise UserError(
            f"{where}{line}: {error.problem or error.context}." + (f" The place:\n{shown}" if shown else "")
        ) from error
    except RecursionError as error:
        raise UserError(f"{where} cannot be read as YAML: its brackets or indents nest too deeply.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: e.g. a date that does not exist
        raise UserError(f"{where} cannot be read as YAML: {error}.") from error


class _Dumper(yaml.SafeDumper):
    """Quotes what this file's Loader would read as a number, and escapes what only looks like a line's end."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if set(text) & set("\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


def to_yaml(values: dict[str, Any]) -> str:
    """The text that `parse_yaml` reads back as equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _FlowDumper(_Dumper):
    """Writes texts with line ends as one line."""


_FlowDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None),
)


def flow_yaml(values: dict[str, Any]) -> str:
    """The same on one line, as an override on the command line takes it."""
    return yaml.dump(
        values, Dumper=_FlowDumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
    ).strip()
