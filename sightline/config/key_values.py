"""Command line options `key=value`, checked against the signature of a function or class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sightline.config.faults import ConfigFaults
from sightline.config.yaml_tree import read_value
from sightline.contract.schema import check_value, describe_type, signature_parameters, suggest
from sightline.contract.types import SourceLocation


def read_key_values(
    name: str,
    function: Any,
    options: Sequence[str],
    *,
    command: str,
    exclude: Collection[str] = (),
    prefix: str = "",
    texts: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Read `key=value` options as the signature of a function or class states, without the parameters in `exclude`.

    `name` is the name of the function in errors, `texts` say what the options do. With a `prefix`, the keys of the
    options begin with it.
    Raises ConfigError with all faults.
    """
    parameters = {f"{prefix}{key}": p for key, p in signature_parameters(function).items() if key not in exclude}
    faults, values = ConfigFaults(), {}
    for option in options:
        key, equals, text = option.partition("=")
        where = SourceLocation(command, path=key.strip())
        if not equals or key not in parameters or key in values:
            faults.add(where, "is given twice" if key in values else _describe_unknown(name, option, parameters))
            continue
        values[key], misfits = check_value(parameters[key].annotation, read_value(text, command, key, faults).plain())
        for path, misfit in misfits:
            faults.add(SourceLocation(command, path=f"{key}.{path}".rstrip(".")), misfit)
    for key, parameter in parameters.items():
        if parameter.is_required and key not in values:
            text = texts.get(key.removeprefix(prefix), "")
            allowed = describe_type(parameter.annotation)
            about = f"{text} ({allowed})" if text else allowed
            faults.add(SourceLocation(command, path=key), f"is required and missing: {key}=VALUE, {about}")
    faults.raise_any()
    return {key.removeprefix(prefix): value for key, value in values.items()}


def _describe_unknown(name: str, option: str, valid_names: Collection[str]) -> str:
    key, equals, _ = option.partition("=")
    takes = f"; '{name}' takes {', '.join(valid_names) or 'none'}"
    return (
        f"is not an option{suggest(key, valid_names, otherwise=takes)}"
        if equals
        else f"is not an option key=value{takes}"
    )
