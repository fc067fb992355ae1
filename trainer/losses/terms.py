"""Parse the loss of a config into `LossTerm`s with every argument filled in, or raise a ValueError. No torch."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import ValidationError

from trainer.losses.method import Kind, Method, Need, import_function
from trainer.losses.table import METHODS

SUMS: dict[str, dict[str, float]] = {"dpo_nll": {"dpo": 1.0, "nll": 1.0}}
"""Names for weighted sums; `nll_weight` overrides the weight of their `nll`."""
OWN = "__prefloop_loss__"
Arguments = dict[str, Any]
"""A loss's arguments by name; each row of the table has its own."""


@dataclass(frozen=True, slots=True)
class LossTerm:
    """One method of the sum."""

    name: str
    weight: float
    arguments: Arguments

    @property
    def is_custom(self) -> bool:
        """Whether it is user-defined."""
        return ":" in self.name

    def method(self) -> Method:
        """The row of the table, or what the user's function declares. Raises ValueError if that cannot be imported."""
        return _custom(self.name) if self.is_custom else METHODS[self.name]

    def filled(self, method: Method) -> Arguments:
        """The arguments, defaults included. Raises ValueError for one that the method does not take."""
        return _arguments(self.name, method, self.arguments)


def loss(*, kind: Kind = "pairs", needs: Sequence[Need] = ("reference",)) -> Callable[[Any], Any]:
    """Decorator for a loss of your own: its kind of relation and its needs (see docs/training.md)."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}; a loss is defined on pairs, singles or groups")
    for need in needs:
        if need not in get_args(Need):
            known = ", ".join(get_args(Need))
            raise ValueError(f"there is no need {need!r}{_near(need, get_args(Need))}; known needs: {known}")

    def mark(function: Any) -> Any:
        setattr(function, OWN, (kind, frozenset(needs)))
        return function

    return mark


def terms_of(given: Any, *, beta: float | None, nll_weight: float | None) -> tuple[LossTerm, ...]:
    """The loss of a config as a sum. Raises ValueError for unknown names or arguments."""
    parts = given if isinstance(given, (list, tuple)) else [given]
    if not parts:
        raise ValueError("loss is an empty list; name at least one method")
    terms = [term for part in parts for term in _terms(part, beta)]
    if nll_weight is not None:
        terms = _with_nll(terms, nll_weight)
    kinds = {term.name: term.method().kind for term in terms if not term.is_custom}
    if len(set(kinds.values())) > 1:
        each = ", ".join(f"{name} over {kind}" for name, kind in kinds.items())
        raise ValueError(f"the losses of a sum must be defined on the same kind of data, but there are {each}")
    return tuple(terms)


def _with_nll(terms: list[LossTerm], weight: float) -> list[LossTerm]:
    """The sum with this weight of the NLL: inside a method that has one of its own, else as a term."""
    if any("nll_weight" in term.arguments for term in terms):
        return [
            replace(term, arguments=term.arguments | {"nll_weight": weight}) if "nll_weight" in term.arguments else term
            for term in terms
        ]
    others = [term for term in terms if term.name != "nll"]
    return [*others, LossTerm("nll", weight, _arguments("nll", METHODS["nll"], {}))] if weight else others


def _terms(part: Any, beta: float | None) -> list[LossTerm]:
    entry = {"name": part} if isinstance(part, str) else dict(part) if isinstance(part, Mapping) else {}
    name, weight = entry.pop("name", None), entry.pop("weight", 1.0)
    if not isinstance(name, str):
        raise ValueError(f"a loss is a name or {{name: ..., weight: ..., arguments}}, got {part!r}")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise ValueError(f"the weight of the loss {name} must be a number above 0, got {weight!r}")
    if name in SUMS:
        return [
            LossTerm(inner, weight * share, _with_beta(inner, METHODS[inner], entry if inner != "nll" else {}, beta))
            for inner, share in SUMS[name].items()
        ]
    if ":" in name:
        return [LossTerm(name, float(weight), entry if beta is None else {"beta": beta} | entry)]
    if name not in METHODS:
        raise ValueError(
            f"there is no loss {name!r}{_near(name, [*METHODS, *SUMS])}; all are listed in docs/methods.md"
        )
    return [LossTerm(name, float(weight), _with_beta(name, METHODS[name], entry, beta))]


def _with_beta(name: str, method: Method, given: Arguments, beta: float | None) -> Arguments:
    shorthand = {"beta": beta} if beta is not None and "beta" in method.arguments else {}
    return _arguments(name, method, shorthand | given)


def _arguments(name: str, method: Method, given: Arguments) -> Arguments:
    try:
        return method.settings(**given).model_dump()
    except ValidationError as error:
        fields = method.settings.model_fields.items()
        known = ", ".join(key if field.is_required() else f"{key}={field.default}" for key, field in fields)
        problems = "; ".join(_problem(item, method) for item in error.errors(include_url=False))
        raise ValueError(f"the loss {name}: {problems} (its arguments: {known or 'none'})") from None


def _problem(item: Any, method: Method) -> str:
    where = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"there is no argument {where!r}{_near(where, list(method.arguments))}"
    if item["type"] == "missing":
        return f"{where} has no default, so the config must give it"
    message = item["msg"][:1].lower() + item["msg"][1:]
    return f"{where} is {item['input']!r}: {message}"


def _near(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _custom(name: str) -> Method:
    """The row that a user's `@loss(kind=..., needs=...)` declares; its keyword-only parameters are the arguments."""
    try:
        function = import_function(name)
    except Exception as error:  # noqa: BLE001  importing a user's module may raise anything
        raise ValueError(
            f"the loss {name!r} cannot be imported ({type(error).__name__}: {error}); it must be "
            "path/to/file.py:function, or package.module:function with the package installed or in PYTHONPATH"
        ) from None
    if not hasattr(function, OWN):
        raise ValueError(
            f"the loss {name!r} does not declare what it is defined on; put @trainer.losses.terms.loss(kind='pairs', "
            "needs=['reference']) above the function"
        )
    kind, needs = getattr(function, OWN)
    arguments, about = _parameters(function), (inspect.getdoc(function) or "").partition("\n")[0]
    if "moving_reference" in needs and not {"alpha", "tau"} <= arguments.keys():
        raise ValueError(
            f"the loss {name!r} needs a moving reference, so it must take `alpha` and `tau` as keyword-only arguments: "
            "how far the reference follows the policy, and after how many steps"
        )
    return Method(kind=kind, function=name, paper="", about=about, needs=needs, arguments=arguments)


def _parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    return {
        p.name: (Any if p.annotation is p.empty else p.annotation, ... if p.default is p.empty else p.default)
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name != "state"
    }
