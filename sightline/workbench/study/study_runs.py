"""Trainings of a study, each in a folder of its own: begun, resumed, or only read if they are finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sightline.commands.run import TrainOptions
from sightline.contract.errors import RunError, UserError
from sightline.runs.lineage import read_lineage
from sightline.runs.run_directory import load_document
from sightline.runs.weight_sources import open_source
from sightline.training import train_run
from sightline.training.train_run import Reporter

_SIGNALS = 128
"""Exit codes above this belong to runs that a signal stopped."""


class StudyRun(NamedTuple):
    """Training of a study: its options with the folder, and its initial weights, if any."""

    request: TrainOptions
    path: Path
    source: str | Path | None = None


def plan_run(
    config: Path,
    path: Path,
    overrides: Sequence[str] = (),
    *,
    source: str | Path | None = None,
    plugins: tuple[Path, ...] = (),
    device: str = "auto",
    processes: int | None = None,
) -> StudyRun:
    """Plan a training in the folder `path`, which is resumed if it is there."""
    request = TrainOptions(
        config=config,
        overrides=tuple(overrides),
        out=path,
        processes=processes,
        resume="auto",
        plugins=plugins,
        device=device,
    )
    return StudyRun(request, path, source)


class UnfinishedError(Exception):
    """Raised when a training did not finish; `code` is the exit code of its run."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a run ended with exit code {code}")
        self.code = code


def run_all(
    runs: Sequence[tuple[str, StudyRun]],
    reporter: Reporter,
    finished: Callable[[int, Mapping[str, Any]], None],
) -> int:
    """Run all unfinished trainings in order, and call `finished(index, metrics)` after each; return an exit code.

    Each comes with a title. A training that fails or cannot start is reported and left out, and the code is 1; a signal
    ends the study with the code of its run.
    """
    failed: list[Path] = []
    for index, (title, run) in enumerate(runs):
        reporter.note(f"run {index + 1} of {len(runs)}: {title}")
        try:
            metrics = train_or_read_metrics(run, reporter)
        except UnfinishedError as error:
            if error.code > _SIGNALS:
                num_done = index - len(failed)
                reporter.note(f"{num_done} of {len(runs)} runs are done; the same command goes on with {run.path}")
                return error.code
            reason = f"its run ended with exit code {error.code}"
        except RunError as error:
            reason = str(error)
        else:
            finished(index, metrics)
            continue
        reporter.note(f"error: {run.path}: {reason}; the other runs go on")
        failed.append(run.path)
    if failed:
        reporter.note(f"{len(failed)} of {len(runs)} runs failed: {', '.join(map(str, failed))}")
    return 1 if failed else 0


def train_or_read_metrics(run: StudyRun, reporter: Reporter) -> Mapping[str, Any]:
    """Return the final metrics of a training: begin it, resume it or, if it is finished, only read them.

    Raises UserError if it was started from weights that its source no longer has, UnfinishedError if it ends early.
    """
    if run.source is not None:
        _assert_same_source(run.path, run.source)
    if code := train_run.launch_training(run.request, reporter):
        raise UnfinishedError(code)
    metrics: Mapping[str, Any] = load_document(run.path / "final.json")["metrics"]
    return metrics


def _assert_same_source(run: Path, source: str | Path) -> None:
    """Raise UserError if a run was started from weights that its source no longer has."""
    lineage = read_lineage(run)
    current = None if lineage is None else open_source(str(source)).compute_sha256()
    if lineage is not None and current is not None and lineage["sha256"] != current:
        raise UserError(
            f"{run}: started from other weights ({lineage['sha256'][:16]}...) than {source} has now "
            f"({current[:16]}...); give another --out"
        )
