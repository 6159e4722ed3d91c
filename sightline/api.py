"""The Python face of the package: runs that are trained or loaded from their folders, and models by their names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.engine.distributed import start_world
from sightline.engine.loading import TrainedRun, build_model, open_trained
from sightline.errors import ConfigError
from sightline.predict.frame_prediction import answers_joints, predict_depth_files
from sightline.predict.own_frames import OwnFrames
from sightline.predict.prediction import Predictions, predict_files

if TYPE_CHECKING:
    from sightline.studies.train_run import Reporter, TrainResult

__all__ = ["LoadedRun", "build_model", "load_run", "train_run"]


logger = logging.getLogger(__name__)


class LoadedRun(TrainedRun):
    """A trained run that predicts the user's own files."""

    def predict(
        self,
        paths: Sequence[str | Path],
        *,
        device: str = "cpu",
        batch_size: int | None = None,
        columns: Sequence[str] | None = None,
        to_sphere: bool = False,
        category: str | None = None,
        with_probabilities: bool = False,
        frames: OwnFrames | None = None,
    ) -> Predictions[Any]:
        """What this run says of files of clouds, meshes or depth images, or of folders, as `sightline predict` does it.

        Files that cannot be predicted stand in `refused` with their reason, all others in `predicted`: as a
        `Prediction`, where the run classes points as a `SegmentPrediction`, of which all are held in memory, or where
        it finds joints as a `JointPrediction`. How depth images are read, and where in them is looked, say `frames`.
        `columns` names the columns of files without names, `to_sphere` normalises every cloud. For runs on points:
        `category` is what all files are, where the run classes parts; `with_probabilities` keeps those of every class.
        Raises UserError for a device that this machine lacks, and for what does not go with the run.
        """
        if answers_joints(self):
            if columns is not None or to_sphere or category is not None or with_probabilities:
                raise ConfigError(f"{self.path}: reads depth images; give batch_size and frames alone")
            with start_world(device=device) as world:
                files = [Path(path) for path in paths]
                return predict_depth_files(self, files, own=frames or OwnFrames(), world=world, batch_size=batch_size)
        if frames is not None:
            raise ConfigError(f"{self.path}: reads no depth images; leave frames out")
        with start_world(device=device) as world:
            return predict_files(
                self,
                [Path(path) for path in paths],
                world=world,
                batch_size=batch_size,
                columns=columns,
                to_sphere=to_sphere,
                category=category,
                with_probabilities=with_probabilities,
            )


def load_run(path: str | Path, *, checkpoint: str | Path = "last", plugins: Sequence[str | Path] = ()) -> LoadedRun:
    """A trained run from its directory; its data set is not needed.

    `checkpoint` is `last`, `best` or a path; where the run averaged its weights, the average is loaded. `plugins` are
    the files that the run was made with. Global random states stay as they are. Raises UserError for a directory that
    is no run, PluginError for a plugin that is not given, CheckpointError for a damaged checkpoint.
    """
    run = open_trained(path, checkpoint=checkpoint, plugins=plugins)
    return LoadedRun(**{field.name: getattr(run, field.name) for field in dataclasses.fields(run)})


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
    """Train what a config file describes, or resume its run, as `sightline train` does in one process; prints nothing.

    `overrides` are laid over the config ("train.epochs=10"). `out` is the run's folder, without it a new one below
    `runs/`; `resume` is `auto`, a run directory or a checkpoint. Findings of the checks are in the result, and no run
    is started where one is an error; `reporter` receives them, and all that the command prints, as it comes. SIGTERM
    and SIGINT save the state and end the run, in the main thread. Global random states and torch's backends are set as
    the run needs them. Raises ConfigError, DataError, CheckpointError or UserError for what cannot start, RunError for
    what fails.
    """
    from sightline.studies.configs import read_with_plugins
    from sightline.studies.train_run import train_run as train

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
