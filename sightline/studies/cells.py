"""Cells of a study: training runs with a folder each, of which those that are finished are not repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.runs.run_documents import load_document
from sightline.studies import launching
from sightline.studies.fine_tuning import assert_same_source
from sightline.studies.launching import TrainRequest
from sightline.studies.train_run import Reporter

__all__ = ["Cell", "CellSetup", "UnfinishedError", "metrics_of"]


@dataclass(frozen=True)
class CellSetup:
    """What all cells of a study have in common."""

    config: Path
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    processes: int | None = None


@dataclass(frozen=True)
class Cell:
    """One run of a study: its folder, the overrides of its config, and the weights that it starts from, if any."""

    path: Path
    overrides: tuple[str, ...]
    source: str | Path | None = None


class UnfinishedError(Exception):
    """A cell was not trained to its end; `code` is the exit code of its run."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a run ended with exit code {code}")
        self.code = code


def metrics_of(cell: Cell, setup: CellSetup, reporter: Reporter, *, heading: str) -> Mapping[str, Any]:
    """The final metrics of a cell, which is trained, resumed or, where it is finished, only read.

    `heading` is reported before. Raises UserError where the cell was begun from weights that its source no longer
    holds, UnfinishedError where training ends early.
    """
    if cell.source is not None:
        assert_same_source(cell.path, cell.source)
    reporter.note(heading)
    request = TrainRequest(
        config=setup.config,
        overrides=cell.overrides,
        out=cell.path,
        processes=setup.processes,
        resume="auto",
        plugins=setup.plugins,
        device=setup.device,
    )
    if code := launching.train(request, reporter):
        raise UnfinishedError(code)
    metrics: Mapping[str, Any] = load_document(cell.path / "final.json")["metrics"]
    return metrics
