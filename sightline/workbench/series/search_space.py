"""Search space of a sweep: config keys with ranges or choices, each tried on the config before a run is trained."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired

import optuna
from typing_extensions import TypedDict

from sightline.config import RunConfig
from sightline.config.overrides import COMMAND_LINE, split_values
from sightline.config.reader import check_located
from sightline.config.yaml_tree import ConfigFaults, LocatedValue, read_value, read_yaml
from sightline.config.yaml_writer import format_inline
from sightline.contract.errors import ConfigError, UserError
from sightline.contract.schema import format_value
from sightline.contract.types import SourceLocation

_ALLOWED = "a list of values, or a range {low: 1e-4, high: 1e-1, log: true}"
_REFUSED = {
    "seed": "a seed is not chosen by its figure; compare settings over seeds with 'sightline study'",
    "name": "the name of a run changes nothing that is measured",
    "evaluate.metric": "trials with other metrics cannot be compared",
    "evaluate.mode": "trials with other directions cannot be compared",
    "evaluate.select": "trials that are chosen by other parts cannot be compared",
}


class _Range(TypedDict):
    low: float
    high: float
    log: NotRequired[bool]
    step: NotRequired[float]


class SearchDimension(NamedTuple):
    """Key of a config to search, and what Optuna's `suggest_` of this kind takes: choices, as texts, or a range."""

    key: str
    where: SourceLocation
    kind: Literal["categorical", "int", "float"]
    arguments: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """Return the dimension as a space file states it."""
        return {**({} if self.kind == "categorical" else {"log": False, "step": None}), **self.arguments}

    def list_bounds(self) -> list[str]:
        """List the values to try on a config: all choices, or both ends of the range."""
        ends = (format_inline(self.arguments[end]) for end in ("low", "high") if end in self.arguments)
        return self.arguments.get("choices") or list(ends)

    def suggest(self, trial: Any) -> str:
        """Return the value of a trial of Optuna as the text of an override; a number has six digits, to be pasted."""
        value = getattr(trial, f"suggest_{self.kind}")(self.key, **self.arguments)
        return str(value) if self.kind != "float" else format_inline(float(f"{value:.6g}"))


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
    key, origin = key.strip(), f"{COMMAND_LINE}, --space"
    if not key:
        message = f"found {format_value(word)}, allowed is a YAML file or KEY=A,B, as optimizer.lr=0.1,0.2"
        faults.add(SourceLocation(origin), message)
        return []
    if not equals or os.path.exists(word):
        tree = read_yaml(Path(word), faults)
        assert isinstance(tree.value, dict), "read_yaml returns a mapping"
        return list(tree.value.items())
    if text.lstrip().startswith(("{", "[")):
        return [(key, read_value(text, origin, key, faults))]
    values = [read_value(value, origin, key, faults) for value in split_values(text)]
    return [(key, LocatedValue(values, SourceLocation(origin, path=key)))]


def _parse_dimension(key: str, located: LocatedValue, faults: ConfigFaults) -> SearchDimension | None:
    """Parse the values of a key; None with a fault noted."""
    where, value = located.where, located.value
    if refusal := _REFUSED.get(key):
        faults.add(where, f"cannot be searched: {refusal}")
    elif isinstance(value, list):
        choices = [format_inline(item.plain()) for item in value]
        if len(choices) == len(set(choices)) > 0:
            return SearchDimension(key, where, "categorical", {"choices": choices})
        faults.add(where, "lists a value twice; list each once" if choices else f"found [], allowed is {_ALLOWED}")
    elif not isinstance(value, dict):
        faults.add(where, f"found {format_value(located.plain())}, allowed is {_ALLOWED}")
    elif inner := [name for name, child in value.items() if isinstance(child.value, dict | list)]:
        faults.add(where, f"is no range; a key of the config is written with dots, {key}.{inner[0]}: [...]")
    elif check_located(_Range, located, faults) is not None:
        return _parse_range(key, located, faults)
    return None


def _parse_range(key: str, located: LocatedValue, faults: ConfigFaults) -> SearchDimension | None:
    """Parse a range by Optuna's rules; None with a fault noted."""
    block: Any = located.plain()
    is_whole = isinstance(block["low"], int) and isinstance(block["high"], int)
    dimension = SearchDimension(key, located.where, "int" if is_whole else "float", block)
    if is_whole and not isinstance(block.get("step", 1), int):
        faults.add(located.where, f"found a step of {block['step']}, must be a whole number, as low and high are")
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a step that does not divide the range
            dimension.suggest(optuna.trial.FixedTrial({key: block["low"]}))
    except (ValueError, UserWarning) as error:
        faults.add(located.where, f"is no range: {str(error).partition(' It will be')[0]}")
        return None
    return dimension


def check_space(
    space: Sequence[SearchDimension], overrides: Sequence[str], read: Callable[[Sequence[str]], RunConfig]
) -> dict[str, RunConfig]:
    """Try the bounds of every dimension on the config, which `read` reads under overrides; return those configs.

    Raises ConfigError with all faults, at the file and line of the space.
    """
    stated = {override.partition("=")[0].strip(): override for override in overrides}
    tried: dict[str, RunConfig] = {}
    faults: dict[str, None] = {}
    for dimension in space:
        if dimension.key in stated:
            faults[f"{dimension.where}: is also given as the override {stated[dimension.key]}; keep one"] = None
            continue
        for override in (f"{dimension.key}={text}" for text in dimension.list_bounds()):
            try:
                tried[override] = read([*overrides, override])
            except ConfigError as error:
                faults |= dict.fromkeys(_relocate(fault, dimension) for fault in error.faults)
    if faults:
        raise ConfigError(*faults)
    return tried


def _relocate(fault: str, dimension: SearchDimension) -> str:
    """Replace the command line by the space as the location of a fault."""
    text = fault.removeprefix(f"{COMMAND_LINE}: ")
    is_at_key = text.startswith(dimension.key)
    return f"{dimension.where}{text.removeprefix(dimension.key) if is_at_key else f': {text}'}"
