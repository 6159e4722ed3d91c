"""Command line of `sightline probe`; the implementation is imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.gc_pause import gc_paused
from sightline.verbs.options import Checkpoint, Device, Json, Plugins, Processes, Traceback, split_words

__all__ = ["probe"]


def probe(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [KEY=VALUE]...",
            help="a run directory; then arguments of the method (C=0.1, folds=5) and overrides of the configs "
            "(data.num_points=1024, model.points.num_neighbours=20)",
        ),
    ],
    method: Annotated[
        str | None, typer.Option("--method", metavar="svm|few-shot|knn|linear", help="probing method [svm]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="CONFIG", help="data to train and test the probe on [the run's own]"),
    ] = None,
    checkpoint: Checkpoint = "last",
    random: Annotated[
        int, typer.Option("--random", metavar="N", min=1, help="number of networks with random weights to compare with")
    ] = 1,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="folder for the cached features [RUN/features]")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="folder for the result")] = None,
    suite: Annotated[
        bool, typer.Option("--suite", help="SVM and few-shot of every run, in one table with published results")
    ] = False,
    finetune: Annotated[
        Path | None,
        typer.Option(
            "--finetune",
            metavar="CONFIG",
            help="with --suite: fine-tune this part segmentation from each run, and from scratch",
        ),
    ] = None,
    processes: Processes = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Probe the frozen features of a run's encoder.

    Trains a simple method on the features, and compares with random weights and chance. Features of the training and
    test split are extracted once, with the evaluation transforms, and cached in the run. 'sightline list probes' shows
    the arguments of the methods.
    """
    with gc_paused():
        from sightline.verbs import probe as verb

    runs, overrides = split_words(words)
    more_options = (
        method,
        data,
        checkpoint,
        random,
        cache,
        out,
        suite,
        finetune,
        processes,
        tuple(plugin or ()),
        device,
        json,
    )
    options = verb.ProbeOptions(runs, overrides, *more_options)
    return verb.suite(options) if suite else verb.probe(options)
