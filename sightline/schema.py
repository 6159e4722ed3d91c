"""A signature is a schema: check plain values against type annotations, and say in words what is allowed."""

from __future__ import annotations

import difflib
import inspect
import json
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import TypeAdapter, ValidationError

__all__ = ["Parameter", "check_value", "describe_type", "nearest", "parameters_of", "show_value"]

_WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Parameter(typing.NamedTuple):
    """One argument of a component: its annotation with constraints, and its default (`inspect.Parameter.empty` if none)."""

    name: str
    annotation: Any
    default: Any

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty


def parameters_of(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The keyword-only parameters of a function or class constructor, in order, with resolved annotations."""
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target, include_extras=True)
    return {
        name: Parameter(name, hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def check_value(annotation: Any, value: object) -> tuple[object, str | None]:
    """The value as the annotation wants it (an int as float, a list as tuple), and what is wrong with it, if anything.

    Nothing is guessed: "False" is not a bool, "1" is not a number, 2.0 is not a whole number.
    """
    try:
        return TypeAdapter(annotation).validate_json(json.dumps(value), strict=True), None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
        found = first["input"] if place else value
        inside = f"element {place}: " if place else ""
        return value, f"{inside}found {show_value(found)}, allowed is {describe_type(annotation)}"


def describe_type(annotation: Any) -> str:
    """An annotation in words: `a whole number >= 1`, `one of 'a', 'b'`, `a list of numbers`."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        base, *constraints = typing.get_args(annotation)
        return " and ".join([describe_type(base), *filter(None, map(_bound, constraints))]).replace(" and ", " ", 1)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(choice) for choice in typing.get_args(annotation))
    if origin in (list, tuple, Sequence):
        inner = [choice for choice in typing.get_args(annotation) if choice is not Ellipsis]
        length = f" of length {len(inner)}" if origin is tuple and Ellipsis not in typing.get_args(annotation) else ""
        return f"a list{length} of ({describe_type(inner[0])})" if inner else "a list"
    if origin in (dict, Mapping):
        return "a mapping"
    if annotation is type(None):
        return "null"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bound(constraint: object) -> str | None:
    match constraint:
        case Ge(bound):
            return f">= {bound}"
        case Gt(bound):
            return f"> {bound}"
        case Le(bound) if isinstance(bound, int) and bound >= 2**31 - 1:
            return None
        case Le(bound):
            return f"<= {bound}"
        case Lt(bound):
            return f"< {bound}"
    return None


def show_value(value: object) -> str:
    """A value as a user wrote it, cut short, with its kind where the look alone would mislead."""
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return repr(value)


def nearest(word: str, choices: Collection[str]) -> str:
    """`; did you mean 'x'?` for the closest choice, or the choices themselves where none is close."""
    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    if match:
        return f"; did you mean '{match[0]}'?"
    return f"; allowed: {', '.join(sorted(choices))}" if choices else ""
