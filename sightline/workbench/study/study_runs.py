"""Cells of a study: training runs in folders of their own; finished ones are not repeated.

Start of fine-tuning: overrides for scratch or a run's weights, and a check that the weights are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.commands.run import TrainOptions
from sightline.config import RunConfig
from sightline.config.run_config import format_inline
from sightline.contract.errors import RunError, UserError
from sightline.runs.checkpoint import evaluated_sha256, resolve_weights
from sightline.runs.lineage import read_lineage
from sightline.runs.run_directory import load_document
from sightline.training import train_run
from sightline.training.train_run import Reporter

_PRETRAINED_ONLY = {"frozen": "[]", "layer_decay": "null"}
"""Arguments of the optimiser for pre-trained weights, and the values that switch them off."""


def init_override(source: str | Path) -> str:
    """Return the override that starts a run from these weights; any characters are allowed in the path."""
    return f"init.from={format_inline(str(source))}"


def scratch_overrides(config: RunConfig, given: Sequence[str] = ()) -> list[str]:
    """Convert the overrides `given` to a run from random weights: without `init`, freezing and layer decay."""
    optimizer_switches = {key: off for key, off in _PRETRAINED_ONLY.items() if key in config.optimizer.arguments}
    switches = {"init": "null", **{f"optimizer.{key}": off for key, off in optimizer_switches.items()}}
    selected = [text for text in given if not any(_is_at(text, key) for key in switches)]
    return [*selected, *(f"{key}={off}" for key, off in switches.items())]


def assert_same_source(run: Path, source: str | Path) -> None:
    """Raise UserError if a run was started from weights that its source no longer has."""
    lineage = read_lineage(run)
    if lineage is None:
        return
    current_sha256 = evaluated_sha256(resolve_weights(Path(source)))
    if lineage["sha256"] != current_sha256:
        raise UserError(
            f"{run}: started from other weights ({lineage['sha256'][:16]}...) than {source} has now "
            f"({current_sha256[:16]}...); give another --out"
        )


def _is_at(override: str, key: str) -> bool:
    path = override.partition("=")[0].strip()
    return path == key or path.startswith(f"{key}.")


_SIGNALS = 128
"""Exit codes above this belong to runs that a signal stopped."""


@dataclass(frozen=True)
class StudySettings:
    """Settings that all cells of a study share."""

    config: Path
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    processes: int | None = None


@dataclass(frozen=True)
class StudyRun:
    """Run (cell) of a study: its folder, the overrides of its config, and its initial weights, if any."""

    path: Path
    overrides: tuple[str, ...]
    source: str | Path | None = None


class UnfinishedError(Exception):
    """Raised when the training of a cell did not finish; `code` is the exit code of its run."""

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
    """Run all unfinished cells in order, and call `finished(index, metrics)` after each; return an exit code.

    Each cell comes with its settings and a description. The code is 0, or that of the run that did not finish. With
    `keeps_going` a cell whose training fails or cannot start is reported and left out, and the code is 1; a signal
    still ends the study.
    """
    failed: list[Path] = []
    for index, (cell, setup, description) in enumerate(cells):
        try:
            metrics = train_or_read_metrics(
                cell, setup, reporter, heading=f"run {index + 1} of {len(cells)}: {description}"
            )
        except UnfinishedError as error:
            if keeps_going and error.code <= _SIGNALS:
                reporter.note(f"error: {cell.path}: its run ended with exit code {error.code}; the other runs go on")
                failed.append(cell.path)
                continue
            num_done = index - len(failed)
            reporter.note(f"{num_done} of {len(cells)} runs are done; the same command goes on with {cell.path}")
            return error.code
        except RunError as error:
            if not keeps_going:
                raise
            reporter.note(f"error: {cell.path}: {error}; the other runs go on")
            failed.append(cell.path)
            continue
        finished(index, metrics)
    if failed:
        reporter.note(f"{len(failed)} of {len(cells)} runs failed: {', '.join(map(str, failed))}")
    return 1 if failed else 0


def train_or_read_metrics(
    cell: StudyRun, setup: StudySettings, reporter: Reporter, *, heading: str
) -> Mapping[str, Any]:
    """Return the final metrics of a cell: train it, resume it or, if it is finished, only read them.

    `heading` is reported first. Raises UserError if the cell was started from weights that its source no longer has,
    UnfinishedError if training ends early.
    """
    if cell.source is not None:
        assert_same_source(cell.path, cell.source)
    reporter.note(heading)
    request = TrainOptions(
        config=setup.config,
        overrides=cell.overrides,
        out=cell.path,
        processes=setup.processes,
        resume="auto",
        plugins=setup.plugins,
        device=setup.device,
    )
    if code := train_run.launch_training(request, reporter):
        raise UnfinishedError(code)
    metrics: Mapping[str, Any] = load_document(cell.path / "final.json")["metrics"]
    return metrics
