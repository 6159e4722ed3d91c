"""Planter of faults: components of one's own, and changes to the code of a run, all undone at the end of a case."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict
from unittest import mock

from torch import Tensor, nn

from sightline.contract.loss import Loss
from sightline.contract.registry import REGISTRIES, Registry
from sightline.engine.build import TrainingSetup

Edit = Callable[[TrainingSetup], TrainingSetup | None]
"""Change of a run that is built; None where it was changed in place."""


BENCHES = Path(__file__).parent / "benches"
"""Folder of the benches: configs of small healthy runs."""
OWN = "own"
"""Module of components and hooks that a user might have written."""


class Planter:
    """Context in which one fault is planted: by components, by overrides of the config, and by changed functions."""

    def __init__(self) -> None:
        self.overrides: list[str] = []
        self.edits: list[Edit] = []
        self._undo = ExitStack()
        self._patches: list[Any] = []
        self._folder: Path | None = None

    def __enter__(self) -> Planter:
        for registry in REGISTRIES.values():
            self._undo.callback(_keep_names, registry, set(registry.names()))
        return self

    def __exit__(self, *error: object) -> None:
        for patch in reversed(self._patches):
            patch.stop()
        self._undo.close()

    @property
    def folder(self) -> Path:
        """Folder for files that a plant writes; it is deleted at the end."""
        if self._folder is None:
            self._folder = Path(self._undo.enter_context(TemporaryDirectory()))
        return self._folder

    def override(self, *words: str) -> None:
        """Override values of the bench's config."""
        self.overrides += words

    def edit(self, change: Edit) -> None:
        """Change the run after it is built, as a script of one's own might."""
        self.edits.append(change)

    def wrap(self, owner: Any, name: str, change: Callable[..., Any]) -> None:
        """Replace a function of a class or module by `change`, which gets the original before the arguments."""
        original = getattr(owner, name)
        replacement: Any = functools.wraps(original)(functools.partial(change, original))
        if isinstance(owner, type):  # a partial would not be bound to the object
            replacement = functools.wraps(original)(lambda *args, **named: change(original, *args, **named))
            is_static = isinstance(inspect.getattr_static(owner, name), staticmethod)
            replacement = staticmethod(replacement) if is_static else replacement
        patch = mock.patch.object(owner, name, replacement)
        patch.start()
        self._patches.append(patch)

    def add(self, kind: str, component: Callable[..., Any], *overrides: str) -> None:
        """Register a component under the name `own`, and override the config so that it is used."""
        component.__module__ = OWN  # for the doctor it is a user's, not one of ours
        REGISTRIES[kind].add("own")(component)
        self.override(*overrides)

    def add_model(self, model: type[nn.Module]) -> None:
        """Train a network of one's own."""
        self.add("models", model, "model={name: own}")

    def add_loss(self, loss: type[Loss], *others: str) -> None:
        """Train with a loss of one's own, and with those of the config blocks `others`."""
        self.add("losses", loss, f"losses=[{', '.join(['{name: own}', *others])}]")

    def change(self, built: TrainingSetup) -> TrainingSetup:
        """Apply all edits to a run."""
        for edit in self.edits:
            built = edit(built) or built
        return built


def _keep_names(registry: Registry, names: set[str]) -> None:
    """Forget all other names of a registry."""
    registry._entries = {name: entry for name, entry in registry._entries.items() if name in names}


Plant = Callable[[Planter], None]


class LogitsOutput(TypedDict):
    """`logits` (B, num_classes) or (B, N, num_classes), before any softmax."""

    logits: Tensor


def override(*words: str) -> Plant:
    """Make a plant of overrides of the config."""
    return lambda planter: planter.override(*words)


def edit(change: Edit) -> Plant:
    """Make a plant that changes the run that was built."""
    return lambda planter: planter.edit(change)


def wrap(owner: Any, name: str, change: Callable[..., Any], *overrides: str) -> Plant:
    """Make a plant that changes a function, and overrides the config."""

    def plant(planter: Planter) -> None:
        planter.wrap(owner, name, change)
        planter.override(*overrides)

    return plant


def add_class_loss(function: Callable[[Tensor, Tensor], Tensor], *others: str) -> Plant:
    """Make a plant of a loss that one wrote oneself: `function` sums over logits (..., C) and labels (...)."""

    class OwnLoss(Loss):
        def count(self, *, label: Tensor) -> Tensor:
            return (label == label).sum()

        def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
            return function(logits.flatten(0, -2), label.flatten())

    return lambda planter: planter.add_loss(OwnLoss, *others)


def change_result(owner: Any, name: str, change: Callable[[Any], Any], *overrides: str) -> Plant:
    """Make a plant that changes what a function returns."""
    return wrap(owner, name, lambda own, *args, **named: change(own(*args, **named)), *overrides)


def change_arguments(
    owner: Any, name: str, change: Callable[[dict[str, Any]], dict[str, Any]], *overrides: str
) -> Plant:
    """Make a plant that changes some of the keyword arguments of a function."""
    return wrap(owner, name, lambda own, *args, **named: own(*args, **{**named, **change(named)}), *overrides)


def join(*plants: Plant) -> Plant:
    """Make a plant of several that are one fault together."""

    def plant(planter: Planter) -> None:
        for each in plants:
            each(planter)

    return plant
