"""Schemas from signatures: check of plain values against type annotations, and descriptions of types."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, TypeGuard

import numpy as np
from typing_extensions import is_typeddict

from sightline.contract.validation import Ge, Gt, Le, Lt, PydanticUserError, TypeAdapter, ValidationError

_DESCRIPTIONS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Any: "anything",
}
_LISTS = (list, tuple, Sequence)
_MAPPINGS = (dict, Mapping)
_UNIONS = (typing.Union, types.UnionType)
MAX_ARGUMENTS = 10
_MAX_SHOWN_LENGTH = 60
_EXAMPLES = (0.001, 0.5, 10, 1)
_WORDS = {"none": None, "true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""Words that a config reads as text, and what YAML or Python take them for."""
_MAX_NAMED_BOUND = 1e9
"""Bound at or above which a maximum only guards against slips; it is named only if it was exceeded."""


class Block(typing.NamedTuple):
    """Marker of an argument that is a component block: `Annotated[nn.Module, Block("point_encoders")]`.

    `kind` is the registry that knows its name and builds it, with the same facts, before the component around it.
    """

    kind: str


def get_block_marker(annotation: Any) -> Block | None:
    """Return the marker of an argument that is a block, a list of blocks, or an optional block; else None."""
    for part in (annotation, *typing.get_args(annotation)):
        for mark in getattr(part, "__metadata__", ()):
            if isinstance(mark, Block):
                return mark
    return None


class Parameter(typing.NamedTuple):
    """Parameter of a component: annotation with constraints, and default (`inspect.Parameter.empty` if none).

    `block` marks a component block, a list of blocks, or an optional block.
    """

    name: str
    annotation: Any
    default: Any
    block: Block | None

    @property
    def is_required(self) -> bool:
        """True if the parameter has no default."""
        return self.default is inspect.Parameter.empty


class SchemaError(typing.NamedTuple):
    """Fault of a value, and the path of the part concerned: `1.lr_factor`, or empty for the whole."""

    path: str
    text: str


def signature_parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the keyword-only parameters of a function or class constructor, in order, with resolved annotations."""
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target, include_extras=True)
    return {
        name: Parameter(name, hint := hints.get(name, Any), parameter.default, get_block_marker(hint))
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def check_value(annotation: Any, value: object) -> tuple[Any, list[SchemaError]]:
    """Convert a value to its annotation (int to float, list to tuple), and list everything wrong with it.

    Nothing is guessed: "False" is not a bool, "1" is not a number, 2.0 is not a whole number, NaN is not a number.
    """
    try:
        accepted = _validate(annotation, value)
        misfits = list(_find_misfits(annotation, value, "")) if _has_typed_dict(annotation) else []
        return (value, misfits) if misfits else (accepted, [])
    except (ValidationError, TypeError, ValueError):
        return value, list(_find_misfits(annotation, value, "")) or [_make_misfit(annotation, value, "")]
    except PydanticUserError:
        return value, [SchemaError("", f"is of the type {describe_type(annotation)}, which a config cannot give")]


def _validate(annotation: Any, value: object) -> Any:
    try:
        adapter = _get_adapter(annotation)
    except TypeError:  # an annotation that cannot be hashed
        adapter = TypeAdapter(annotation)
    return adapter.validate_json(json.dumps(value, allow_nan=False, default=_to_python_scalar), strict=True)


def _to_python_scalar(value: object) -> object:
    """Convert a NumPy scalar, such as a number that was counted in an array. Raises TypeError for anything else."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(type(value).__name__)


@lru_cache(maxsize=1024)
def _get_adapter(annotation: Any) -> TypeAdapter[Any]:
    """Return a cached adapter: a config needs some sixty, and making one takes longer than checking all values."""
    return TypeAdapter(annotation)


def _has_typed_dict(annotation: Any) -> bool:
    """Return True if a type contains a TypedDict, of which pydantic would drop unknown keys silently."""
    return is_typeddict(annotation) or any(map(_has_typed_dict, typing.get_args(annotation)))


def _find_misfits(annotation: Any, value: object, path: str) -> Iterator[SchemaError]:
    """Yield the faults of a value's parts, so that each is named by itself."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _find_misfits(typing.get_args(annotation)[0], value, path)
    elif origin in _UNIONS:
        yield from _find_union_misfits(annotation, value, path)
    elif origin in _LISTS and isinstance(value, list | tuple):
        elements = _element_types(annotation, len(value))
        if len(elements) != len(value):
            yield _make_misfit(annotation, value, path)
            return
        for index, (element, item) in enumerate(zip(elements, value, strict=True)):
            yield from _find_part_misfits(element, item, f"{path}.{index}")
    elif origin in _MAPPINGS and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _find_part_misfits(typing.get_args(annotation)[1], item, f"{path}.{key}")
    elif is_typeddict(annotation) and isinstance(value, Mapping):
        yield from _find_key_misfits(annotation, value, path)


def _find_part_misfits(annotation: Any, value: object, path: str) -> Iterator[SchemaError]:
    _, misfits = check_value(annotation, value)
    for misfit in misfits:
        yield SchemaError(".".join(filter(None, (path.lstrip("."), misfit.path))), misfit.text)


def _find_union_misfits(annotation: Any, value: object, path: str) -> Iterator[SchemaError]:
    """Yield the faults of a value of a union: none if a member fits, those of the only member of its form, if any."""
    members = typing.get_args(annotation)
    if all(check_value(member, value)[1] for member in members):
        faults_by_member = list(filter(None, (list(_find_misfits(member, value, path)) for member in members)))
        yield from faults_by_member[0] if len(faults_by_member) == 1 else [_make_misfit(annotation, value, path)]


def _find_key_misfits(annotation: Any, value: Mapping[str, Any], path: str) -> Iterator[SchemaError]:
    fields = _list_keys(annotation)
    for key in value:
        if key not in fields:
            yield SchemaError(f"{path}.{key}".lstrip("."), f"unknown key '{_format_key(key)}'{suggest(key, fields)}")
    for key, (field, is_required) in fields.items():
        if key in value:
            yield from _find_part_misfits(field, value[key], f"{path}.{key}")
        elif is_required:
            yield SchemaError(f"{path}.{key}".lstrip("."), f"is required and missing; give {describe_type(field)}")


def _make_misfit(annotation: Any, value: object, path: str) -> SchemaError:
    allowed = describe_type(annotation, beside=value)
    text = f"found {format_value(value)}, allowed is {allowed}{_suggest_value(annotation, value)}"
    return SchemaError(path.lstrip("."), text)


def _suggest_value(annotation: Any, value: object) -> str:
    """Suggest the value that one of another form was meant as: `; did you mean 0.1?`; else an example of a number."""
    meant = [candidate for candidate in _list_readings(value) if _is_valid(annotation, candidate)]
    if meant:
        return f"; did you mean {json.dumps(meant[0])}?"
    examples = () if _is_number(value) else _EXAMPLES
    return next((f", such as {candidate}" for candidate in examples if _is_valid(annotation, candidate)), "")


def _list_readings(value: object) -> Iterator[object]:
    """List what a value may have been meant as: text without its quotes, one value for a list of it, a bool for 1."""
    if isinstance(value, str):
        word = value.strip().casefold()
        with contextlib.suppress(ValueError, OverflowError):
            yield (number := float(word.replace(",", ".")))
            yield int(number)
        yield _WORDS.get(word, word)
    elif _is_number(value) and math.isfinite(value):
        yield from (reading for reading in (int(value), bool(value)) if reading == value)
        yield str(value)
    yield from value if isinstance(value, list | tuple) and len(value) == 1 else ([value],)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_valid(annotation: Any, value: object) -> bool:
    with contextlib.suppress(ValidationError, PydanticUserError, TypeError, ValueError):
        _validate(annotation, value)
        return True
    return False


def refuse_block(value: object, allowed: str, names: Collection[str] = ()) -> str:
    """Describe a value where a block, or a list of them, is allowed, with the block that a name was meant as.

    A name that is none of `names` is taken for the one that is most alike.
    """
    item = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    name = item.get("name") if isinstance(item, Mapping) else item
    name = find_similar(name, names) or name if isinstance(name, str) and name not in names else name
    block = f"{{name: {name}{', ...' if isinstance(item, Mapping) and len(item) > 1 else ''}}}"
    meant = f"; did you mean {f'[{block}]' if allowed.startswith('a list') else block}?"
    return f"found {format_value(value)}, allowed is {allowed}{meant if isinstance(name, str) else ''}"


def _element_types(annotation: Any, length: int) -> Sequence[Any]:
    """Return the element types of a list of `length`; a list of fixed length has one type per element."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and Ellipsis not in inner:
        return inner
    return [inner[0] if inner else Any] * length


def _list_keys(annotation: Any) -> dict[str, tuple[Any, bool]]:
    """Return the keys of a TypedDict: the type of each, and True if it is required."""
    hints = typing.get_type_hints(annotation, include_extras=True)
    fields = {}
    for key, hint in hints.items():
        is_optional = key in annotation.__optional_keys__ or typing.get_origin(hint) is NotRequired
        fields[key] = (typing.get_args(hint)[0] if typing.get_origin(hint) is NotRequired else hint, not is_optional)
    return fields


def assert_signature(
    builder: Callable[..., Any], name: str, *, reserved: tuple[str, ...], injected: frozenset[str]
) -> None:
    """Raise AssertionError for a builder whose signature is no schema; a config never gives what is `injected`."""
    parameters = inspect.signature(builder).parameters.values()
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters), (
        f"'{name}': every argument must be keyword-only and named (no *args, no **kwargs); write "
        f"{_write_keyword_only(builder, parameters)}"
    )
    config_parameters = [
        parameter for parameter in parameters if parameter.name not in injected
    ]  # users never set the others
    assert len(config_parameters) <= MAX_ARGUMENTS, (
        f"'{name}': {len(config_parameters)} arguments, at most {MAX_ARGUMENTS}"
    )
    for parameter in parameters:
        assert parameter.annotation is not inspect.Parameter.empty, (
            f"'{name}': annotate the argument '{parameter.name}'"
        )
        assert parameter.name not in reserved, (
            f"'{name}': '{parameter.name}' has a meaning of its own in a config; rename it"
        )


def _write_keyword_only(builder: Callable[..., Any], parameters: Iterable[inspect.Parameter]) -> str:
    """Write the line that defines a builder as it should be, with every argument keyword-only and named."""
    named = [p for p in parameters if p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)]
    texts = [str(p.replace(kind=inspect.Parameter.KEYWORD_ONLY)) for p in named]
    written = [text.replace(repr(p.annotation), str(p.annotation), 1) for p, text in zip(named, texts, strict=True)]
    names = ["self"] * inspect.isclass(builder) + ["*", *written] * bool(written)
    return f"`def {'__init__' if inspect.isclass(builder) else builder.__name__}({', '.join(names)})`"


# --- words -----------------------------------------------------------------------------------------------------------


def describe_type(annotation: Any, *, beside: object = None) -> str:
    """Describe an annotation: `a whole number, at least 1`, `one of 'a', 'b'`, `a list, each element a number`.

    A very large bound is left out, unless the value `beside` has exceeded it.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated and isinstance(inner[1], Block):
        return f"a block of `name:` and its arguments, of `sightline list {inner[1].kind}`"
    if origin is typing.Annotated:
        return _describe_bounds(inner[0], inner[1:], beside)
    if origin is typing.Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(repr(choice) for choice in inner)
    if origin in _UNIONS:
        descriptions = [describe_type(choice, beside=beside) for choice in inner]
        return (", or " if any("," in description for description in descriptions) else " or ").join(descriptions)
    if origin in _LISTS:
        element = describe_type(_element_types(annotation, 1)[0])
        return f"a list of {len(inner)}, each {element}" if _is_fixed_length(annotation) else f"a list, each {element}"
    if origin in _MAPPINGS:
        return f"a mapping, each value {describe_type(inner[1])}"
    if is_typeddict(annotation):
        fields = (f"{key}: {describe_type(field)}" for key, (field, _) in _list_keys(annotation).items())
        return "a mapping {" + "; ".join(fields) + "}"
    if annotation is type(None) or annotation is None:
        return "null"
    return _DESCRIPTIONS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _is_fixed_length(annotation: Any) -> bool:
    return typing.get_origin(annotation) is tuple and Ellipsis not in typing.get_args(annotation)


def _describe_bounds(base: Any, constraints: Sequence[object], beside: object) -> str:
    lowest = highest = ""
    is_closed = False
    for constraint in constraints:
        match constraint:
            case Ge(bound):
                lowest, is_closed = f"at least {bound:g}", True
            case Gt(bound):
                lowest = f"above {bound:g}"
            case Le(bound) if _is_named_bound(bound, beside):
                highest = f"at most {bound}"
            case Lt(bound) if _is_named_bound(bound, beside):
                highest, is_closed = f"below {bound}", False
    what = describe_type(base)
    if is_closed and highest.startswith("at most"):
        return f"{what} from {lowest.removeprefix('at least ')} to {_trim_number(highest.removeprefix('at most '))}"
    return ", ".join([what, *filter(None, [" and ".join(filter(None, [lowest, _trim_number(highest)]))])])


def _is_named_bound(bound: Any, beside: object) -> bool:
    return bound < _MAX_NAMED_BOUND or (isinstance(beside, int | float) and beside > bound)


def _trim_number(text: str) -> str:
    return text.removesuffix(".0")


def format_value(value: object) -> str:
    """Format a value as the user wrote it, cut short, with its type if it could be misread."""
    if isinstance(value, str):
        return f"the text {_shorten(repr(value))}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"a mapping with {_shorten(', '.join(map(_format_key, value)))}" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return f"the list {_shorten(json.dumps(value, default=str))}" if value else "an empty list"
    return _shorten(repr(value))


def _format_key(key: object) -> str:
    return str(key) if str(key).isprintable() else repr(key)


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_LENGTH else f"{text[:_MAX_SHOWN_LENGTH]}..."


def suggest(word: str, choices: Collection[str], *, otherwise: str | None = None) -> str:
    """Format `; did you mean 'x'?` for the closest choice, else `otherwise`, by default a list of all choices."""
    if similar := find_similar(word, choices):
        return f"; did you mean '{similar}'?"
    if otherwise is not None:
        return otherwise
    return f"; allowed: {', '.join(sorted(choices))}" if choices else ""


def suggest_beside(path: Path, others: Iterable[Path]) -> str:
    """Format `; did you mean 'x'?` for the path, of those in one folder with another, whose own name is closest to it.

    Their names are compared and not the folder's: with a long one before it, any two paths are alike.
    """
    similar = find_similar(path.name, [other.name for other in others])
    return f"; did you mean '{path.parent / similar}'?" if similar else ""


def find_similar(word: str, choices: Collection[str], *, cutoff: float = 0.6) -> str | None:
    """Return the closest choice, if one is as close as `cutoff`: 1 is the same word."""
    by_normalised_name = {_normalise(choice): choice for choice in choices}
    match = difflib.get_close_matches(_normalise(word), by_normalised_name, n=1, cutoff=cutoff)
    return by_normalised_name[match[0]] if match else None


def _normalise(word: str) -> str:
    return word[:200].casefold().replace("-", "_").replace(" ", "_").replace("++", "2")  # PointNet++ is pointnet2
