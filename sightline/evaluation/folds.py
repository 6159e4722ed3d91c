"""Cross-validation folds: runs that each test one part of a data set, pooled to cover the whole set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sightline import registry
from sightline.config import RunConfig
from sightline.engine.build import DataSubset
from sightline.errors import UserError
from sightline.types import Folds

__all__ = ["assert_folds", "tested_folds"]


def tested_folds(part: DataSubset) -> tuple[str, ...]:
    """Return the folds in a test split; empty for a set without folds."""
    folds = part.dataset.info.folds
    return folds.tested if folds is not None else ()


def assert_folds(runs: Sequence[Path], configs: Sequence[RunConfig]) -> None:
    """Raise UserError unless the runs test every fold of one data set exactly once."""
    folds_by_run = [_read_folds(run, config) for run, config in zip(runs, configs, strict=True)]
    for run, config, folds in zip(runs, configs, folds_by_run, strict=True):
        if config.data.name != configs[0].data.name or folds.names != folds_by_run[0].names:
            raise UserError(
                f"{run}: is of data set '{config.data.name}' with {', '.join(folds.names)}, {runs[0]} of "
                f"'{configs[0].data.name}' with {', '.join(folds_by_run[0].names)}; only folds of one set are pooled"
            )
        if [metric.name for metric in config.metrics] != [metric.name for metric in configs[0].metrics]:
            raise UserError(f"{run}: has other metrics than {runs[0]}; pool runs of one recipe")
    times = Counter(name for folds in folds_by_run for name in folds.tested)
    for name, count in times.items():
        if count > 1:
            twice = ", ".join(str(run) for run, folds in zip(runs, folds_by_run, strict=True) if name in folds.tested)
            raise UserError(f"evaluate: {name} is tested by {twice}; its points would count {count} times, give one")
    missing = [name for name in folds_by_run[0].names if name not in times]
    if missing:
        raise UserError(
            f"evaluate: no run tests {', '.join(missing)}; the figures of {len(folds_by_run)} of "
            f"{len(folds_by_run[0].names)} folds are not those of the set; give a run for each"
        )


def _read_folds(run: Path, config: RunConfig) -> Folds:
    """Return the folds of a run's test split. Raises UserError for a set without folds."""
    dataset = registry.data.build(config.data, facts={"split": "test"})
    folds: Folds | None = dataset.info.folds
    if folds is None:
        raise UserError(
            f"{run}: data set '{config.data.name}' is not tested part by part, so that its runs cannot be pooled; "
            "evaluate them one by one"
        )
    return folds
