"""Command line of `sightline label-efficiency`; the implementation is imported when the command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.gc_pause import gc_paused
from sightline.verbs.options import Config, Device, Json, Overrides, Plugins, Processes, StudyFolder, Traceback

__all__ = ["label_efficiency"]


def label_efficiency(
    config: Config,
    out: StudyFolder,
    overrides: Overrides = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="the pre-trained run [init.from of the config]")
    ] = None,
    fractions: Annotated[
        str, typer.Option("--fractions", metavar="F,F,...", help="fractions of the labels, above 0, at most 1")
    ] = "0.01,0.05,0.1,1",
    seeds: Annotated[
        str,
        typer.Option(
            "--seeds", metavar="N[,N...]", help="runs from scratch and pre-trained; one number, or one per fraction"
        ),
    ] = "3",
    epochs: Annotated[
        str | None,
        typer.Option(
            "--epochs", metavar="N[,N...]", help="epochs per run; one number, or one per fraction [train.epochs]"
        ),
    ] = None,
    processes: Processes = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Compare scratch with pre-trained at label fractions.

    Trains all runs, and writes a table and a plot. The config fine-tunes: its init defines what is loaded from the
    pre-trained run. A run from scratch is the same without init, frozen modules and layer decay. All labels of a
    fraction are used for training and nothing is selected: the last weights are evaluated on the test split, once.
    Repeat the command to resume it; finished runs are not repeated. Writes label_efficiency.json and
    label_efficiency.svg into --out after every run.
    """
    with gc_paused():
        from sightline.verbs.studies import label_efficiency as verb

    more_options = (source, fractions, seeds, epochs, processes, tuple(plugin or ()), device, json)
    return verb.label_efficiency(verb.LabelEfficiencyOptions(config, tuple(overrides or ()), out, *more_options))
