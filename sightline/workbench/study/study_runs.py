"""Trainings of a study, each in a folder of its own: begun, resumed, or only read if they are finished."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sightline.commands.run import TrainOptions
from sightline.config import RunConfig
from sightline.contract.dataset import get_data_digest
from sightline.contract.errors import DiskError, RunError, UserError, summarise_error
from sightline.engine.run_data import build_part
from sightline.runs.lineage import read_lineage
from sightline.runs.run_documents import load_document
from sightline.runs.run_files import RunFiles
from sightline.runs.trained_weights import assert_sha256
from sightline.runs.weight_sources import open_source
from sightline.training import launch
from sightline.training.train_result import Reporter
from sightline.workbench.check.dry_run import error_location

_SIGNALS = 128
"""Exit codes above this belong to runs that a signal stopped."""
_MAX_REASON = 2000
"""Characters of the reason of a failure: a finding of the checks is printed in full."""


class StudyRun(NamedTuple):
    """Training of a study: its options with the folder."""

    request: TrainOptions
    path: Path


def plan_run(
    config: Path,
    path: Path,
    overrides: Sequence[str] = (),
    *,
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
    return StudyRun(request, path)


class UnfinishedError(Exception):
    """Raised when a training did not finish; `code` is the exit code of its run."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a run ended with exit code {code}")
        self.code = code


def run_all(
    runs: Sequence[tuple[str, StudyRun]],
    reporter: Reporter,
    finished: Callable[[int, Mapping[str, Any]], None],
    failed_for: Callable[[int, str], None],
) -> int:
    """Run all unfinished trainings in order, and call `finished(index, metrics)` after each; return an exit code.

    Each comes with a title. A training that fails or cannot start is reported, by `failed_for(index, reason)` too, and
    left out, and the code is 1; a signal ends the study with the code of its run.
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
        except DiskError:  # the next run would find no room either
            num_done = index - len(failed)
            reporter.note(f"{num_done} of {len(runs)} runs are done; the same command goes on with {run.path}")
            raise
        except Exception as error:  # noqa: BLE001 - one of a model or a plugin, too, ends its own training alone
            reason = describe_failure(error)
        else:
            finished(index, metrics)
            continue
        reporter.note(f"error: {run.path}: {reason}; the other runs go on")
        failed.append(run.path)
        failed_for(index, reason)
    if failed:
        reporter.note(f"{len(failed)} of {len(runs)} runs failed: {', '.join(map(str, failed))}")
    return 1 if failed else 0


def train_or_read_metrics(run: StudyRun, reporter: Reporter) -> Mapping[str, Any]:
    """Return the final metrics of a training: begin it, resume it or, if it is finished, only read them.

    Raises UnfinishedError if it ends early.
    """
    if code := launch.launch_training(run.request, reporter):
        raise UnfinishedError(code)
    metrics: Mapping[str, Any] = load_document(run.path / "final.json")["metrics"]
    return metrics


def describe_failure(error: Exception) -> str:
    """Describe in one line why a training failed, a bug with its file and line; `--traceback` prints the traceback."""
    if "--traceback" in sys.argv:
        traceback.print_exception(error)
    file, line = (None, None) if isinstance(error, UserError | RunError) else error_location(error)
    return summarise_error(error, max_length=_MAX_REASON) + ("" if file is None else f" ({file}:{line})")


def digest_inputs(config: RunConfig) -> dict[str, str | None]:
    """Compute the digests of what a training reads beside its config: its data, and the weights that it names."""
    return {
        "data": get_data_digest(build_part(config, "train").dataset),
        "init.from": None if config.init is None else open_source(config.init.source).compute_sha256(),
        "teacher.from": None if config.teacher is None else assert_sha256(Path(config.teacher.source), None),
    }


def assert_same_inputs(run: Path, config: RunConfig, inputs: Mapping[str, str | None]) -> None:
    """Raise UserError if a run was trained on other data, or from other initial weights, than `config` reads now."""
    if (change := RunFiles(run).check_data(inputs["data"])) is not None:
        raise UserError(f"{run}: {change}; give another --out")
    lineage, current = read_lineage(run), inputs["init.from"]
    if config.init is not None and lineage is not None and current is not None and lineage["sha256"] != current:
        raise UserError(
            f"{run}: started from other weights ({lineage['sha256'][:16]}...) than {config.init.source} has now "
            f"({current[:16]}...); give another --out"
        )
