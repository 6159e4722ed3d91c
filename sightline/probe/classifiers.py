"""Classifiers of scikit-learn for probes, imported on first use."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from sightline.errors import assert_installed

__all__ = ["Folds", "logistic_regression", "require_sklearn", "standardise", "support_vector_machine"]

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
