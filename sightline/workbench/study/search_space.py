"""Search space of a sweep: config keys with ranges or choices, each tried on the config before a run is trained."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.config.overrides import COMMAND_LINE, split_values
from sightline.config.run_config import format_inline
from sightline.config.yaml_tree import ConfigFaults, LocatedValue, read_value, read_yaml
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
MAX_POINTS = 10_000
"""Maximum number of points of a grid."""


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

    def list_points(self) -> list[str]:
        """List all values, for a grid. Raises ConfigError for a range that has no steps."""
        if self.choices:
            return list(self.choices)
        step = self.step or (1 if self.is_whole and not self.is_log else None)
        if step is None:
            raise ConfigError(f"{self.where}: a grid needs values; list them, or give the range a step and no log")
        num_points = int((self.high - self.low) / step + 1e-9) + 1
        if num_points > MAX_POINTS:
            raise ConfigError(f"{self.where}: has {num_points:,} values; a grid has at most {MAX_POINTS:,} points")
        points = [self.low + index * step for index in range(num_points)]
        return [format_inline(point) if self.is_whole else _format_float(point) for point in points]

    def suggest(self, trial: Any) -> str:
        """Return the value of a trial of Optuna as the text of an override."""
        if self.choices:
            return str(trial.suggest_categorical(self.key, list(self.choices)))
        if self.is_whole:
            step = 1 if self.step is None else int(self.step)
            return format_inline(trial.suggest_int(self.key, int(self.low), int(self.high), step=step, log=self.is_log))
        return _format_float(trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.is_log))


def _format_float(value: float) -> str:
    """Format a number with six digits, which a reader can paste; the trial gets the same."""
    return format_inline(float(f"{value:.6g}"))


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
        found = f"found {format_value(word)}, allowed is a YAML file or KEY=A,B, as optimizer.lr=0.1,0.2"
        faults.add(SourceLocation(f"{COMMAND_LINE}, --space"), found)
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
    for name, child in block.items():
        if name not in _RANGE_KEYS:
            dotted = f"; a key of the config is written with dots, {key}.{name}: [...]"
            faults.add(child.where, f"is not a key of a range{suggest(name, _RANGE_KEYS, otherwise=dotted)}")
    values = {name: child.value for name, child in block.items()}
    if values.keys() - set(_RANGE_KEYS):
        return None
    low, high, step, is_log = values.get("low"), values.get("high"), values.get("step"), values.get("log", False)

    def is_number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    rules: list[tuple[str, Callable[[], bool], str]] = [
        ("low", lambda: is_number(low), "a number is needed"),
        ("high", lambda: is_number(high), "a number is needed"),
        ("high", lambda: high > low, "must be above low"),  # type: ignore[operator]
        ("log", lambda: isinstance(is_log, bool), "true or false is needed"),
        ("low", lambda: not is_log or low > 0, "must be above 0 with log"),  # type: ignore[operator]
        ("step", lambda: step is None or (is_number(step) and step > 0), "a number above 0 is needed"),  # type: ignore[operator]
        ("step", lambda: step is None or not is_log, "cannot be given with log"),
        ("step", lambda: step is None or step <= high - low, "must be at most high less low"),  # type: ignore[operator]
        (
            "step",
            lambda: not (isinstance(low, int) and isinstance(high, int)) or step is None or isinstance(step, int),
            "must be a whole number, as low and high are",
        ),
    ]
    for name, holds, rule in rules:
        if not holds():
            if name in block:
                faults.add(block[name].where, f"found {format_value(values[name])}, {rule}")
            else:
                faults.add(where, f"{name} is missing; {rule}")
            return None
    return SearchDimension(key, where, (), low, high, bool(is_log), step)  # type: ignore[arg-type]


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


def list_grid(dimensions: Sequence[SearchDimension]) -> list[dict[str, str]]:
    """List all combinations of the values of the dimensions, by their keys. Raises ConfigError for too many."""
    columns = [dimension.list_points() for dimension in dimensions]
    num_points = 1
    for column in columns:
        num_points *= len(column)
    if num_points > MAX_POINTS:
        raise ConfigError(f"--space: has {num_points:,} combinations; a grid has at most {MAX_POINTS:,} points")
    keys = [dimension.key for dimension in dimensions]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*columns)]
