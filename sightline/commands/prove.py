"""Records of the commands that check, compare and fit; their functions are in `sightline.verbs`."""

from __future__ import annotations

from pathlib import Path

from sightline.commands.fields import (
    CONFIG,
    OVERRIDES,
    DeviceCommand,
    argument,
    option,
    switch,
)


class CheckOptions(DeviceCommand, name="check", run="check.check"):
    """Look for silent bugs in a config or run.

    Checks config, data, model and one training step before a run, and the files of a finished run.
    """

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    deep: bool = switch("--deep", "compare every layer and loss with a reference implementation")
    strict: bool = switch("--strict", "treat warnings as errors")
    verbose: bool = switch("--verbose", "print notes, and why checks do not apply, in full")


class CompareOptions(DeviceCommand, name="compare", run="compare.compare_variants"):
    """Find the first layer in which two variants diverge.

    That is the first layer in which they differ by more than rounding explains. Weights and inputs are the same, and
    one thing differs. A training step is run in one variant, and every layer is compared with float64 on exactly its
    inputs: forward, in the loss, and backward; then some optimiser steps are compared. Exit code 0 if rounding explains
    all differences, 1 if the variants diverge.
    """

    paths: tuple[Path, ...] = argument(
        "[record] CONFIG|RUN [KEY=VALUE]...",
        "a YAML config or a run directory, and overrides; with 'record' before it, one step is recorded",
        key_values="overrides",
    )
    overrides: tuple[str, ...] = ()
    against: str | None = option(
        "--against",
        "VARIANT",
        "float64 float32 bfloat16 cuda no-cudnn native-batch-norm compiled, a FILE.py with build(), a record",
    )
    keys: Path | None = option("--keys", "MAP.json", "JSON map from our names of weights to those of FILE.py")
    steps: int | None = option("--steps", "K", "optimiser steps of both variants [5; 2 for large samples]", min=0)
    samples: int | None = option("--samples", "N", "samples in the batch [4; 1 for large samples]", min=1)
    out: Path | None = option("--out", "RECORD", "folder that 'record' writes")
    matrix: bool = switch("--matrix", "loss, time and memory in every number format, on every device, with all kernels")
    html: Path | None = option("--html", "FILE", "write a page with a plot", is_written=True)
    repro: Path | None = option("--repro", "DIR", "write a script that reproduces the first diverging layer")


class FitOneOptions(DeviceCommand, name="fit-one", run="check.fit_one"):
    """Overfit a few samples, to see if a recipe can learn.

    Trains the network on a fixed batch with the recipe's own optimiser, at its rate, a tenth and ten times of it;
    augmentation, dropout and weight decay are off. Prints the loss beside the one that constants reach. If the samples
    are not fitted, Adam is tried, the relations of `sightline check` are asked of the same samples, and the likely
    cause is named. Exit code 0 if the samples were fitted, 1 if not.
    """

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    samples: int | None = option("--samples", "K", "number of samples [1; 4 if one is too few]", min=1)
    steps: int = option("--steps", "N", "steps of each attempt", default=100, min=1)
    seconds: float = option("--seconds", "S", "processor time after which no further step is taken", default=120.0)
    keep: str = option("--keep", "LIST", "do not switch these off: augmentation,dropout,decay", default="")
    vary: tuple[str, ...] = option(
        "--vary", "KEY=A,B", "compare variants of the config; repeatable, all combinations", default=()
    )
    trace: bool = switch("--trace", "print statistics of every layer")
    out: Path | None = option("--out", "DIR", "write fit_one.json and fit_one.svg there")


PROVE_COMMANDS = (CheckOptions, CompareOptions, FitOneOptions)
