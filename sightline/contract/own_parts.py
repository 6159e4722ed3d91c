"""Parts of the user's own, from plugins and notebooks: each has a name of its own, and its errors name its own line."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from sightline.contract.errors import ConfigError, UserError, summarise_error

PLUGIN_MODULES = "sightline_plugin_"
"""Beginning of the name of the module that a plugin file becomes."""
_PACKAGE = __name__.partition(".")[0]


def assert_name(name: object, *, noun: str) -> None:
    """Raise AssertionError for a decorator that is written without a name: it was given the class itself."""
    function = "data" if noun == "data set" else noun.replace(" ", "_")
    written = f'@{_PACKAGE}.register.{function}("NAME")'
    what = f"class {name.__name__}" if inspect.isclass(name) else "the class"
    assert isinstance(name, str), f"a {noun} is registered by its name in configs; write {written} above {what}"


def assert_free(builder: Callable[..., Any], registered: Callable[..., Any], *, subject: str) -> None:
    """Raise AssertionError if a name is that of another class or function, or of one further up in the same plugin.

    A cell that runs again, and a plugin that is read again, replace what they have registered.
    """
    origin, others = ((each.__module__, each.__qualname__) for each in (builder, registered))
    assert origin == others, f"{subject} is registered already, by {'.'.join(others)}; take another name"
    is_plugin = builder.__module__.startswith(PLUGIN_MODULES)
    is_repeated = is_plugin and (names := _find_globals(builder)) is not None and names is _find_globals(registered)
    assert not is_repeated, f"{subject} is registered twice in this file, as {builder.__qualname__}; keep one"


def _find_globals(builder: Callable[..., Any]) -> dict[str, Any] | None:
    """Return the names of the module, as it was run, that defines a function, or a class with functions of its own."""
    functions = [*vars(builder).values()] if inspect.isclass(builder) else [builder]
    names = (inspect.unwrap(each).__globals__ for each in functions if inspect.isfunction(each))
    return next((each for each in names if each.get("__name__") == builder.__module__), None)


def name_own_parts(builders: Mapping[str, Callable[..., Any]]) -> str:
    """Name the parts of a kind that plugins have registered; without any, say how they are given."""
    if names := [name for name, builder in builders.items() if builder.__module__.startswith(PLUGIN_MODULES)]:
        return f"your own: {', '.join(names)}"
    return "parts of your own need --plugin FILE.py"


def call_builder(builder: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a class or function that is registered.

    An error in one of the user's own becomes a ConfigError with its own line, but for those that state arguments:
    ValueError, and UserError itself.
    """
    try:
        return builder(**arguments)
    except (UserError, ValueError):
        raise
    except Exception as error:
        if builder.__module__.partition(".")[0] == _PACKAGE:
            raise
        file = getattr(sys.modules.get(builder.__module__), "__file__", None)
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        where = f"{file}:{lines[-1]}: " if lines else ""
        forgotten = "before Module.__init__() call" in str(error)
        advice = "; write super().__init__() first" if forgotten else " (--traceback shows where it was raised)"
        raise ConfigError(f"{where}{builder.__name__} cannot be made: {summarise_error(error)}{advice}") from error
