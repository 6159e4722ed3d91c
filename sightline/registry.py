"""Names to builders: one registry per kind of component, each checked against its signature."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from sightline.errors import ConfigError
from sightline.schema import Parameter, check_value, nearest, parameters_of
from sightline.types import Component

__all__ = [
    "FACTS",
    "REGISTRIES",
    "Entry",
    "Registry",
    "data",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "schedules",
    "tasks",
    "transforms",
]

FACTS = frozenset(
    "num_classes in_channels class_names class_counts ignore_index up_axis num_parts part_names parts_of_category "
    "num_categories num_joints image_size_px range_m device world split num_samples num_steps steps_per_epoch "
    "batch_keys output_keys losses model".split()
)
"""Arguments that the framework gives: facts of the data set and of the run. Giving one by hand is an error."""

MAX_ARGUMENTS = 10

Built = TypeVar("Built", bound=Callable[..., Any])


class Entry(NamedTuple):
    """A registered component: its builder and the arguments that builder takes."""

    name: str
    builder: Callable[..., Any]
    parameters: Mapping[str, Parameter]

    @property
    def source(self) -> str:
        """The last sentence of the docstring that starts with 'Source:', or its first line."""
        text = inspect.getdoc(self.builder) or ""
        _, found, source = text.partition("Source:")
        return " ".join(source.split()) if found else text.split("\n", 1)[0]

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.builder) or "").split("\n", 1)[0]


class Registry:
    """The components of one kind, found by importing the modules of their room on first use."""

    def __init__(self, kind: str, room: str) -> None:
        self.kind = kind
        self.room = room
        self._entries: dict[str, Entry] = {}
        self._is_loaded = False

    def add(self, name: str) -> Callable[[Built], Built]:
        """Register a class or function under `name`; its keyword-only arguments are what a config may give."""

        def register(builder: Built) -> Built:
            _assert_signature(builder, name)
            assert name not in self._entries or self._entries[name].builder.__module__ == builder.__module__, (
                f"{self.kind} '{name}' is registered by {self._entries[name].builder.__module__} already"
            )
            self._entries[name] = Entry(name, builder, parameters_of(builder))
            return builder

        return register

    def names(self) -> list[str]:
        self._load()
        return sorted(self._entries)

    def entry(self, component: Component) -> Entry:
        """The entry that a component block names. Raises ConfigError with the nearest name."""
        self._load()
        if component.name not in self._entries:
            raise ConfigError(
                f"{component.where}.name: no {self.kind} component is called '{component.name}'"
                f"{nearest(component.name, self._entries)}"
            )
        return self._entries[component.name]

    def entry_of(self, name: str) -> Entry:
        """The entry of a name from `names()`."""
        return self.entry(Component(name))

    def faults(self, component: Component) -> list[str]:
        """Everything wrong with a component block that its signature alone can tell, one line each."""
        try:
            entry = self.entry(component)
        except ConfigError as error:
            return list(error.faults)
        return [
            *_unknown_or_ill_typed(component, entry),
            *(
                f"{component.where}.{name}: '{component.name}' needs the argument '{name}'"
                for name, parameter in entry.parameters.items()
                if parameter.is_required and name not in component.arguments and name not in FACTS
            ),
        ]

    def build(self, component: Component, *, facts: Mapping[str, object]) -> Any:
        """Call the builder with the block's arguments and with the facts that its signature names.

        Raises ConfigError for an argument that is unknown, ill-typed, missing, or given both by hand and as a fact.
        """
        entry = self.entry(component)
        faults = self.faults(component)
        missing = [
            name
            for name, parameter in entry.parameters.items()
            if parameter.is_required and name in FACTS and name not in facts
        ]
        if missing:
            faults.append(
                f"{component.where}: '{component.name}' needs the facts {', '.join(missing)}; the data set offers "
                f"{', '.join(sorted(facts)) or 'none'}"
            )
        if faults:
            raise ConfigError(*faults)
        given = {
            name: check_value(entry.parameters[name].annotation, value)[0]
            for name, value in component.arguments.items()
        }
        injected = {name: facts[name] for name in entry.parameters if name in FACTS and name in facts}
        return entry.builder(**given, **injected)

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        package = importlib.import_module(self.room)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            importlib.import_module(f"{self.room}.{module.name}")


def _unknown_or_ill_typed(component: Component, entry: Entry) -> list[str]:
    faults = []
    for name, value in component.arguments.items():
        where = component.origins.get(name, component.where)
        place = where if name in component.origins else f"{where}.{name}"
        if name in FACTS:
            faults.append(f"{place}: is given by the data set or the run; remove it here")
        elif name not in entry.parameters:
            takes = [known for known in entry.parameters if known not in FACTS]
            faults.append(f"{place}: '{component.name}' has no such argument{nearest(name, takes)}")
        else:
            _, fault = check_value(entry.parameters[name].annotation, value)
            if fault:
                faults.append(f"{place}: {fault}")
    return faults


def _assert_signature(builder: Callable[..., Any], name: str) -> None:
    parameters = inspect.signature(builder).parameters.values()
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters), (
        f"'{name}': every argument must be keyword-only and named (no *args, no **kwargs)"
    )
    assert len(parameters) <= MAX_ARGUMENTS, f"'{name}': {len(parameters)} arguments, at most {MAX_ARGUMENTS}"
    assert all(p.annotation is not inspect.Parameter.empty for p in parameters), f"'{name}': annotate every argument"


data = Registry("data", "sightline.data")
models = Registry("models", "sightline.models")
tasks = Registry("tasks", "sightline.tasks")
losses = Registry("losses", "sightline.losses")
metrics = Registry("metrics", "sightline.metrics")
transforms = Registry("transforms", "sightline.transforms")
optimizers = Registry("optimizers", "sightline.engine.optimizers")
schedules = Registry("schedules", "sightline.engine.schedules")

REGISTRIES: dict[str, Registry] = {
    registry.kind: registry
    for registry in (models, data, losses, metrics, transforms, optimizers, schedules, tasks)
}
