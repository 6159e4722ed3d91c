"""`sightline profile` as the command line declares it; the rooms it needs are imported when it runs."""

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
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="measured, after two that are not")] = 5,
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
        int, typer.Option("--rounds", metavar="N", min=1, help="of --try, all settings in turn in each")
    ] = 5,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="modules to print, the slowest ones")] = 20,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="write profile.json, and trace.json.gz for a viewer")
    ] = None,
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Where the time and the memory of a training step go: data, transfer, forward, backward, optimiser; by module.

    Real steps of the run's own loop, on its data, from new weights; no run directory is written and none is changed.
    What another setting would change is measured by taking the same steps under it.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch warns of blocks from before the profiler started
    with gc_paused():
        from sightline.verbs import profile as verb

    plugins = tuple(plugin or ())
    asked = (steps, tuple(tries or ()), rounds, top, out, plugins, device, json)
    return verb.profile(verb.ProfileOptions(config, tuple(overrides or ()), *asked))
