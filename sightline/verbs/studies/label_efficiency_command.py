"""`sightline label-efficiency` as the command line declares it; the rooms it needs are imported when it runs."""

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
        str, typer.Option("--fractions", metavar="F,F,...", help="shares of the labels, above 0, at most 1")
    ] = "0.01,0.05,0.1,1",
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="N[,N...]", help="runs of each start; one number, or one a fraction")
    ] = "3",
    epochs: Annotated[
        str | None,
        typer.Option("--epochs", metavar="N[,N...]", help="of a run; one number, or one a fraction [train.epochs]"),
    ] = None,
    processes: Processes = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Scratch against pre-trained at several shares of the labels: every run, a table and a plot.

    The config fine-tunes: its init names what of the pre-trained run is taken. A run from scratch is the same without
    init, without frozen modules and without layer decay. All labels of a share train and nothing is selected: the last
    weights are scored on the test part, once. The same command again goes on where it stopped; runs that are done are
    not repeated. Writes label_efficiency.json and label_efficiency.svg into --out after every run.
    """
    with gc_paused():
        from sightline.verbs.studies import label_efficiency as verb

    asked = (source, fractions, seeds, epochs, processes, tuple(plugin or ()), device, json)
    return verb.label_efficiency(verb.LabelEfficiencyOptions(config, tuple(overrides or ()), out, *asked))
