"""Records of the commands that check, compare and fit; their functions are in `sightline.verbs`."""

from __future__ import annotations

from pathlib import Path

from sightline.commands.fields import (
    CONFIG,
    OVERRIDES,
    DeviceCommand,
    option,
    switch,
)


class CheckOptions(
    DeviceCommand,
    name="check",
    run="check.check",
    examples=(
        "check configs/classify/synthetic_shapes_pointnet.yaml",
        "check runs/a --verbose",
    ),
):
    """Look for silent bugs in a config or run.

    Checks config, data, model and one training step before a run, and the files of a finished run. 'sightline fit'
    tries whether the network can learn a few samples.
    """

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    deep: bool = switch("--deep", "compare every layer and loss with a reference implementation")
    strict: bool = switch("--strict", "treat warnings as errors")
    verbose: bool = switch("--verbose", "print notes in full, and each relation: judged, or why not")
    budget: float | None = option("--budget", "S", "seconds of relations of the model, at most [3]", min=0)


class FitOptions(
    DeviceCommand,
    name="fit",
    run="fit.fit",
    examples=(
        "fit configs/classify/synthetic_shapes_pointnet.yaml",
        "fit CONFIG --samples 1 --trace",
        "fit CONFIG --grow 1,8,64,all",
    ),
):
    """Over-fit a few samples, to see if a recipe can learn.

    The network learns a few fixed samples by heart, without augmentation and dropout: at the recipe's rate, a tenth and
    ten times of it, then by Adam. If the recipe does not fit them, this is an error; a loss that still falls, or a stop
    by time, is a warning. This is no training: 'sightline train CONFIG' is.
    """

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    samples: int | None = option("--samples", "K", "number of samples [4]", min=1)
    steps: int | None = option("--steps", "N", "steps of each attempt [100]", min=1)
    seconds: float | None = option("--seconds", "S", "processor time for all steps [120]", min=0)
    grid: bool = switch("--grid", "a table of rates by optimisers by float32 and float64")
    grow: str | None = option("--grow", "1,8,64,all", "from few samples to the task, up to the first failure")
    trace: bool = switch("--trace", "statistics of every layer, before the first step and after the last")
    strict: bool = switch("--strict", "treat warnings as errors")


class CompareOptions(
    DeviceCommand,
    name="compare",
    run="compare.compare_variants",
    environment={"TORCH_CPP_LOG_LEVEL": "ERROR", "KINETO_LOG_LEVEL": "99"},  # the profiler prints what it does
    examples=(
        "compare CONFIG --against float64 --repro DIR",
        "compare CONFIG --against other_network.py",
        "compare CONFIG --matrix",
    ),
):
    """Find the first layer in which two variants diverge.

    That is the first layer in which they differ by more than rounding explains. Weights and inputs are the same, and
    one thing differs. A training step is run in one variant, and every layer is compared with float64 on exactly its
    inputs: forward, in the loss, and backward; then some optimiser steps are compared. Exit code 0 if rounding explains
    all differences, 1 if the variants diverge.

    A record is a folder of NPY files, in which a program in any language wrote down one training step.
    --matrix compares every number format, device and choice of kernels with float64 on the CPU instead, and prints the
    loss at steps 0, 1, 10 and 50, the time and the memory of each.
    """

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    against: str = option(
        "--against",
        "VARIANT",
        "float64 float32 bfloat16 cuda no-cudnn native-batch-norm, a FILE.py with build(), or a record of a step",
        default="float64",
    )
    keys: Path | None = option(
        "--keys", "MAP.json", "JSON map from our names of weights to those of FILE.py or the record"
    )
    steps: int | None = option(
        "--steps", "K", "optimiser steps of both variants [5; 2 for large samples; 51 with --matrix]", min=0
    )
    samples: int | None = option("--samples", "N", "samples in the batch [4; 1 for large samples]", min=1)
    repro: Path | None = option("--repro", "DIR", "write the first diverging layer alone, as a script for torch")
    matrix: bool = switch("--matrix", "one table of all number formats, devices and kernels")
