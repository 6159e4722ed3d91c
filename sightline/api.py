"""Python API of the package: what the commands do, from paths, dicts and configs, without printing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from sightline.contract.call_arguments import to_count, to_path, to_paths, to_texts
from sightline.engine.distributed import start_world
from sightline.engine.run_loading import TrainedRun
from sightline.runs.run_files import is_run
from sightline.training.named_model import build_model as build_named_model
from sightline.workbench.export.onnx_file import open_run_or_file
from sightline.workbench.predict.prediction import Predictions, predict_files

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sightline.training.config_source import ConfigSource
    from sightline.training.run_evaluation import RunEvaluation
    from sightline.training.split_data import Augmentation, SplitData
    from sightline.training.train_result import Reporter, TrainResult
    from sightline.workbench.compare.comparison import VariantComparison
    from sightline.workbench.export.export import ExportResult
    from sightline.workbench.probe.measure import Comparison

__all__ = ["LoadedRun", "build_model", "compare", "evaluate", "export", "load_data", "load_run", "score", "train_run"]


logger = logging.getLogger(__name__)


class LoadedRun(TrainedRun):
    """Trained run that predicts the user's own files."""

    def __repr__(self) -> str:
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        described = f"{self.config.model.name} of {num_parameters:,} parameters, trained on {self.config.data.name}"
        return f"LoadedRun({self.path}, checkpoint {self.checkpoint.name}: {described})"

    def predict(
        self,
        paths: Sequence[str | Path],
        *,
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
        **options: Any,
    ) -> Predictions[Any]:
        """Predict files, or the files of folders, as `sightline predict` does.

        Files that cannot be predicted are in `refused` with their reason, all others in `predicted`, in memory: a
        `Prediction` per file if the run classifies clouds, a `SegmentPrediction` if it classifies points, a
        `JointPrediction` if it predicts joints; for the task of a plugin, what its predictor returns. `options` are
        those of the predictor: `columns` names the columns of cloud files that have no names, `to_sphere` normalises
        every cloud; for runs on points, `category` is the category of all files if the run segments parts, and
        `probabilities="float32"` keeps the probabilities of every class; for depth images, `frames` (an `OwnFrames`)
        states how they are read, and the region of the image in which joints are predicted.
        Raises UserError for `paths` that are not a list of paths and a device that this machine lacks, ConfigError for
        an option that the predictor lacks.
        """
        files = to_paths(paths, name="predict", what="a file or folder to predict", asks=False)
        if batch_size is not None:
            batch_size = to_count(batch_size, name="predict: batch_size", minimum=1)
        with start_world(device=device) as world:
            return predict_files(self, files, world=world, batch_size=batch_size, **options)


def build_model(source: ConfigSource, /, **arguments: Any) -> nn.Module:
    """Build a model with random weights, by its name in `sightline list models` or as a config describes it.

    By name, facts that a data set would give (`num_classes`, `in_channels`) are arguments like any other. A config, as
    for `load_data`, gives the model, its arguments and, from its data set, the facts; `arguments` replace some. Weights
    are from torch's global generator. Raises ConfigError for a name or an argument that there is not, and for a value
    of another type.

    >>> import sightline
    >>> model = sightline.build_model("pointnet_plain", num_classes=40, in_channels=3, dropout=0.1)
    >>> sum(parameter.numel() for parameter in model.parameters())
    696168
    >>> sightline.build_model("configs/classify/synthetic_shapes_pointnet.yaml").head[-1].out_features
    12
    """
    is_file = isinstance(source, str) and (source.endswith((".yaml", ".yml")) or is_run(Path(source)))
    if isinstance(source, str) and not is_file:
        return build_named_model(source, **arguments)
    from sightline.contract import registry
    from sightline.engine.run_data import build_data
    from sightline.training.config_source import read_source

    config = read_source(source).config
    facts = {name: value for name, value in arguments.items() if name in registry.FACTS}
    inner = {**config.model.arguments, **{name: value for name, value in arguments.items() if name not in facts}}
    model: nn.Module = registry.models.build(
        dataclasses.replace(config.model, arguments=inner), facts={**build_data(config).facts, **facts}
    )
    return model


def load_run(path: str | Path, *, checkpoint: str | Path = "last", plugins: Sequence[str | Path] = ()) -> LoadedRun:
    """Load a trained run from its directory, or from a file of ONNX that `export` wrote; its data set is not needed.

    `checkpoint` is `last`, `best` or a path; if the run averaged its weights (EMA), the average is loaded. `plugins`
    are the plugin files of the run. Global random states do not change. Raises UserError for a directory that
    is not a run, PluginError for a plugin that is not given, CheckpointError for a damaged checkpoint.

    >>> import sightline
    >>> run = sightline.load_run("runs/shapes")
    >>> run
    LoadedRun(runs/shapes, checkpoint step_00000002: pointnet of 3,464,277 parameters, trained on synthetic_shapes)
    >>> data = sightline.load_data("runs/shapes", "test")
    >>> run.model(points=data[:2]["points"])["logits"].shape
    torch.Size([2, 12])
    """
    folder = to_path(path, name="load_run", what="a run directory or a file of ONNX")
    files = to_paths(plugins, name="plugins", what="a Python file")
    run = open_run_or_file(folder, checkpoint=_to_checkpoint(checkpoint), plugins=files)
    return LoadedRun(**{field.name: getattr(run, field.name) for field in dataclasses.fields(run)})


def load_data(
    config: ConfigSource,
    split: str = "train",
    *,
    transforms: Augmentation | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
) -> SplitData:
    """Load a split of a config's data set, with the transforms that training or evaluation applies to it.

    `config` is the path of a YAML file or of a run directory, a dict as in such a file, or a config. The split `train`
    has the `transforms` of training, another those of evaluation; `none` leaves all of them out. Raises ConfigError or
    DataError as `sightline train` does, UserError for a split that there is not.

    >>> import sightline
    >>> data = sightline.load_data("configs/classify/synthetic_shapes_pointnet.yaml", "test")
    >>> sample = data[0]
    >>> sample["points"].shape, data.class_names[sample["label"]]
    (torch.Size([256, 3]), 'ring_stand')
    >>> batch = next(iter(data.loader(batch_size=8)))
    >>> batch["label"].shape
    torch.Size([8])
    """
    from sightline.training.config_source import read_source
    from sightline.training.split_data import load_split

    return load_split(read_source(config, overrides, plugins).config, split, transforms)


@overload
def evaluate(
    run: str | Path,
    *,
    checkpoint: str = "last",
    data: ConfigSource | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    device: str | torch.device = "auto",
    probe: None = None,
) -> RunEvaluation: ...


@overload
def evaluate(
    run: str | Path,
    *,
    checkpoint: str = "last",
    data: str | Path | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    device: str | torch.device = "auto",
    probe: str | Sequence[str],
) -> Comparison: ...


def evaluate(
    run: str | Path,
    *,
    checkpoint: str = "last",
    data: ConfigSource | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    device: str | torch.device = "auto",
    probe: str | Sequence[str] | None = None,
) -> RunEvaluation | Comparison:
    """Evaluate a run on its test split, as `sightline evaluate` does: `metrics`, `per_class`, `document`.

    `data` evaluates it on the data and evaluation transforms of another config; `overrides` change settings of the
    evaluation ("evaluate.votes=10"). `probe` names methods, such as "svm", that learn from the frozen features of the
    run's encoder, with their arguments among the overrides ("C=0.1"): the result has `metrics`, and `baselines` of
    random weights and of guessing; `data` is then the file of a config. Raises UserError for what is not a run, and
    ConfigError or DataError for data that do not fit the model.

    >>> import sightline
    >>> evaluated = sightline.evaluate("runs/shapes")
    >>> sorted(evaluated.metrics)
    ['mean_class_accuracy', 'overall_accuracy']
    """
    if probe is not None:
        from sightline.workbench.probe.probe_run import probe_run

        return probe_run(
            to_path(run, name="evaluate", what="a run directory"),
            [probe] if isinstance(probe, str) else to_texts(probe, name="probe"),
            checkpoint=_to_checkpoint(checkpoint),
            data=None if data is None else to_path(data, name="data", what="the file of a config"),
            overrides=to_texts(overrides, name="overrides"),
            plugins=to_paths(plugins, name="plugins", what="a Python file"),
            device=device,
        )
    from sightline.training.config_source import check_source
    from sightline.training.run_evaluation import evaluate_run

    return evaluate_run(
        to_path(run, name="evaluate", what="a run directory"),
        _to_checkpoint(checkpoint),
        data=None if data is None else check_source(data),
        overrides=to_texts(overrides, name="overrides"),
        plugins=to_paths(plugins, name="plugins", what="a Python file"),
        device=device,
    )


def _to_checkpoint(checkpoint: str | Path) -> str:
    return str(to_path(checkpoint, name="checkpoint", what="a checkpoint, or last or best"))


def score(
    predictions: str | Path,
    config: ConfigSource,
    *,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
) -> RunEvaluation:
    """Score prediction files of any program on the test split of a config's data, as `sightline score` does.

    Of the config, the data and the metrics are used. Notes on figures that the files do not suffice for are logged.
    Files of boxes are described in docs/topics/detection.md#files-of-results.
    """
    from sightline.training.config_source import read_source
    from sightline.training.run_evaluation import score_predictions

    path = to_path(predictions, name="score", what="a file or folder of predictions")
    return score_predictions(path, read_source(config, overrides, plugins).config)


def compare(
    config: ConfigSource,
    against: str | Path = "float64",
    *,
    keys: str | Path | None = None,
    samples: int | None = None,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    device: str | torch.device = "auto",
) -> VariantComparison:
    """Compare the network of a config or a run with a variant of itself or a reference, layer by layer.

    `against` is as for `sightline compare --against`: `float64`, `bfloat16`, ..., a Python file, or a record of
    a step. The result has `is_equal`, `guilty_rows`, `verdict`, `notes` and `to_dict()`.

    >>> import sightline
    >>> sightline.compare("configs/classify/synthetic_shapes_pointnet.yaml", samples=2, steps=0).is_equal
    True
    """
    from sightline.engine.run_loading import open_run
    from sightline.training.config_source import read_source
    from sightline.workbench.compare.comparison import compare_networks, read_reference
    from sightline.workbench.compare.subject import make_subject

    read = read_source(config, overrides, plugins).config
    path = Path(config) if isinstance(config, str | Path) else Path(read.name)
    map_path = None if keys is None else to_path(keys, name="keys", what="a JSON map of names of weights")
    samples = None if samples is None else to_count(samples, name="compare: samples", minimum=1)
    steps = None if steps is None else to_count(steps, name="compare: steps", minimum=0)
    reference = read_reference(str(against), map_path)
    with start_world(device=device) as world:
        opened = open_run(path, config=read, world=world)
        subject, num_steps = make_subject(opened, samples, steps, note=logger.info)
        return compare_networks(subject, reference, num_steps=num_steps)


def export(
    run: str | Path | TrainedRun,
    *,
    out: str | Path | None = None,
    inputs: Sequence[str | Path] = (),
    plugins: Sequence[str | Path] = (),
    int8: int | None = None,
) -> ExportResult:
    """Write a trained run as ONNX, checked and described, as `sightline export`.

    `run` is a run directory, whose plugin files are `plugins`, or a loaded run. A config has no trained weights: export
    the run that `train_run` made of it. `inputs` are files to check with, by default samples of the run's test split.
    `int8` quantises the layers by that many training samples. The result has the path, the free sizes of the inputs,
    the check and, for int8, both files' bytes, times and metrics. Raises UserError and RunError as the command.
    """
    from sightline.workbench.export.export import export_run

    what = "a run directory (a config has no trained weights: train it first), or a loaded run"
    loaded = run if isinstance(run, TrainedRun) else load_run(to_path(run, name="export", what=what), plugins=plugins)
    files = to_paths(inputs, name="inputs", what="a file to check with")
    path = None if out is None else to_path(out, name="out", what="the file to write")
    return export_run(loaded, out=path, files=files, int8=int8)


def train_run(
    config: ConfigSource,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    checks: bool = True,
    device: str | torch.device = "auto",
    reporter: Reporter | None = None,
    progress: bool | None = None,
) -> TrainResult:
    """Train a config, or resume its run, as `sightline train` does, in one process; print nothing but progress.

    `config` is the path of a YAML file or of a run directory, a dict as in such a file, or a config. `overrides` change
    values of it ("train.epochs=10"). `out` is the run's folder, by default a new one below `runs/`; `resume` is `auto`,
    a run directory or a checkpoint. The result contains the findings of the checks; the run is not started if one is an
    error. `reporter` receives them, and everything else that the command prints, at once. `progress` prints a line
    every few seconds, in a notebook it updates one output with curves; by default it is on there alone. Components that
    a notebook registered are recorded in the file `plugins/notebook.py` of the run. SIGTERM and SIGINT save the state
    and end the run, in the main thread. Global random states and torch's backends are set as the run needs them. Raises
    ConfigError, DataError, CheckpointError or UserError if the run cannot start, RunError if it fails.

    >>> import sightline
    >>> recipe = {"base": "configs/classify/synthetic_shapes_pointnet.yaml", "train": {"epochs": 1}}
    >>> result = sightline.train_run(recipe, ["train.steps=2"], out="runs/shapes")
    >>> result.is_finished, result.path.name
    (True, 'shapes')
    """
    from sightline.training.config_source import read_source
    from sightline.training.progress import is_notebook
    from sightline.training.train_run import train_run as train

    read = read_source(config, overrides, plugins)
    if resume == "auto" and out is None and isinstance(config, str | Path) and is_run(Path(config)):
        out = config
    return train(
        read.config,
        plugins=read.plugins,
        out=None if out is None else to_path(out, name="out", what="the run's folder"),
        resume=None if resume is None else str(to_path(resume, name="resume", what="a run or checkpoint, or auto")),
        checks=checks,
        device=device,
        reporter=reporter,
        shows_progress=is_notebook() if progress is None else progress,
    )
