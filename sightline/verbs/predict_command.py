"""Command line of `sightline predict`; the implementation is imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.gc_pause import gc_paused
from sightline.verbs.options import Checkpoint, Device, Json, Plugins, Traceback, check_writable, split_words

__all__ = ["predict"]


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")],
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH... [KEY=VALUE]...",
            help="files or folders: npy npz ply pcd las laz off txt xyz csv pts h5 hdf5; scans: bin;"
            " depth images: png npy bin;"
            " images: jpg png tif webp bmp gif",
        ),
    ],
    checkpoint: Checkpoint = "last",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=1, help="files per batch [evaluate.batch_size]")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns", metavar="x,y,z,...", help="names of the columns of files without a header, _ to skip one"
        ),
    ] = None,
    unit_sphere: Annotated[
        bool, typer.Option("--unit-sphere", help="move every cloud to its mean and scale it to radius 1")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="write labels and coloured clouds, or pictures of joints or boxes"),
    ] = None,
    probabilities: Annotated[
        Literal["float16", "float32"] | None,
        typer.Option("--probabilities", help="also write the probabilities of all classes for every point"),
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(
            "--category", metavar="NAME", help="category of all files, for part segmentation [name of their folder]"
        ),
    ] = None,
    score: Annotated[
        float | None, typer.Option("--score", metavar="S", help="minimum score of a box [0.3]", min=0.0, max=1.0)
    ] = None,
    reference: Annotated[
        Literal["centre_of_mass", "previous"] | None,
        typer.Option(
            "--reference", help="reference point of the crop; previous: from the joints of the previous frame"
        ),
    ] = None,
    centres: Annotated[
        Path | None,
        typer.Option("--centres", metavar="FILE", help="file of reference points, a line x y z in mm per frame"),
    ] = None,
    refiner: Annotated[
        Path | None,
        typer.Option("--refiner", metavar="RUN", help="run of a refiner, which corrects the reference points"),
    ] = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", callback=check_writable("--csv"), help="write the result as CSV"),
    ] = None,
    traceback: Traceback = False,
) -> int:
    """Predict files with a trained run.

    Predicts a class per file, a class per point, joints or boxes, depending on the run's task. Files are prepared like
    the run's training data (a mesh is sampled as by 'data prepare') and pass the run's evaluation transforms once,
    without votes. A file that is damaged, or does not match the training data (channels, scale, number of points), is
    refused by name, and the others are predicted. A run that classifies points reports the share of each class, and
    writes labels in the order of the file (.labels.npy) and a coloured cloud (.ply) into --out; one that segments parts
    needs the category of the objects. A pose run predicts the joints in depth images of any camera with the intrinsics
    camera.fx= fy= u0= v0= [those of the run's data set]; fy is negative if Y points up. A detector draws its boxes on
    the images. Exit code 0 if all files were predicted, 2 if one was refused, 1 if the work failed.
    """
    with gc_paused():
        from sightline.verbs import predict as verb

    paths, overrides = split_words(words)
    predictor_flags = {
        "columns": columns,
        "to_sphere": unit_sphere or None,
        "category": category,
        "probabilities": probabilities,
        "score": score,
        "reference": reference,
        "centres": centres,
        "refiner": refiner,
    }
    flags = {name: value for name, value in predictor_flags.items() if value is not None}
    plugins = tuple(plugin or ())
    return verb.predict(
        verb.PredictOptions(run, paths, checkpoint, plugins, batch_size, out, device, json, csv, flags, overrides)
    )
