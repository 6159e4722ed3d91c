"""Records of commands that train, evaluate, predict, convert, export; their functions are in `sightline.verbs`."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path

from sightline.commands.fields import (
    CHECKPOINT,
    CONFIG,
    DEVICE,
    OVERRIDES,
    PLUGINS,
    PROCESSES,
    DeviceCommand,
    DocumentCommand,
    PluginCommand,
    TracedCommand,
    argument,
    option,
    switch,
)


class TrainOptions(
    DeviceCommand,
    name="train",
    run="train.train",
    opening="opening.begin_training",
    examples=(
        "train configs/classify/synthetic_shapes_pointnet.yaml",
        "train CONFIG train.epochs=10 optimizer.lr=0.01 --out runs/a",
        "train CONFIG --out runs/a --resume auto",
    ),
):
    """Train what a config describes, then evaluate it."""

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    out: Path | None = option("--out", "DIR", "run directory [runs/<name>/<number>]")
    processes: int | None = PROCESSES
    resume: str | None = option("--resume", "auto|PATH", "resume a run from its last checkpoint or this one")
    no_check: bool = switch("--no-check", "skip the checks before training (recorded)")


class EvaluateOptions(
    DeviceCommand,
    name="evaluate",
    run="evaluate.evaluate",
    run_if={"probe": "probe.probe"},
    examples=(
        "evaluate runs/a",
        "evaluate runs/a --data other.yaml --save-predictions --out predicted",
        "evaluate runs/a --probe svm",
    ),
):
    """Evaluate a trained run.

    Reproduces its final metrics exactly, evaluates it on other data, or pools the runs of all folds of a data set.

    --probe probes the frozen features of each run's encoder: simple methods learn from those of the training split and
    are scored on the test split, beside random weights and chance. 'sightline list probes' shows their arguments
    (C=0.1 folds=5); words with a dot are overrides (data.num_points=1024, model.points.num_neighbours=20).
    """

    runs: tuple[Path, ...] = argument(
        "RUN... [KEY=VALUE]...",
        "a run directory, or the runs of all folds of a data set; then overrides: evaluate.votes=10",
        default=(),
        key_values="overrides",
    )
    overrides: tuple[str, ...] = ()
    checkpoint: str = CHECKPOINT
    data: Path | None = option("--data", "CONFIG", "evaluate on the data of this config")
    probe: str | None = option("--probe", "METHOD[,METHOD...]", "probe features by: svm linear knn few-shot")
    save_predictions: bool = switch("--save-predictions", "save the predicted labels or boxes")
    out: Path | None = option("--out", "DIR", "folder for --save-predictions [RUN/predictions/<split>]")
    ensemble: bool = switch("--ensemble", "also average the predictions of all checkpoints of the run")
    against: str | None = option(
        "--against", "published", "compare with published results on this data set, and list the differences"
    )
    processes: int | None = PROCESSES


class ScoreOptions(
    PluginCommand,
    name="score",
    run="score.score",
    examples=("score predictions/ --data configs/segment/semantic_kitti_salsanext.yaml",),
):
    """Score anyone's predictions on a data set.

    Scores files of labels of points, or of boxes, on the test split of a config's data and by its metrics; nothing else
    of the config is read.
    """

    predictions: Path = argument("PREDICTIONS", "a file or folder of labels or boxes")
    overrides: tuple[str, ...] = argument(
        "[KEY=VALUE]...",
        "override values of the config: data.classes='[car]'; of boxes category_offset=1, if their category ids count "
        "from 1 and those of the data set from 0",
        default=(),
    )
    data: Path = option("--data", "CONFIG", "a config or a run: its data and metrics", default=MISSING)
    against: str | None = option("--against", "published", "compare with published results on this data set")


class PredictOptions(
    DeviceCommand,
    name="predict",
    run="predict.predict",
    run_if={"data": "predict.predict_centres"},
    sections={
        "What is predicted, by the data of the run": (
            ("clouds", "a class for each file; a mesh is sampled as by 'data prepare'"),
            (
                "parts, rooms, scans",
                "a class for each point, with the share of each; --out gets labels in the order of the file "
                "(.labels.npy) and a coloured cloud (.ply). Parts need category=NAME, or folders of that name; "
                "probabilities=float16 or float32 keeps those of all classes",
            ),
            ("images", "boxes; --out gets pictures with those of score=0.3 or more"),
            (
                "depth images",
                "joints, about the centre of mass or the point that refiner=RUN finds; of another camera by camera.fx= "
                "fy= u0= v0= (fy is negative if Y points up)",
            ),
            (
                "--data CONFIG",
                "a refiner's reference points of split=test or train, a file for reference: {name: file, path: FILE}; "
                "one that was trained on tested frames is refused",
            ),
        )
    },
    examples=("predict runs/a chair.ply", "predict runs/a photos/ score=0.5 --out pictures --json found.json"),
):
    """Predict files with a trained run.

    Files are prepared as those of the training, and pass its evaluation transforms once. One that is damaged, or unlike
    the training data (channels, scale, number of points), is refused by name, and the others are predicted. Exit code 0
    if all were predicted, 2 if one was refused, 1 if the work failed.
    """

    run_path: Path = argument("RUN|FILE.onnx", "a run directory, or a file that 'sightline export' wrote")
    paths: tuple[Path, ...] = argument(
        "PATH... [KEY=VALUE]...",
        default=(),
        help="files or folders: npy npz ply pcd las laz off txt xyz csv pts h5 hdf5; scans: bin;"
        " depth images: png npy bin; images: jpg png tif webp bmp gif",
        key_values="words",
    )
    words: tuple[str, ...] = ()
    data: Path | None = option("--data", "CONFIG", "predict the reference points of this config's data set")
    checkpoint: str = CHECKPOINT
    batch_size: int | None = option("--batch-size", "N", "files per batch [evaluate.batch_size]", min=1)
    columns: str | None = option(
        "--columns", "x,y,z,...", "names of the columns of files without a header, _ to skip one"
    )
    to_sphere: bool = switch("--unit-sphere", "move every cloud to its mean and scale it to radius 1")
    out: Path | None = option(
        "--out", "DIR", "write labels and coloured clouds, or pictures of joints or boxes; with --data, the file"
    )
    csv: Path | None = option("--csv", "FILE", "write the result as CSV", is_written=True)


class ExportOptions(
    DocumentCommand,
    name="export",
    run="export.export",
    examples=(
        "export runs/a --out a.onnx",
        "export runs/a --int8 --out a_int8.onnx",
        "predict a.onnx chair.ply",
    ),
):
    """Write a trained run as a file that other programs run.

    The file is ONNX, with a description beside it (FILE.json): inputs with their shapes and units, classes, what is
    done inside the file, and what has to be done before and after it. Normalisation, the decoding of joints and boxes
    and greedy suppression are inside; batches, and in most networks clouds, may have any size. The file is compared
    with the run on 20 inputs, by the judge of 'sightline compare'; one that computes something else is not written.
    'sightline predict FILE.onnx PATH...' predicts with it. With --int8 its layers are quantised, with scales of
    training samples; size, time and metrics are measured beside those in float.
    """

    run_path: Path = argument("RUN", "a run directory, also one that 'sightline compress' wrote")
    out: Path | None = option("--out", "FILE", "file to write [<name of the run>.onnx]")
    inputs: tuple[Path, ...] = option(
        "--inputs", "PATH", "files to check with, instead of the run's test split; repeatable", default=()
    )
    int8: bool = switch("--int8", "quantise the layers, and measure the file beside the one in float")
    calibrate: int | None = option("--calibrate", "N", "training samples that choose the scales of --int8 [64]", min=1)
    checkpoint: str = CHECKPOINT
    plugins: tuple[Path, ...] = PLUGINS


class ServeOptions(
    TracedCommand,
    name="serve",
    run="serve.serve",
    examples=(
        "serve runs/a --port 8000",
        "serve a.onnx --host 0.0.0.0",
    ),
):
    """Answer predictions of a run over HTTP.

    GET /health and /info; POST /predict takes a file (form field 'file') or JSON ('points', and 'category' of a run on
    parts). Requests that arrive together are predicted together. Further words are options of
    the run's predictor, as of 'sightline predict'. The server listens on this machine alone, unless --host says
    otherwise; it knows no passwords. SIGTERM and SIGINT let begun requests finish, and end those that do not within
    20 s.
    """

    run_path: Path = argument("RUN|FILE.onnx", "a run directory, or a file that 'sightline export' wrote")
    words: tuple[str, ...] = argument("[KEY=VALUE]...", "options of the predictor", default=())
    host: str = option("--host", "ADDRESS", "address to listen on", default="127.0.0.1")
    port: int = option("--port", "N", "port to listen on", default=8000, min=1, max=65535)
    checkpoint: str = CHECKPOINT
    device: str = DEVICE
    plugins: tuple[Path, ...] = PLUGINS
    columns: str | None = option("--columns", "x,y,z,...", "names of the columns of clouds, _ to skip one")
    to_sphere: bool = switch("--unit-sphere", "move every cloud to its mean and scale it to radius 1")
    batch_size: int | None = option("--batch-size", "N", "requests per batch, at most [evaluate.batch_size, 32]", min=1)
    wait_ms: float = option("--wait-ms", "F", "longest wait of a batch for others", default=5.0, min=0, max=60e3)
    max_mb: float = option("--max-mb", "F", "largest request, in MB", default=32.0, min=0.001, max=1e6)
    max_megapixels: float = option(
        "--max-megapixels", "F", "largest image, in millions of pixels", default=24.0, min=0.001, max=1e4
    )
    max_seconds: float = option("--max-seconds", "F", "longest time of a request", default=30.0, min=0.1, max=1e6)
    max_requests: int = option(
        "--max-requests", "N", "requests at a time; others get 503", default=64, min=1, max=10**6
    )
