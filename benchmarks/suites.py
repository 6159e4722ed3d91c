"""Suites of benchmark cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from benchmarks import (
    assignment,
    boxes,
    boxes3d,
    data,
    geometry,
    growth,
    image_networks,
    metrics,
    networks,
    rendering,
    scan_scores,
    segments,
    sweep_network,
    training,
    voxels,
)
from benchmarks.case import BenchmarkCase
from sightline.contract.errors import UserError
from sightline.contract.schema import suggest

SUITES: Mapping[str, Callable[[], list[BenchmarkCase]]] = {
    "geometry": lambda: [
        *geometry.cases(),
        *assignment.cases(),
        *boxes.cases(),
        *boxes3d.cases(),
        *segments.cases(),
        *voxels.cases(),
    ],
    "models": lambda: [*networks.cases(), *image_networks.cases(), *sweep_network.cases(), *training.recipe_cases()],
    "data": lambda: [*data.cases(), *rendering.cases()],
    "metrics": lambda: [*metrics.cases(), *scan_scores.cases()],
    "train": training.cases,
    "compress": data.compression_cases,
}


def list_cases() -> list[BenchmarkCase]:
    return [case for make in SUITES.values() for case in make()]


def find_case(name: str) -> BenchmarkCase:
    """Return the case of that name, also one of growth."""
    grown = [grown_case.case for grown_case in growth.growth_cases((), "all", is_quick=False)]
    return next(case for case in [*list_cases(), *grown] if case.name == name)


def select_cases(suites: Sequence[str], pattern: str | None) -> list[BenchmarkCase]:
    """Select the cases of the named suites (of all for `all` or no name) whose name or last part matches.

    Raises UserError for an unknown suite, and if no case matches.
    """
    for name in suites:
        if name not in (*SUITES, "all"):
            raise UserError(f"there is no suite '{name}'{suggest(name, [*SUITES, 'all'])}")
    selected = list(SUITES) if not suites or "all" in suites else list(dict.fromkeys(suites))
    cases = [case for name in selected for case in SUITES[name]()]
    matching = [
        case
        for case in cases
        if pattern is None or fnmatchcase(case.name, pattern) or fnmatchcase(case.name.partition("/")[2], pattern)
    ]
    if not matching:
        raise UserError(f"no case of {', '.join(selected)} fits --case {pattern}; --list shows their names")
    return matching
