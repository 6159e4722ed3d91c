"""Settings of one config that contradict one another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sightline.config.expectations import find_fault
from sightline.config.faults import ConfigFaults
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig, SourceLocation

MAX_NAME_BYTES = 200
_STEPS_PER_EPOCH = 10**6
"""Steps per epoch to try out a schedule, as the real number is unknown: large, so that rounding does not matter."""


def check_consistency(values: Mapping[str, Any], origins: Mapping[str, SourceLocation], faults: ConfigFaults) -> None:
    """Note contradictions between settings that are valid one by one; invalid ones are None or absent."""

    def add(path: str, text: str) -> None:
        faults.add(origins.get(path, SourceLocation("default", path=path)), text)

    train, evaluate, transforms = (values.get(section) for section in ("train", "evaluate", "transforms"))
    if train is not None and train.batch_size != "auto" and _exceeds(train.micro_batches, train.batch_size):
        actual = f"{train.micro_batches} micro-batches of a batch of {train.batch_size} samples"
        add("train.micro_batches", f"found {actual}, allowed is at most one per sample")
    if evaluate is not None and transforms is not None and _exceeds(evaluate.votes, 1) and transforms.vote == ():
        actual = f"{evaluate.votes} votes, but no transforms.vote"
        add("evaluate.votes", f"found {actual}: passes over the same input are equal; name a transform that varies it")
    if evaluate is not None and evaluate.tile is not None and _exceeds(evaluate.votes, 1):
        add("evaluate.tile", f"found {evaluate.tile} beside {evaluate.votes} votes: set evaluate.votes=1, or tile=null")
    for kind in ("losses", "metrics"):
        _check_names(kind, values.get(kind), origins, faults)
    name = values.get("name")
    if name is not None and not _is_folder_name(name):
        add("name", f"found {name!r}, allowed is what can name a folder: no '/' or '\\', no dot first")
    for index, expectation in enumerate(values.get("expect") or ()):
        if fault := find_fault(expectation):
            where = dataclasses.replace(origins.get("expect", SourceLocation("default")), path=f"expect.{index}")
            faults.add(where, fault)
    for component in _list_components(values):
        _try_build(component, train, faults)


def _exceeds(number: int | None, bound: int | None) -> bool:
    return number is not None and bound is not None and number > bound


def _check_names(
    kind: str,
    components: tuple[ComponentConfig, ...] | None,
    origins: Mapping[str, SourceLocation],
    faults: ConfigFaults,
) -> None:
    if components == () and kind in origins:
        faults.add(origins[kind], "found an empty list, allowed is at least one")
    first: dict[str, ComponentConfig] = {}
    for component in components or ():
        if component.name in first:
            where = first[component.name].location
            first_location = where.path if where.line is None else f"{where.path} (line {where.line})"
            faults.add(component.location, f"'{component.name}' is named twice, first as {first_location}; remove one")
        first.setdefault(component.name, component)


def _is_folder_name(name: str) -> bool:
    is_plain = name.isprintable() and not set("/\\") & set(name) and name == name.strip()
    return bool(name) and is_plain and not name.startswith(".") and len(name.encode()) <= MAX_NAME_BYTES


def _list_components(values: Mapping[str, Any]) -> list[tuple[registry.Registry, ComponentConfig]]:
    """List the blocks that can be built from the config alone, without data and model."""
    transforms = values.get("transforms")
    parts = () if transforms is None else (transforms.train, transforms.evaluate, transforms.vote)
    blocks = [(registry.transforms, component) for part in parts for component in part or ()]
    blocks.append((registry.optimizers, values.get("optimizer")))
    blocks.append((registry.schedules, values.get("schedule")))
    return [(kind, component) for kind, component in blocks if component is not None]


def _try_build(block: tuple[registry.Registry, ComponentConfig], train: Any, faults: ConfigFaults) -> None:
    """Build a block whose facts the config states, to report what its builder refuses before data is read."""
    kind, component = block
    facts: dict[str, int] = {}
    if train is not None and train.epochs is not None:
        facts = {"num_steps": train.epochs * _STEPS_PER_EPOCH, "steps_per_epoch": _STEPS_PER_EPOCH}
    bound = kind.bind(component)
    if bound.needed_facts - facts.keys():
        return
    try:
        bound.build(facts=facts)
    except ConfigError as error:
        for text in error.faults:
            _add_located_fault(text, component, faults)


def _add_located_fault(text: str, component: ComponentConfig, faults: ConfigFaults) -> None:
    """Note a message that begins with its location."""
    locations = [*component.origins.values(), component.location]
    where = next((location for location in locations if text.startswith(f"{location}: ")), component.location)
    faults.add(where, text.removeprefix(f"{where}: "))
