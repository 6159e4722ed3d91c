"""`sightline probe` as the command line declares it; the rooms it needs are imported when it runs."""

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
            help="a run directory; then arguments of the method (C=0.1, folds=5) and what is laid over the configs "
            "(data.num_points=1024, model.points.num_neighbours=20)",
        ),
    ],
    method: Annotated[
        str | None, typer.Option("--method", metavar="svm|few-shot|knn|linear", help="what learns [svm]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="CONFIG", help="data to learn from and to test on [the run's own]")
    ] = None,
    checkpoint: Checkpoint = "last",
    random: Annotated[
        int, typer.Option("--random", metavar="N", min=1, help="networks with random weights beside it")
    ] = 1,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="where features are kept [RUN/features]")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="write the result there")] = None,
    suite: Annotated[
        bool, typer.Option("--suite", help="SVM and few-shot of every run, in one table beside published figures")
    ] = False,
    finetune: Annotated[
        Path | None,
        typer.Option("--finetune", metavar="CONFIG", help="with --suite: learn parts from each run, and from scratch"),
    ] = None,
    processes: Processes = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Measure what a run's encoder has learnt: a simple method on frozen features, beside random weights and chance.

    Features of the data's training and test part are extracted once, by its evaluation transforms, and kept with the
    run. 'sightline list probes' shows the methods' arguments.
    """
    with gc_paused():
        from sightline.verbs import probe as verb

    runs, overrides = split_words(words)
    asked = (
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
    options = verb.ProbeOptions(runs, overrides, *asked)
    return verb.suite(options) if suite else verb.probe(options)
