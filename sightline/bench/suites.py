"""Benchmark suites by name, and their cases by pattern."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from sightline.bench import (
    compression,
    contrast,
    crowds,
    data,
    dense_transformer,
    detection,
    geometry,
    growth,
    metrics,
    models,
    optimizers,
    recipes,
    scan_scores,
    train,
    transformers,
)
from sightline.bench.case import BenchmarkCase
from sightline.errors import UserError
from sightline.schema import suggest

__all__ = ["SUITES", "all_cases", "find_case", "select_cases"]


def _models() -> list[BenchmarkCase]:
    return [
        *models.cases(),
        *transformers.cases(),
        *dense_transformer.cases(),
        *contrast.cases(),
        *recipes.cases(),
    ]


def _metrics() -> list[BenchmarkCase]:
    return [*metrics.cases(), *scan_scores.cases(), *detection.metric_cases(), *crowds.cases()]


def _train() -> list[BenchmarkCase]:
    return [*train.cases(), *optimizers.cases(), *detection.train_cases()]


SUITES: dict[str, Callable[[], list[BenchmarkCase]]] = {
    "geometry": geometry.cases,
    "models": _models,
    "data": data.cases,
    "metrics": _metrics,
    "train": _train,
    "compress": compression.cases,
}


def all_cases() -> list[BenchmarkCase]:
    return [case for make in SUITES.values() for case in make()]


def find_case(name: str) -> BenchmarkCase:
    """Return the case of that name."""
    return next(case for case in [*all_cases(), *growth.all_cases()] if case.name == name)


def select_cases(suites: Sequence[str], pattern: str | None) -> list[BenchmarkCase]:
    """Select the cases of the named suites (of all for `all` or no name) whose name or last part matches.

    Raises UserError for an unknown suite, and if no case matches.
    """
    for name in suites:
        if name not in SUITES and name != "all":
            raise UserError(f"bench: there is no suite '{name}'{suggest(name, [*SUITES, 'all'])}")
    selected = list(SUITES) if not suites or "all" in suites else list(dict.fromkeys(suites))
    cases = [case for name in selected for case in SUITES[name]()]
    matching = [case for case in cases if pattern is None or _matches_pattern(case.name, pattern)]
    if not matching:
        raise UserError(f"bench: no case of {', '.join(selected)} fits --case {pattern}; --list shows their names")
    return matching


def _matches_pattern(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition("/")[2], pattern)
