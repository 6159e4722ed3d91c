"""Library of the benchmark cases, by suite."""

from __future__ import annotations

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
from sightline.bench.case import BenchmarkCase, CaseLibrary, Growth


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


LIBRARY = CaseLibrary(
    {
        "geometry": geometry.cases,
        "models": _models,
        "data": data.cases,
        "metrics": _metrics,
        "train": _train,
        "compress": compression.cases,
    },
    Growth(growth.growth_cases, growth.panels, growth.describe_growth),
)
