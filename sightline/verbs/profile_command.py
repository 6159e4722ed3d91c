"""Command line of `sightline profile`; the implementation is imported when the command runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sightline.gc_pause import gc_paused
from sightline.verbs.options import Config, Device, Json, Overrides, Plugins, Traceback

__all__ = ["profile"]


def profile(
    config: Config,
    overrides: Overrides = None,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=1, help="number of measured steps, after two warm-up steps")
    ] = 5,
    tries: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="SETTING,...",
            help="measure the same steps under: bf16 fp16 float32 channels_last compile workers=N prefetch=N threads=N"
            " micro_batches=N KEY=VALUE; several at once: bf16+threads=2; repeatable",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="rounds of --try; each round runs all settings in turn")
    ] = 5,
    top: Annotated[
        int, typer.Option("--top", metavar="N", min=1, help="number of modules to print, slowest first")
    ] = 20,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="folder for profile.json, and trace.json.gz for a viewer"),
    ] = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Profile time and memory of training steps.

    Reports data loading, transfer, forward, backward and optimiser, and every module. Runs real training steps on the
    run's data, from new weights; no run directory is written or changed. With --try, the same steps are measured under
    other settings.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch warns of blocks from before the profiler started
    with gc_paused():
        from sightline.verbs import profile as verb

    plugins = tuple(plugin or ())
    more_options = (steps, tuple(tries or ()), rounds, top, out, plugins, device, json)
    return verb.profile(verb.ProfileOptions(config, tuple(overrides or ()), *more_options))
