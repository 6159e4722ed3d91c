"""Command line of `sightline study`; the implementation is imported when the command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.gc_pause import gc_paused
from sightline.verbs.options import Device, Json, Plugins, Processes, StudyFolder, Traceback, split_words

__all__ = ["study"]


def study(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG... [KEY=VALUE]...",
            help="YAML configs or run directories, several to compare them, and overrides for all of them",
        ),
    ],
    out: StudyFolder,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="KEY=A,B", help="run with each of these values; repeatable, all combinations"),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option("--arm", metavar="NAME='KEY=A KEY=B'", help="run with these overrides together; repeatable"),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", min=1, help="runs per setting, with seeds 0 to N - 1")
    ] = 3,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="metric to compare [evaluate.metric]")
    ] = None,
    processes: Processes = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Train and compare a grid of runs.

    Reports mean and spread over seeds, paired differences with their interval, and a plot. Runs of one seed are paired:
    they share initial weights and the order of samples, unless a varied setting changes these. The metric is that of
    the last weights on the test split. Repeat the command to resume it; finished runs are not repeated. Writes
    study.json and study.svg into --out after every run.
    """
    with gc_paused():
        from sightline.verbs.studies import study as verb

    configs, overrides = split_words(words)
    more_options = (tuple(vary or ()), tuple(arm or ()), seeds, metric, processes, tuple(plugin or ()), device, json)
    return verb.study(verb.StudyOptions(configs, overrides, out, *more_options))
