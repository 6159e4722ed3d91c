"""Command line of `sightline fit-one`; the implementation is imported when the command runs."""

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
        typer.Option("--samples", metavar="K", min=1, help="number of samples [1; 4 if one is too few]"),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="steps of each attempt")] = 100,
    keep: Annotated[
        str, typer.Option("--keep", metavar="LIST", help="do not switch these off: augmentation,dropout,decay")
    ] = "",
    grow: Annotated[
        str | None,
        typer.Option("--grow", metavar="1,8,64,all", help="fit these numbers of samples in turn, up to the whole task"),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="KEY=A,B", help="compare variants of the config; repeatable, all combinations"),
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="print statistics of every layer")] = False,
    brief: Annotated[
        bool,
        typer.Option("--brief", help="if the recipe's own optimiser fits, try no other optimiser or number format"),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="write fit_one.json and fit_one.svg there")
    ] = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Overfit a few samples, to see if a recipe can learn.

    If it cannot, the cause is found. Tries the recipe's own optimiser and others, each at learning rates over four
    decades, in float32 and float64; augmentation, dropout and weight decay are off. If the recipe fails, its loss,
    optimiser, precision, output range and head are tested, and one cause is named. Exit code 0 if the samples were
    fitted, 1 if not.
    """
    with gc_paused():
        from sightline.verbs import fit_one as verb

    arguments = (samples, steps, keep, grow, tuple(vary or ()), trace, brief, out)
    return verb.fit_one(
        verb.FitOneOptions(config, tuple(overrides or ()), *arguments, tuple(plugin or ()), device, json)
    )
