"""Binding of batch and output keys to the parameters of forward functions, losses, metrics and transforms."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import is_typeddict

from sightline.contract.errors import ConfigError, OutputError


class UnknownKeyError(ConfigError):
    """Error for a key that no source, or more than one, provides; `key` is the missing key."""

    key = ""


@dataclass(frozen=True)
class AvailableKeys:
    """Keys that a source provides: `AvailableKeys("data set 'scans'", {"points", "label"})`."""

    source: str
    keys: Collection[str]


@dataclass(frozen=True)
class BoundFunction:
    """A function and the keys that it takes; call it with mappings that contain them, in the order of `bind`."""

    function: Callable[..., Any]
    names: tuple[str, ...]

    def __call__(self, *mappings: Mapping[str, Any]) -> Any:
        return self.function(**self.select(*mappings))

    def select(self, *mappings: Mapping[str, Any]) -> dict[str, Any]:
        """Select the arguments of this function from the mappings."""
        return {name: mapping[name] for name in self.names for mapping in mappings if name in mapping}


def bind(
    function: Callable[..., Any], *offers: AvailableKeys, owner: str, exclude: Collection[str] = ()
) -> BoundFunction:
    """Bind parameters to keys by name. Parameters with a default are optional; those in `exclude` come from elsewhere.

    Raises ConfigError, naming both sides, for a parameter without a source and for a key of two sources.
    """
    names = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in exclude or name == "self":
            continue
        assert parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL), (
            f"{owner}: parameters must be named, but '{name}' takes any"
        )
        sources = [offer.source for offer in offers if name in offer.keys]
        if len(sources) > 1:
            raise UnknownKeyError(
                f"{owner} takes '{name}', which {' and '.join(sources)} both offer; rename one of them"
            )
        if sources:
            names.append(name)
        elif parameter.default is inspect.Parameter.empty:
            offered = "; ".join(f"{o.source} offers {', '.join(sorted(o.keys)) or 'nothing'}" for o in offers)
            error = UnknownKeyError(f"{owner} needs '{name}'; {offered}")
            error.key = name
            raise error
    return BoundFunction(function, tuple(names))


def select_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Select the arguments that a function's signature names."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def declared_outputs(function: Callable[..., Any], *, owner: str) -> frozenset[str]:
    """Return the output keys of a forward function, read from its TypedDict return annotation."""
    try:
        annotation = typing.get_type_hints(function).get("return")
    except NameError as error:  # a class inside of a function, or one that only type checkers import
        raise ConfigError(
            f"{owner}: an annotation of '{function.__qualname__}' cannot be read: {error}; define what it names at the "
            "top of the file"
        ) from error
    if annotation is None or not is_typeddict(annotation):
        raise ConfigError(
            f"{owner}: annotate the return value of '{function.__qualname__}' with a TypedDict that names its outputs"
        )
    return frozenset(annotation.__annotations__)


def locate_output_error(
    error: Exception, outputs: Any, *, owner: str, reads: Sequence[str], forward: Callable[..., Any]
) -> OutputError | None:
    """Return the error of a reader of a model's outputs as one that names the `forward` which returned them.

    None if that is not to blame: it returned a dict of what is read, and the error names no output.
    """
    code = getattr(inspect.unwrap(forward), "__code__", None)
    if code is None:  # a callable object, which has no line
        return None
    returned_by = f"{forward.__qualname__} ({code.co_filename}:{code.co_firstlineno})"
    is_dict, named = isinstance(outputs, Mapping), str(error).partition(": ")[0]
    is_no_tensor = isinstance(error, AttributeError | TypeError)
    for key in reads:
        if not is_dict:
            returned = f"a {type(outputs).__name__}"
        elif key not in outputs:
            returned = f"a dict with {', '.join(map(repr, outputs)) or 'no keys'}"
        elif is_no_tensor and not hasattr(outputs[key], "requires_grad"):
            returned = f"a {type(outputs[key]).__name__} as '{key}'"
        else:
            continue
        advice = f"make it return a dict with the tensor '{key}'"
        text = f"{owner} reads '{key}', but {returned_by} returns {returned}; {advice}"
        return OutputError(text, file=code.co_filename, line=code.co_firstlineno)
    if named not in reads:
        return None
    text = f"{error}; correct the '{named}' that {returned_by} returns"
    return OutputError(text, file=code.co_filename, line=code.co_firstlineno)
