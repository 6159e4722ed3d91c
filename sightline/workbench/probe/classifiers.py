"""Classifiers that probe features: their outcomes, folds and choice.

Interface and outcome of probes: metrics, tables for the terminal, and plain values.

Parsing of a probe's arguments and config overrides on the command line.

Classifiers of scikit-learn for probes, imported on first use.

Seeded, stratified folds of the training split, for choices without the test split.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from annotated_types import Ge, Le

from sightline.config.reader import parse_component
from sightline.contract import registry
from sightline.contract.draws import Draws
from sightline.contract.errors import DataError, UserError, assert_installed
from sightline.contract.types import SampleKey
from sightline.workbench.probe.features import Features


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
    """Outcome of a probe: `metrics` by name, `chance` for metrics with their own chance level, and the protocol.

    `warnings` are notes for readers of the metrics, `details` everything else as plain values.
    """

    metrics: Mapping[str, float]
    chance: Mapping[str, float]
    tables: tuple[Table, ...] = ()
    protocol: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Probe(Protocol):
    """Probe: trained on training features and scored on test features; deterministic to the bit.

    `most_rows` is the maximum number of training features, None for no limit.
    """

    most_rows: ClassVar[int | None]

    def __call__(self, train: Features, test: Features) -> Outcome: ...


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
            raise UserError(f"probe: found {word!r}, allowed is key=value of the method, or {', '.join(_CONFIG_KEYS)}")
    return overrides, [word for word in words if word not in overrides]


def build_probe(method: str, words: Sequence[str]) -> Probe:
    """Build the probe of this name with these arguments. Raises ConfigError listing all errors at once."""
    built: Probe = registry.probes.build(parse_component(registry.probes, method, words), facts={})
    return built


Folds = Annotated[int, Ge(2), Le(100)]
"""Number of folds of a cross-validation."""


def support_vector_machine(cost: float, *, kernel: Literal["linear", "precomputed"], max_iterations: int = -1) -> Any:
    """Make an unfitted SVC (one against one); -1 means no limit. Raises MissingExtraError without scikit-learn."""
    require_sklearn()
    from sklearn.svm import SVC

    return SVC(kernel=kernel, C=cost, max_iter=max_iterations)


def logistic_regression(cost: float, rows: np.ndarray, labels: np.ndarray, *, max_iterations: int) -> tuple[Any, bool]:
    """Fit a multinomial logistic regression to rows (N, D), labels (N,); return it and whether it converged."""
    require_sklearn()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        machine = LogisticRegression(C=cost, max_iter=max_iterations).fit(rows, labels)
    return machine, not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def standardise(known: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Standardise all arrays by the column means and deviations of `known` (N, D); constant columns become 0.

    The deviation is that of the population, as in scikit-learn's StandardScaler.
    """
    require_sklearn()
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(known)
    return tuple(scaler.transform(rows) for rows in (known, *others))


def require_sklearn() -> None:
    """Raise MissingExtraError without scikit-learn."""
    assert_installed("sklearn", needed_by="probe")


def stratified_folds(labels: np.ndarray, *, num_folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split into stratified folds: sorted indices (training, held out) per fold; every sample is held out once.

    The sizes of folds, and of each class in them, differ by at most one. Raises UnprobableError if the training part of
    a fold has fewer than two classes.
    """
    order = Draws.for_samples([SampleKey(0, 0, seed)]).stream("folds").permutation(len(labels))[0].numpy()
    dealt = order[np.argsort(labels[order], kind="stable")]  # sorted by class, shuffled within each
    fold_of = np.empty(len(labels), dtype=np.int64)
    fold_of[dealt] = np.arange(len(labels)) % num_folds
    folds = [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(num_folds)]
    for remaining, held_out in folds:
        if len(np.unique(labels[remaining])) < 2 or not len(held_out):
            raise UnprobableError(
                f"probe: {len(labels)} training samples of {len(np.unique(labels))} classes leave no two classes to "
                f"learn in each of {num_folds} folds; probe on more data, or give folds=2"
            )
    return folds


def chance_accuracy(train_labels: np.ndarray, test_labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """Compute the accuracy of uniform guessing, and of always predicting the largest training class."""
    largest_class = np.bincount(train_labels).argmax()
    return {"uniform_guess": 1.0 / num_classes, "largest_class": float((test_labels == largest_class).mean())}
