"""Cells of a study: training runs with a folder each, of which those that are finished are not repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import RunError
from sightline.runs.run_documents import load_document
from sightline.studies.fine_tuning import assert_same_source
from sightline.training import launch_run
from sightline.training.launch_run import TrainRequest
from sightline.training.train_run import Reporter

__all__ = ["StudyRun", "StudySettings", "UnfinishedError", "run_cells", "train_or_read_metrics"]


_SIGNALS = 128
"""Exit codes above are of runs that a signal stopped."""


@dataclass(frozen=True)
class StudySettings:
    """What all cells of a study have in common."""

    config: Path
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    processes: int | None = None


@dataclass(frozen=True)
class StudyRun:
    """One run of a study: its folder, the overrides of its config, and the weights that it starts from, if any."""

    path: Path
    overrides: tuple[str, ...]
    source: str | Path | None = None


class UnfinishedError(Exception):
    """A cell was not trained to its end; `code` is the exit code of its run."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a run ended with exit code {code}")
        self.code = code


def run_cells(
    cells: Sequence[tuple[StudyRun, StudySettings, str]],
    reporter: Reporter,
    finished: Callable[[int, Mapping[str, Any]], None],
    *,
    keeps_going: bool = False,
) -> int:
    """Run every cell that is not done, in order; `finished(place, metrics)` is called after each.

    Each cell comes with its setup and what it is, in words. The exit code of the run that did not come to its end, or
    0. With `keeps_going` a cell whose training fails or is kept from starting is reported and left out, and the code
    is 1; a signal ends the study all the same.
    """
    failed: list[Path] = []
    for place, (cell, setup, words) in enumerate(cells):
        try:
            metrics = train_or_read_metrics(cell, setup, reporter, heading=f"run {place + 1} of {len(cells)}: {words}")
        except UnfinishedError as error:
            if keeps_going and error.code <= _SIGNALS:
                reporter.note(f"error: {cell.path}: its run ended with exit code {error.code}; the other runs go on")
                failed.append(cell.path)
                continue
            num_done = place - len(failed)
            reporter.note(f"{num_done} of {len(cells)} runs are done; the same command goes on with {cell.path}")
            return error.code
        except RunError as error:
            if not keeps_going:
                raise
            reporter.note(f"error: {cell.path}: {error}; the other runs go on")
            failed.append(cell.path)
            continue
        finished(place, metrics)
    if failed:
        reporter.note(f"{len(failed)} of {len(cells)} runs failed: {', '.join(map(str, failed))}")
    return 1 if failed else 0


def train_or_read_metrics(
    cell: StudyRun, setup: StudySettings, reporter: Reporter, *, heading: str
) -> Mapping[str, Any]:
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
    if code := launch_run.launch_training(request, reporter):
        raise UnfinishedError(code)
    metrics: Mapping[str, Any] = load_document(cell.path / "final.json")["metrics"]
    return metrics
