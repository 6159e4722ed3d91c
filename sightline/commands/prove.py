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
        "check CONFIG --fit --grow 1,8,64,all",
    ),
):
    """Look for silent bugs in a config or run.

    Checks config, data, model and one training step before a run, and the files of a finished run. With --fit, it also
    trains the network on a few fixed samples, without augmentation and dropout: at the recipe's rate, a tenth and ten
    times of it, then by Adam. If the recipe does not fit them, this is an error; a loss that still falls, or a stop by
    time, is a warning.
    """

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    deep: bool = switch("--deep", "compare every layer and loss with a reference implementation")
    strict: bool = switch("--strict", "treat warnings as errors")
    verbose: bool = switch("--verbose", "print notes in full, and each relation: judged, or why not")
    budget: float | None = option("--budget", "S", "processor time for relations of the model [3]", min=0)
    fit: bool = switch("--fit", "also over-fit a few samples, to see if the recipe can learn")
    samples: int | None = option("--samples", "K", "of --fit: number of samples [4]", min=1)
    steps: int | None = option("--steps", "N", "of --fit: steps of each attempt [100]", min=1)
    seconds: float | None = option("--seconds", "S", "of --fit: processor time for all steps [120]", min=0)
    grid: bool = switch("--grid", "of --fit: rates by optimisers by float32 and float64, in a table")
    grow: str | None = option("--grow", "1,8,64,all", "of --fit: from few samples to the task, up to the first failure")
    trace: bool = switch("--trace", "of --fit: statistics of every layer, before the first step and after the last")


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
