"""The Python face of the package: runs that are loaded from their folders, and models by their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.engine.distributed import start_world
from sightline.engine.loading import TrainedRun, build_model, open_trained
from sightline.predict.prediction import Predictions, predict_files

__all__ = ["LoadedRun", "build_model", "load_run"]


class LoadedRun(TrainedRun):
    """A trained run that predicts the user's own files."""

    def predict(
        self, paths: Sequence[str | Path], *, device: str = "cpu", batch_size: int | None = None, **options: Any
    ) -> Predictions[Any]:
        """Predictions for files, or for folders of them, as `sightline predict` makes them.

        Files that cannot be predicted are in `refused` with their reason, all others in `predicted`, all of which are
        held in memory: a `Prediction` each where the run classes clouds, a `SegmentPrediction` where it classes points,
        a `JointPrediction` where it finds joints, and what its predictor makes for a task of a plugin. `options` are
        those of the predictor: `columns` names the columns of files of clouds without names, `to_sphere` normalises
        every cloud; for runs on points, `category` is what all files are, where the run classes parts, and
        `with_probabilities` keeps the probabilities of every class; for depth images, `frames` (an `OwnFrames`) states
        how they are read and where in them the figure is looked for.
        Raises UserError for a device that this machine lacks, ConfigError for an option that the predictor lacks.
        """
        with start_world(device=device) as world:
            files = [Path(path) for path in paths]
            return predict_files(self, files, world=world, batch_size=batch_size, **options)


def load_run(path: str | Path, *, checkpoint: str | Path = "last", plugins: Sequence[str | Path] = ()) -> LoadedRun:
    """A trained run from its directory; its data set is not needed.

    `checkpoint` is `last`, `best` or a path; where the run averaged its weights, the average is loaded. `plugins` are
    the files that the run was made with. Global random states stay as they are. Raises UserError for a directory that
    is no run, PluginError for a plugin that is not given, CheckpointError for a damaged checkpoint.
    """
    run = open_trained(path, checkpoint=checkpoint, plugins=plugins)
    return LoadedRun(**{field.name: getattr(run, field.name) for field in dataclasses.fields(run)})
