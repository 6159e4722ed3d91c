"""Library of all benchmark cases, by suite: those of the package, and those that a checkout adds."""

from __future__ import annotations

from functools import partial

from benchmarks import (
    assignment,
    box_ap,
    compression,
    contrast,
    crowds,
    data,
    geometry,
    growth,
    lidar,
    metrics,
    models,
    rooms,
    transformers,
    volumes,
)
from sightline.bench.case import BenchmarkCase, CaseLibrary, Growth
from sightline.bench.suites import LIBRARY as INSTALLED

_ADDED = {
    "geometry": (geometry, lidar, assignment),
    "models": (models, transformers, contrast),
    "data": (data, rooms, volumes),
    "metrics": (metrics, box_ap, crowds),
    "train": (),
    "compress": (compression,),
}


def _list_cases(suite: str) -> list[BenchmarkCase]:
    added = [case for module in _ADDED[suite] for case in module.cases()]
    return [*added, *INSTALLED.suites[suite]()]


LIBRARY = CaseLibrary(
    {suite: partial(_list_cases, suite) for suite in INSTALLED.suites},
    Growth(growth.growth_cases, growth.panels, growth.describe_growth),
)
