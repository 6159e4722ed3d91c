"""Records of the commands that check, compare, fit and probe; their functions are in `sightline.verbs`."""

from __future__ import annotations

from pathlib import Path

from sightline.commands.fields import (
    CHECKPOINT,
    CONFIG,
    OVERRIDES,
    PROCESSES,
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

    config: Path = CONFIG
    overrides: tuple[str, ...] = OVERRIDES
    against: str = option(
        "--against",
        "VARIANT",
        "float64 float32 bfloat16 cuda no-cudnn native-batch-norm, or a FILE.py with build()",
        default="float64",
    )
    keys: Path | None = option("--keys", "MAP.json", "JSON map from our names of weights to those of FILE.py")
    steps: int | None = option("--steps", "K", "optimiser steps of both variants [5; 2 for large samples]", min=0)
    samples: int | None = option("--samples", "N", "samples in the batch [4; 1 for large samples]", min=1)


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


class ProbeOptions(DeviceCommand, name="probe", run="probe.probe"):
    """Probe the frozen features of a run's encoder.

    Trains a simple method on the features, and compares with random weights and chance. Features of the training and
    test split are extracted once, with the evaluation transforms, and cached in the run. 'sightline list probes' shows
    the arguments of the methods.
    """

    runs: tuple[Path, ...] = argument(
        "RUN... [KEY=VALUE]...",
        "a run directory; then arguments of the method (C=0.1, folds=5) and overrides of the configs "
        "(data.num_points=1024, model.points.num_neighbours=20)",
        key_values="words",
    )
    words: tuple[str, ...] = ()
    method: str | None = option("--method", "svm|few-shot|knn|linear", "probing method [svm]")
    data: Path | None = option("--data", "CONFIG", "data to train and test the probe on [the run's own]")
    checkpoint: str = CHECKPOINT
    random: int = option("--random", "N", "number of networks with random weights to compare with", default=1, min=1)
    cache: Path | None = option("--cache", "DIR", "folder for the cached features [RUN/features]")
    out: Path | None = option("--out", "DIR", "folder for the result")
    processes: int | None = PROCESSES

    @property
    def method_name(self) -> str:
        """Name of the given method, or of the default."""
        return self.method or "svm"


PROVE_COMMANDS = (CheckOptions, CompareOptions, FitOneOptions, ProbeOptions)
