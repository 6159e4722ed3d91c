"""Settings of one config that contradict one another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sightline import registry
from sightline.config.expectations import check_expectation
from sightline.config.faults import ConfigFaults
from sightline.errors import ConfigError
from sightline.types import ComponentConfig, SourceLocation

__all__ = ["check_consistency"]

MAX_NAME_BYTES = 200
_STEPS_PER_EPOCH = 10**6
"""Replaces the unknown length of an epoch where a schedule is tried out: so long that rounding does not matter."""


def check_consistency(values: Mapping[str, Any], origins: Mapping[str, SourceLocation], faults: ConfigFaults) -> None:
    """Note what is wrong with settings that each are right; those with faults of their own are None or absent."""

    def add(path: str, text: str) -> None:
        faults.add(origins.get(path, SourceLocation("default", path=path)), text)

    train, evaluate, transforms = (values.get(section) for section in ("train", "evaluate", "transforms"))
    if train is not None and _exceeds(train.micro_batches, train.batch_size):
        found = f"{train.micro_batches} micro-batches of a batch of {train.batch_size} samples"
        add("train.micro_batches", f"found {found}, allowed is at most one per sample")
    if evaluate is not None and transforms is not None and _exceeds(evaluate.votes, 1) and transforms.vote == ():
        found = f"{evaluate.votes} votes, but no transforms.vote"
        add("evaluate.votes", f"found {found}: passes over the same input are one vote; name one that varies it")
    for kind in ("losses", "metrics"):
        _note_names(kind, values.get(kind), origins, faults)
    name = values.get("name")
    if name is not None and not _names_a_folder(name):
        add("name", f"found {name!r}, allowed is what can name a folder: no '/' or '\\', no dot first")
    for place, expectation in enumerate(values.get("expect") or ()):
        if fault := check_expectation(expectation):
            where = dataclasses.replace(origins.get("expect", SourceLocation("default")), path=f"expect.{place}")
            faults.add(where, fault)
    for component in _components(values):
        _try_out(component, train, faults)


def _exceeds(number: int | None, bound: int | None) -> bool:
    return number is not None and bound is not None and number > bound


def _note_names(
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
            place = where.path if where.line is None else f"{where.path} (line {where.line})"
            faults.add(component.location, f"'{component.name}' is named twice, first as {place}; remove one")
        first.setdefault(component.name, component)


def _names_a_folder(name: str) -> bool:
    is_plain = name.isprintable() and not set("/\\") & set(name) and name == name.strip()
    return bool(name) and is_plain and not name.startswith(".") and len(name.encode()) <= MAX_NAME_BYTES


def _components(values: Mapping[str, Any]) -> list[tuple[registry.Registry, ComponentConfig]]:
    """The blocks that can be built from the config alone: they see neither the data nor the model."""
    transforms = values.get("transforms")
    parts = () if transforms is None else (transforms.train, transforms.evaluate, transforms.vote)
    found = [(registry.transforms, component) for part in parts for component in part or ()]
    found.append((registry.optimizers, values.get("optimizer")))
    found.append((registry.schedules, values.get("schedule")))
    return [(kind, component) for kind, component in found if component is not None]


def _try_out(block: tuple[registry.Registry, ComponentConfig], train: Any, faults: ConfigFaults) -> None:
    """Build a block whose facts the config states, so that what its builder refuses is known before data is read."""
    kind, component = block
    facts: dict[str, int] = {}
    if train is not None and train.epochs is not None:
        facts = {"num_steps": train.epochs * _STEPS_PER_EPOCH, "steps_per_epoch": _STEPS_PER_EPOCH}
    if kind.needed_facts(component) - facts.keys():
        return
    try:
        kind.build(component, facts=facts)
    except ConfigError as error:
        for text in error.faults:
            _add_placed(text, component, faults)


def _add_placed(text: str, component: ComponentConfig, faults: ConfigFaults) -> None:
    """Note a message that begins with its own place."""
    places = [*component.origins.values(), component.location]
    where = next((place for place in places if text.startswith(f"{place}: ")), component.location)
    faults.add(where, text.removeprefix(f"{where}: "))
