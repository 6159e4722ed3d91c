"""`key=value` on the command line, read by the signature of a function or class."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sightline.config.faults import ConfigFaults
from sightline.config.yaml_tree import read_value
from sightline.schema import check_value, describe_type, signature_parameters, suggest
from sightline.types import SourceLocation

__all__ = ["read_key_values"]


def read_key_values(
    name: str, function: Any, options: Sequence[str], *, command: str, exclude: Collection[str] = (), prefix: str = ""
) -> dict[str, Any]:
    """`key=value` as the signature of a function or class wants it, `exclude` for what is given otherwise.

    `name` is what the signature belongs to. With a `prefix` the keys have it before them in the options.
    Raises ConfigError naming all that do not fit.
    """
    known = {f"{prefix}{key}": p for key, p in signature_parameters(function).items() if key not in exclude}
    faults, given = ConfigFaults(), {}
    for option in options:
        key, equals, text = option.partition("=")
        where = SourceLocation(command, path=key.strip())
        if not equals or key not in known or key in given:
            faults.add(where, "is given twice" if key in given else _unknown_option(name, option, known))
            continue
        given[key], misfits = check_value(known[key].annotation, read_value(text, command, key, faults).plain())
        for path, misfit in misfits:
            faults.add(SourceLocation(command, path=f"{key}.{path}".rstrip(".")), misfit)
    for key, parameter in known.items():
        if parameter.is_required and key not in given:
            faults.add(
                SourceLocation(command, path=key),
                f"is required and missing: {key}=VALUE, {describe_type(parameter.annotation)}",
            )
    faults.raise_any()
    return {key.removeprefix(prefix): value for key, value in given.items()}


def _unknown_option(name: str, option: str, known: Collection[str]) -> str:
    key, equals, _ = option.partition("=")
    takes = f"; '{name}' takes {', '.join(known) or 'none'}"
    return f"is not an option{suggest(key, known, otherwise=takes)}" if equals else f"is not an option key=value{takes}"
