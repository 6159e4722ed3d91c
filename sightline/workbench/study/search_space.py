"""Search space of a sweep: config keys with ranges or choices, each tried on the config before a run is trained."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.config.faults import ConfigFaults
from sightline.config.overrides import COMMAND_LINE, split_values
from sightline.config.yaml_tree import LocatedValue, read_value, read_yaml
from sightline.config.yaml_writer import format_inline
from sightline.contract.errors import ConfigError, UserError
from sightline.contract.schema import format_value, suggest
from sightline.contract.types import SourceLocation

_RANGE_KEYS = ("low", "high", "log", "step")
_ALLOWED = "a list of values, or a range {low: 1e-4, high: 1e-1, log: true}"
_REFUSED = {
    "seed": "a seed is not chosen by its figure; compare settings over seeds with 'sightline study'",
    "name": "the name of a run changes nothing that is measured",
    "evaluate.metric": "trials with other metrics cannot be compared",
    "evaluate.mode": "trials with other directions cannot be compared",
    "evaluate.select": "trials that are chosen by other parts cannot be compared",
}


@dataclass(frozen=True)
class SearchDimension:
    """Key of a config to search: one of `choices`, as texts, or a number from `low` to `high`, both included."""

    key: str
    where: SourceLocation
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    is_log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        """True for a range of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def describe(self) -> dict[str, Any]:
        """Return the dimension as a space file states it."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.is_log, "step": self.step}

    def list_bounds(self) -> list[str]:
        """List the values to try on a config: all choices, or both ends of the range."""
        return list(self.choices) or [format_inline(self.low), format_inline(self.high)]

    def suggest(self, trial: Any) -> str:
        """Return the value of a trial of Optuna as the text of an override; a number has six digits, to be pasted."""
        if self.choices:
            return str(trial.suggest_categorical(self.key, list(self.choices)))
        more = {"log": self.is_log} | ({} if self.step is None else {"step": self.step})
        if self.is_whole:
            return format_inline(trial.suggest_int(self.key, self.low, self.high, **more))
        return format_inline(float(f"{trial.suggest_float(self.key, self.low, self.high, **more):.6g}"))


def read_space(words: Sequence[str]) -> list[SearchDimension]:
    """Read the dimensions of YAML files and of KEY=VALUES texts, each key once.

    Raises ConfigError with all faults, each with file and line.
    """
    faults = ConfigFaults()
    located: dict[str, LocatedValue] = {}
    for key, value in itertools.chain.from_iterable(_read_word(word, faults) for word in words):
        if key in located:
            faults.add(value.where, f"'{key}' is given twice, first in {located[key].where.source}; keep one")
        located.setdefault(key, value)
    dimensions = [_parse_dimension(key, value, faults) for key, value in located.items()]
    faults.raise_any()
    if not dimensions:
        raise UserError("--space: names no key; give a YAML file or KEY=A,B, as optimizer.lr='{low: 1e-4, high: 1e-1}'")
    return [dimension for dimension in dimensions if dimension is not None]


def _read_word(word: str, faults: ConfigFaults) -> list[tuple[str, LocatedValue]]:
    key, equals, text = word.partition("=")
    if not key.strip():
        message = f"found {format_value(word)}, allowed is a YAML file or KEY=A,B, as optimizer.lr=0.1,0.2"
        faults.add(SourceLocation(f"{COMMAND_LINE}, --space"), message)
        return []
    if not equals or os.path.exists(word):
        tree = read_yaml(Path(word), faults)
        assert isinstance(tree.value, dict), "read_yaml returns a mapping"
        return list(tree.value.items())
    origin = f"{COMMAND_LINE}, --space"
    where = SourceLocation(origin, path=key.strip())
    if text.lstrip().startswith(("{", "[")):
        return [(key.strip(), read_value(text, origin, key.strip(), faults))]
    return [
        (key.strip(), LocatedValue([read_value(v, origin, key.strip(), faults) for v in split_values(text)], where))
    ]


def _parse_dimension(key: str, located: LocatedValue, faults: ConfigFaults) -> SearchDimension | None:
    """Parse the values of a key; None with a fault noted."""
    where = located.where
    if refusal := _REFUSED.get(key):
        faults.add(where, f"cannot be searched: {refusal}")
    elif isinstance(located.value, list):
        choices = tuple(format_inline(item.plain()) for item in located.value)
        if len(choices) == len(set(choices)) > 0:
            return SearchDimension(key, where, choices)
        faults.add(where, "lists a value twice; list each once" if choices else f"found [], allowed is {_ALLOWED}")
    elif isinstance(located.value, dict):
        return _parse_range(key, where, located.value, faults)
    else:
        faults.add(where, f"found {format_value(located.plain())}, allowed is {_ALLOWED}")
    return None


def _parse_range(
    key: str, where: SourceLocation, block: dict[str, LocatedValue], faults: ConfigFaults
) -> SearchDimension | None:
    """Parse a range by Optuna's rules; None with a fault noted."""
    import optuna

    for name, child in block.items():
        if name not in _RANGE_KEYS:
            dotted = f"; a key of the config is written with dots, {key}.{name}: [...]"
            faults.add(child.where, f"is not a key of a range{suggest(name, _RANGE_KEYS, otherwise=dotted)}")
    values: dict[str, Any] = {name: child.value for name, child in block.items()}
    if values.keys() - set(_RANGE_KEYS):
        return None
    for name in ("low", "high", *(["step"] if "step" in values else [])):
        if not isinstance(values.get(name), int | float) or isinstance(values[name], bool):
            description = f"found {format_value(values[name])}" if name in values else f"{name} is missing"
            faults.add(block[name].where if name in values else where, f"{description}, a number is needed")
            return None
    dimension = SearchDimension(
        key, where, (), values["low"], values["high"], values.get("log", False), values.get("step")
    )
    if not isinstance(dimension.is_log, bool):
        faults.add(block["log"].where, f"found {format_value(dimension.is_log)}, true or false is needed")
        return None
    if dimension.is_whole and not isinstance(dimension.step, int | None):
        faults.add(block["step"].where, f"found {dimension.step}, must be a whole number, as low and high are")
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a step that does not divide the range
            dimension.suggest(optuna.trial.FixedTrial({key: dimension.low}))
    except (ValueError, UserWarning) as error:
        faults.add(where, f"is no range: {str(error).partition(' It will be')[0]}")
        return None
    return dimension


def check_space(
    dimensions: Sequence[SearchDimension], overrides: Sequence[str], read: Callable[[Sequence[str]], object]
) -> None:
    """Try the bounds of every dimension on the config, which `read` reads under overrides.

    Raises ConfigError with all faults, at the file and line of the space.
    """
    stated = {override.partition("=")[0].strip(): override for override in overrides}
    faults: dict[str, None] = {}
    for dimension in dimensions:
        if dimension.key in stated:
            faults[f"{dimension.where}: is also given as the override {stated[dimension.key]}; keep one"] = None
            continue
        for text in dimension.list_bounds():
            try:
                read([*overrides, f"{dimension.key}={text}"])
            except ConfigError as error:
                faults |= dict.fromkeys(_relocate(fault, dimension) for fault in error.faults)
    if faults:
        raise ConfigError(*faults)


def _relocate(fault: str, dimension: SearchDimension) -> str:
    """Replace the command line by the space as the location of a fault."""
    at_key = f"{COMMAND_LINE}: {dimension.key}"
    if fault.startswith(at_key):
        return f"{dimension.where}{fault.removeprefix(at_key)}"
    return f"{dimension.where}: {fault.removeprefix(f'{COMMAND_LINE}: ')}"
