"""States that a training has saved: mappings that a program has read, and files that its variables name."""

from __future__ import annotations

import gc
import io
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from sightline.doctor.attempts import MissingError, attempt, observe
from sightline.doctor.objects import read_variables
from sightline.doctor.program_code import is_of_program

_ENDINGS = frozenset((".pt", ".pth", ".ckpt", ".tar", ".bin"))
_MAX_FILES, _MAX_VARIABLES, _MAX_ITEMS, _NUM_COMPARED, _MAX_NAME, _MAX_LISTED = 8, 2000, 64, 64, 512, 1024
_GROUP_KEYS_OF_RUNS = frozenset(("params", "param_names", "lr", "initial_lr", "max_lr", "min_lr", "momentum", "betas"))
"""Entries of a group that schedules change, or that are no settings."""


@dataclass
class Saved:
    """What a training has saved together, each part by its path: weights, states of optimizers, steps of schedules."""

    source: str
    weights: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    optimizers: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    schedules: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, source: str, tree: Any) -> Saved | None:
        """Find the parts of a mapping; None where it has not both weights and the state of an optimizer."""
        saved = cls(source)
        saved._add(tree, "", depth=3)
        return saved if saved.weights and saved.optimizers else None

    def _add(self, tree: Any, path: str, *, depth: int) -> None:
        if isinstance(tree, Mapping) and is_optimizer_state(tree):
            self.optimizers[path] = tree
        elif isinstance(tree, Mapping) and type(tree.get("last_epoch")) is int:
            self.schedules[path] = tree["last_epoch"]
        elif isinstance(tree, Mapping) and tree and all(isinstance(value, Tensor) for value in tree.values()):
            self.weights[path] = tree
        elif isinstance(tree, Mapping | list | tuple) and depth and len(tree) <= _MAX_ITEMS:
            items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
            for name, value in items:
                self._add(value, f"{path}.{name}".lstrip("."), depth=depth - 1)

    def find_weights(self, model: nn.Module) -> str | None:
        """Return the path of the weights that a model has, in memory of its own; None where it has others."""
        return next((path for path, weights in self.weights.items() if _has_weights(model, weights)), None)


def is_optimizer_state(tree: Mapping[Any, Any]) -> bool:
    """Return True for what `state_dict` of an optimizer returns: it numbers its parameters."""
    if "param_groups" not in tree or "state" not in tree:
        return False
    state, groups = tree["state"], tree["param_groups"]
    return isinstance(state, dict) and isinstance(groups, list) and all(isinstance(key, int | str) for key in state)


def _has_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Compare a few numbers of each parameter with those of its name; wrappers put a prefix before all names."""
    own = {name: p.detach() for name, p in model.named_parameters() if p.layout is torch.strided and p.numel()}
    first = next(iter(own), None)
    ends = [key for key in weights if key == first or key.endswith(f".{first}")]
    return any(_are_equal(own, weights, key.removesuffix(str(first))) for key in ends[:_MAX_FILES])


def _are_equal(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], prefix: str) -> bool:
    others = {name: weights.get(f"{prefix}{name}") for name in own}
    return all(other is not None and _is_equal(own[name], other) for name, other in others.items())


def _is_equal(own: Tensor, other: Tensor) -> bool:
    if own.shape != other.shape or own.dtype != other.dtype or other.layout is not torch.strided:
        return False
    if own.device == other.device and own.data_ptr() == other.data_ptr():
        return False
    few = own.flatten()[:_NUM_COMPARED]
    return torch.equal(few, other.detach().flatten()[:_NUM_COMPARED].to(few.device))


def has_settings(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> bool:
    """Return True for an optimizer of the groups and settings of a saved one: the rate at the start, or the last."""
    groups, others = optimizer.param_groups, state["param_groups"]
    return len(groups) == len(others) and all(map(_is_alike, groups, others))


def _is_alike(group: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if len(group["params"]) != len(other.get("params", ())):
        return False
    rate = float(group.get("initial_lr", group.get("lr", 0.0)))
    rates = [float(other[key]) for key in ("initial_lr", "lr") if key in other]
    common = (group.keys() & other.keys()) - _GROUP_KEYS_OF_RUNS
    return any(math.isclose(rate, each) for each in rates) and all(group[key] == other[key] for key in common)


def find_saved(model: nn.Module, frame: FrameType | None) -> tuple[Saved, str] | None:
    """Find what a model's weights were loaded from, with its path there: in memory, or in files that variables name.

    `frame` is the innermost of the calls whose variables are read. Files are read as torch reads weights alone.
    """
    for saved in _iter_saved(frame):
        path = saved.find_weights(model)
        if path is not None:
            return saved, path
    return None


def _iter_saved(frame: FrameType | None) -> Iterator[Saved]:
    for tree in _find_in_memory():
        if (saved := Saved.read("what the program has loaded", tree)) is not None:
            yield saved
    for name, file in _list_files(frame):
        tree = attempt("a file of weights", _load, {"file": file})
        if not isinstance(tree, MissingError) and (saved := Saved.read(name, tree)) is not None:
            yield saved


def _load(file: Path | io.BytesIO) -> Any:
    """Read a file without running what is in it; numbers of one on a disk are read as they are compared."""
    return torch.load(file, map_location="cpu", weights_only=True, mmap=isinstance(file, Path) or None)


def _find_in_memory() -> list[dict[str, Any]]:
    """List the mappings that hold the state of an optimizer, itself or in a list, among other parts."""
    states = [value for value in gc.get_objects() if type(value) is dict and "param_groups" in value]
    states = [state for state in states if is_optimizer_state(state) and state["state"]]
    if not states:
        return []
    holders = [each for each in gc.get_referrers(*states) if each is not states]
    lists = [each for each in holders if isinstance(each, list) and len(each) <= _MAX_ITEMS]
    holders += gc.get_referrers(*lists) if lists else []
    return [each for each in holders if isinstance(each, dict) and 1 < len(each) <= _MAX_ITEMS]


def _list_files(frame: FrameType | None) -> list[tuple[str, Path | io.BytesIO]]:
    """List the files of weights that variables name or hold, or that lie in folders that they name, the newest first.

    What is in memory is copied.
    """
    paths, held = set[Path](), dict[int, io.BytesIO]()
    for value in _iter_files(frame):
        if isinstance(value, io.BytesIO):
            held[id(value)] = value
        elif (path := Path(value)).suffix in _ENDINGS:
            paths.add(path)
        elif isinstance(listed := observe("a folder", _list_folder, path), list):
            paths.update(listed)
    files = [path for path in paths if observe("exists", path.is_file) is True]
    files = sorted(files, key=lambda path: -path.stat().st_mtime)[:_MAX_FILES]
    copies = [io.BytesIO(each.getvalue()) for each in [*held.values()][:_MAX_FILES] if not each.closed]
    return [*(("a file in memory", each) for each in copies), *((path.name, path) for path in files)]


def _list_folder(path: Path) -> list[Path]:
    """List the files of weights among the first entries of a folder; none of what is no folder."""
    found = itertools.islice(path.iterdir(), _MAX_LISTED) if path.is_dir() else ()
    return [each for each in found if each.suffix in _ENDINGS]


def _iter_files(frame: FrameType | None) -> Iterator[Any]:
    """Yield the texts, paths and files in variables of the program's calls, and one level inside of containers."""
    scopes: dict[int, Mapping[str, Any]] = {}
    while frame is not None:
        if is_of_program(frame.f_code.co_filename):
            scopes |= {id(frame): read_variables(frame), id(frame.f_globals): frame.f_globals}
        frame = frame.f_back
    for scope in scopes.values():
        for value in [*scope.values()][:_MAX_VARIABLES]:
            yield from (each for each in (value, *_list_members(value)) if _is_file(each))


def _is_file(value: Any) -> bool:
    if isinstance(value, str):
        return 1 < len(value) < _MAX_NAME and "\n" not in value
    return isinstance(value, Path | io.BytesIO)


def _list_members(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return [*value.values()][:_MAX_ITEMS]
    if isinstance(value, list | tuple):
        return value[:_MAX_ITEMS]
    if isinstance(value, nn.Module | Tensor | type | type(sys)) or callable(value):
        return ()
    return [*getattr(value, "__dict__", {}).values()][:_MAX_ITEMS]
