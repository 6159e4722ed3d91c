"""`sightline fit-one` as the command line declares it; the rooms it needs are imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.gc_pause import gc_paused
from sightline.verbs.options import Config, Device, Json, Overrides, Plugins, Traceback

__all__ = ["fit_one"]


def fit_one(
    config: Config,
    overrides: Overrides = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="K", min=1, help="number of samples [1; 4 where one shows too little]"),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="steps of an attempt")] = 100,
    keep: Annotated[
        str, typer.Option("--keep", metavar="LIST", help="leave these on: augmentation,dropout,decay")
    ] = "",
    grow: Annotated[
        str | None, typer.Option("--grow", metavar="1,8,64,all", help="climb from one sample to the task")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="KEY=A,B", help="compare variants of the config; repeatable, all combinations"),
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="follow the samples through every layer")] = False,
    brief: Annotated[
        bool, typer.Option("--brief", help="where the recipe's own optimiser fits, try no other, and no other format")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="write fit_one.json and fit_one.svg there")
    ] = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Over-fit one sample or a few: can this recipe learn at all, and if not, why.

    The recipe's own optimiser and others, each at rates over four decades, in float32 and float64; augmentation,
    dropout and weight decay are off. Where the recipe fails, loss, optimiser, precision, output range and head are put
    to the test, and one cause is named. Exit code 0 where the samples were fitted, 1 where not.
    """
    with gc_paused():
        from sightline.verbs import fit_one as verb

    asked = (samples, steps, keep, grow, tuple(vary or ()), trace, brief, out)
    return verb.fit_one(verb.FitOneOptions(config, tuple(overrides or ()), *asked, tuple(plugin or ()), device, json))
