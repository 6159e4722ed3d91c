"""Interface of probes: what they take and return, their arguments on the command line, and the accuracy of guessing."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeVar

import numpy as np

from sightline.config.reader import parse_component
from sightline.contract import registry
from sightline.contract.errors import DataError, UserError, assert_installed
from sightline.workbench.probe.features import Features

Result = TypeVar("Result")


class UnprobableError(DataError):
    """Raised for data that cannot be probed: no classes, no test split, or too few or too many samples."""


@dataclass(frozen=True)
class Table:
    """Table with columns and rows; accuracies are fractions in [0, 1]."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Outcome:
    """Outcome of a probe: `metrics` by name, `chance` for metrics with their own chance level, table and protocol.

    `warnings` are notes for readers of the metrics.
    """

    metrics: Mapping[str, float]
    chance: Mapping[str, float]
    table: Table
    protocol: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Probe(ABC):
    """Probe: trained on training features and scored on test features; deterministic to the bit."""

    most_rows: ClassVar[int | None]
    """The maximum number of training features, None for no limit."""

    @abstractmethod
    def __call__(self, train: Features, test: Features) -> Outcome:
        """Return the figures of the test features."""


def assert_fits(probe: Probe, num_samples: int) -> None:
    """Raise UnprobableError if the training split is too large for a probe, before features are computed."""
    if probe.most_rows is not None and num_samples > probe.most_rows:
        raise UnprobableError(
            f"probe: the training part has {num_samples} samples, {type(probe).__name__} takes {probe.most_rows} at "
            "most; give data.fraction=SHARE if the data set has it, or another method"
        )


_CONFIG_KEYS = ("model.*", "data.*", "transforms.evaluate*", "evaluate.batch_size", "loader.*")
"""Config keys that may be overridden; keys with a dot belong to the configs, all others to the probe."""


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split into overrides of configs and arguments of the probe. Raises UserError for a key of neither."""
    overrides = [word for word in words if "." in word.partition("=")[0]]
    for word in overrides:
        key = word.partition("=")[0].strip()
        if not any(fnmatchcase(key, pattern) for pattern in _CONFIG_KEYS):
            raise UserError(f"--probe: found {word!r}, allowed is key=value of a method, or {', '.join(_CONFIG_KEYS)}")
    return overrides, [word for word in words if word not in overrides]


def build_probes(names: Sequence[str], words: Sequence[str]) -> dict[str, Probe]:
    """Build the probes of these names; each of several gets the arguments that it has.

    Raises UserError for a name given twice or an argument that none of them has, ConfigError for a wrong value.
    """
    if len(set(names)) < len(names):
        raise UserError(f"--probe {','.join(names)}: a method is given twice")
    kinds = [parse_component(registry.probes, name, (), option="--probe") for name in names]
    accepted = [registry.probes.entry(kind).arguments for kind in kinds]
    keys = [word.partition("=")[0].strip() for word in words]
    for word, key in zip(words, keys, strict=True):
        if not any(key in arguments for arguments in accepted) and len(names) > 1:
            raise UserError(f"--probe: found {word!r}; none of {', '.join(names)} has such an argument")
    built = {}
    for name, arguments in zip(names, accepted, strict=True):
        probe_words = [word for word, key in zip(words, keys, strict=True) if len(names) == 1 or key in arguments]
        built[name] = registry.probes.build(
            parse_component(registry.probes, name, probe_words, option="--probe"), facts={}
        )
    return built


def require_sklearn() -> None:
    """Raise MissingExtraError without scikit-learn."""
    assert_installed("sklearn", needed_by="probe")


def start(call: Callable[[], Result]) -> Future[Result]:
    """Start a call in a daemon thread, whose result a signal can stop to wait for, also as the process ends."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised by future.result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def chance_accuracy(train_labels: np.ndarray, test_labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """Compute the accuracy of uniform guessing, and of always predicting the largest training class."""
    largest_class = np.bincount(train_labels).argmax()
    return {"uniform_guess": 1.0 / num_classes, "largest_class": float((test_labels == largest_class).mean())}
