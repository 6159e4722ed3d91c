"""The machines of scikit-learn that probes use, imported when one is asked for."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from sightline.errors import assert_installed

__all__ = ["Folds", "logistic_regression", "require_sklearn", "standardise", "support_vector_machine"]

Folds = Annotated[int, Ge(2), Le(100)]
"""Parts of a cross-validation."""


def support_vector_machine(cost: float, *, kernel: Literal["linear", "precomputed"], max_iterations: int = -1) -> Any:
    """An unfitted SVC, one against one; -1 iterates to the end. Raises MissingExtraError without scikit-learn."""
    require_sklearn()
    from sklearn.svm import SVC

    return SVC(kernel=kernel, C=cost, max_iter=max_iterations)


def logistic_regression(cost: float, rows: np.ndarray, labels: np.ndarray, *, max_iterations: int) -> tuple[Any, bool]:
    """A multinomial logistic regression fitted to rows, and whether it converged."""
    require_sklearn()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        machine = LogisticRegression(C=cost, max_iter=max_iterations).fit(rows, labels)
    return machine, not any(issubclass(each.category, ConvergenceWarning) for each in caught)


def standardise(known: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """All of them with the zero mean and unit deviation of the columns of `known`; a column that never changes is 0.

    The deviation is that of the population, as scikit-learn's StandardScaler takes it.
    """
    require_sklearn()
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(known)
    return tuple(scaler.transform(rows) for rows in (known, *others))


def require_sklearn() -> None:
    """Raises MissingExtraError without scikit-learn."""
    assert_installed("sklearn", needed_by="probe")
