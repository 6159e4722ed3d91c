"""Command line of `sightline compare`; the implementation is imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.errors import UserError
from sightline.gc_pause import gc_paused
from sightline.verbs.options import Device, Json, Plugins, Traceback, check_writable, split_words

__all__ = ["compare"]


def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[record] CONFIG|RUN [KEY=VALUE]...",
            help="a YAML config or a run directory, and overrides; with 'record' before it, one step is recorded",
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="VARIANT",
            help="float64 float32 bfloat16 cuda no-cudnn native-batch-norm compiled, a FILE.py with build(), a record",
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="MAP.json", help="JSON map from our names of weights to those of FILE.py"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="K", min=0, help="optimiser steps of both variants [5; 2 for large samples]"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", min=1, help="samples in the batch [4; 1 for large samples]")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="RECORD", help="folder that 'record' writes")] = None,
    matrix: Annotated[
        bool,
        typer.Option(
            "--matrix", help="loss, time and memory in every number format, on every device, with all kernels"
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", callback=check_writable("--html"), help="write a page with a plot"),
    ] = None,
    repro: Annotated[
        Path | None,
        typer.Option("--repro", metavar="DIR", help="write a script that reproduces the first diverging layer"),
    ] = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Find the first layer in which two variants diverge.

    That is the first layer in which they differ by more than rounding explains. Weights and inputs are the same, and
    one thing differs. A training step is run in one variant, and every layer is compared with float64 on exactly its
    inputs: forward, in the loss, and backward; then some optimiser steps are compared. Exit code 0 if rounding explains
    all differences, 1 if the variants diverge.
    """
    with gc_paused():
        from sightline.verbs import compare as verb

    is_record = words[0] == "record" and not Path("record").exists()
    paths, overrides = split_words(words[1:] if is_record else words)
    if len(paths) != 1:
        raise UserError(f"compare: give one config or run, not {len(paths)}")
    more_options = (against, keys, steps, samples, out, matrix, html, repro, tuple(plugin or ()), device, json)
    return verb.compare_variants(verb.CompareOptions(paths[0], overrides, *more_options), is_record=is_record)
