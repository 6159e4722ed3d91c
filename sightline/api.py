"""Python API of the package: train runs, load them from their folders, and build models by name."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.engine.distributed import start_world
from sightline.engine.run_loading import TrainedRun, build_model
from sightline.workbench.export.onnx_file import open_run_or_file
from sightline.workbench.predict.prediction import Predictions, predict_files

if TYPE_CHECKING:
    from sightline.training.train_run import Reporter, TrainResult
    from sightline.workbench.export.export import ExportResult
    from sightline.workbench.export.formats import ExportFormat

__all__ = ["LoadedRun", "build_model", "export", "load_run", "train_run"]


logger = logging.getLogger(__name__)


class LoadedRun(TrainedRun):
    """Trained run that predicts the user's own files."""

    def predict(
        self, paths: Sequence[str | Path], *, device: str = "cpu", batch_size: int | None = None, **options: Any
    ) -> Predictions[Any]:
        """Predict files, or the files of folders, as `sightline predict` does.

        Files that cannot be predicted are in `refused` with their reason, all others in `predicted`, in memory: a
        `Prediction` per file if the run classifies clouds, a `SegmentPrediction` if it classifies points, a
        `JointPrediction` if it predicts joints; for the task of a plugin, what its predictor returns. `options` are
        those of the predictor: `columns` names the columns of cloud files that have no names, `to_sphere` normalises
        every cloud; for runs on points, `category` is the category of all files if the run segments parts, and
        `with_probabilities` keeps the probabilities of every class; for depth images, `frames` (an `OwnFrames`) states
        how they are read, and the region of the image in which joints are predicted.
        Raises UserError for a device that this machine lacks, ConfigError for an option that the predictor lacks.
        """
        with start_world(device=device) as world:
            files = [Path(path) for path in paths]
            return predict_files(self, files, world=world, batch_size=batch_size, **options)


def load_run(path: str | Path, *, checkpoint: str | Path = "last", plugins: Sequence[str | Path] = ()) -> LoadedRun:
    """Load a trained run from its directory, or from a file of ONNX that `export` wrote; its data set is not needed.

    `checkpoint` is `last`, `best` or a path; if the run averaged its weights (EMA), the average is loaded. `plugins`
    are the plugin files of the run. Global random states do not change. Raises UserError for a directory that
    is not a run, PluginError for a plugin that is not given, CheckpointError for a damaged checkpoint.
    """
    run = open_run_or_file(Path(path), checkpoint=str(checkpoint), plugins=plugins)
    return LoadedRun(**{field.name: getattr(run, field.name) for field in dataclasses.fields(run)})


def export(
    run: str | Path | TrainedRun,
    *,
    to: ExportFormat = "onnx",
    out: str | Path | None = None,
    inputs: Sequence[str | Path] = (),
) -> ExportResult:
    """Write a trained run as ONNX, torch.export's format or TorchScript, checked and described, as `sightline export`.

    `run` is a run directory or a loaded run; `inputs` are files to check with, by default samples of its test split.
    The result has the path, the free sizes of the inputs and the check. Raises UserError and RunError as the command.
    """
    from sightline.workbench.export.export import export_run

    loaded = run if isinstance(run, TrainedRun) else load_run(run)
    files = [Path(path) for path in inputs]
    return export_run(loaded, to=to, out=None if out is None else Path(out), files=files)


def train_run(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    checks: bool = True,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train what a config file describes, or resume its run, as `sightline train` does in one process; print nothing.

    `overrides` change values of the config ("train.epochs=10"). `out` is the run's folder, by default a new one below
    `runs/`; `resume` is `auto`, a run directory or a checkpoint. The result contains the findings of the checks; the
    run is not started if one is an error. `reporter` receives them, and everything else that the command prints, at
    once. SIGTERM and SIGINT save the state and end the run, in the main thread. Global random states and torch's
    backends are set as the run needs them. Raises ConfigError, DataError, CheckpointError or UserError if the run
    cannot start, RunError if it fails.
    """
    from sightline.training.train_run import read_with_plugins
    from sightline.training.train_run import train_run as train

    read = read_with_plugins(Path(config), overrides, [Path(plugin) for plugin in plugins])
    for line in read.notes:
        logger.warning("%s", line)
    return train(
        read.config,
        plugins=read.plugins,
        out=None if out is None else Path(out),
        resume=None if resume is None else str(resume),
        checks=checks,
        device=device,
        reporter=reporter,
    )
