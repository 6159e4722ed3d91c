"""Library of the benchmark cases that both sides of a wheel can run, by suite."""

from __future__ import annotations

from sightline.bench import (
    boxes,
    dense_transformer,
    detection,
    networks,
    optimizers,
    recipes,
    rendering,
    scan_scores,
    train,
    volumes,
)
from sightline.bench.case import BenchmarkCase, CaseLibrary


def _models() -> list[BenchmarkCase]:
    return [*networks.cases(), *dense_transformer.cases(), *recipes.cases()]


def _data() -> list[BenchmarkCase]:
    return [*rendering.cases(), *volumes.cases()]


def _train() -> list[BenchmarkCase]:
    return [*train.cases(), *optimizers.cases(), *detection.train_cases()]


LIBRARY = CaseLibrary(
    {
        "geometry": boxes.cases,
        "models": _models,
        "data": _data,
        "metrics": scan_scores.cases,
        "train": _train,
        "compress": list,
    }
)
