"""Records of `sightline compress`; their functions are in `sightline.verbs.compress`."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from typing import Literal

from sightline.commands.fields import (
    CHECKPOINT,
    Command,
    DeviceCommand,
    PluginCommand,
    argument,
    option,
    switch,
)


class FloatRun(Command):
    """Run to compress, with the words that follow it."""

    runs: tuple[Path, ...] = argument(
        "RUN [KEY=VALUE]...",
        "a run directory; then arguments of the search (max_evaluations=100), overrides of the run's model "
        "(model.fused=false) and, where it is fine-tuned, of that config (train.batch_size=32)",
        key_values="words",
    )
    words: tuple[str, ...] = ()
    checkpoint: str = CHECKPOINT

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides of a config: the words whose key has a dot."""
        return tuple(word for word in self.words if "." in word.partition("=")[0])

    @property
    def arguments(self) -> tuple[str, ...]:
        """Arguments of the search: the other words."""
        return tuple(word for word in self.words if word not in self.overrides)


class BudgetOptions(Command):
    """Budget and search space of a compression."""

    ratio: float | None = option("--ratio", "R", "budget, as a ratio of the bytes in float32")
    num_bytes: int | None = option("--bytes", "N", "budget in bytes, instead of --ratio")
    on: Literal["file", "codebook", "weights"] = option(
        "--on", None, "what the budget counts: the file, or layers with or without codebooks", default="file"
    )
    method: str = option("--method", "NAME", "see 'sightline list searches'", default="hybrid")
    bits: str = option("--bits", "N,N...", "bits to choose from per layer: 2,4 or 1-8", default="1-8")
    kind: Literal["codebook", "linear"] = option("--kind", None, "quantisation of the weights", default="codebook")
    per_channel: bool = switch("--per-channel", "one codebook or step size per output channel")
    calibration: int = option("--calibration", "N", "samples that policies are evaluated on", default=256, min=1)
    seed: int = option("--seed", "N", "seed of the calibration samples and of the search", default=0, min=0)


class ProtectionOptions(Command):
    """Layers that a search leaves at their bits, and bits of the layers' inputs."""

    protect: tuple[str, ...] = option(
        "--protect", "NAME", "layers to keep at --protect-bits: head.*; repeatable", default=()
    )
    protect_ends: int = option("--protect-ends", "N", "protect this many first and last layers", default=0, min=0)
    protect_bits: int = option(
        "--protect-bits", "N", "bits of protected layers: 1 to 8, 16, or 32 for float32", default=8
    )
    activations: int | None = option(
        "--activations", "N", "also quantise layer inputs to 2 to 8 bits; needs model.fused=false", min=2, max=8
    )


class TuningOptions(Command):
    """Length and learning rate of fine-tuning."""

    epochs: int | None = option("--epochs", "N", "epochs of fine-tuning; 0 for none [a quarter of the run's]", min=0)
    rate: float = option("--rate", "F", "learning rate of fine-tuning, as a factor of the run's", default=0.1)


class FineTuneOptions(TuningOptions):
    """Options of fine-tuning the quantised run."""

    is_distilled: bool | None = option(
        "--distil/--no-distil", None, "also learn from the float model's logits [if the run has labels]"
    )


class PackOptions(Command):
    """Options of packing."""

    batch_norm: int = option(
        "--batch-norm", "N", "training batches to re-estimate batch norm statistics on", default=50, min=0
    )


class CompressRunOptions(
    FloatRun,
    BudgetOptions,
    ProtectionOptions,
    FineTuneOptions,
    PackOptions,
    DeviceCommand,
    name="compress run",
    run="compress.run",
    examples=(
        "compress run runs/a --ratio 0.1 --out runs/small",
        "compress run runs/a --policy policy.json --epochs 0 --out runs/small",
    ),
):
    """Search, fine-tune and pack a run.

    Searches the bits of each layer, and writes a run directory whose weights, model.slq, fit the budget to the byte.
    Repeat the command to resume it. The reported metrics exclude the samples that policies were evaluated on. With
    --policy, nothing is searched; a run that was trained with quantised weights is only packed. --stop-after ends after
    one stage, which leaves its result in DIR/work; the same command without --stop-after goes on from it.
    """

    out: Path = option("--out", "DIR", "folder to write; it becomes a run directory", default=MISSING)
    stop_after: Literal["search", "finetune"] | None = option("--stop-after", None, "end after this stage [pack]")
    policy: Path | None = option("--policy", "FILE", "weight format of each layer, instead of a search")


class CompressSearchOptions(
    FloatRun,
    BudgetOptions,
    ProtectionOptions,
    DeviceCommand,
    name="compress search",
    run="compress.search",
    examples=("compress search runs/a --ratio 0.1 --method ddpg,hybrid --out searched",),
):
    """Search the bits of each layer, and compare searches.

    DIR gets the policy.json of the best search, which 'compress run --policy' takes, the one of each other, and a
    table. Repeat the command to resume it.
    """

    method: str = option(
        "--method", "NAME[,NAME...]", "one, several or all: see 'sightline list searches'", default="hybrid"
    )
    out: Path = option("--out", "DIR", "folder to write", default=MISSING)


class CompressReportOptions(
    FloatRun,
    BudgetOptions,
    TuningOptions,
    PackOptions,
    DeviceCommand,
    name="compress report",
    run="compress.report",
    examples=("compress report runs/a --ratio 0.1 --seeds 3 --out table",),
):
    """Tabulate the steps from float to mixed bits.

    The rows are also fine-tuned and distilled. The first and the last layer have 8 bits in some rows, and the bits of a
    search in others; for comparison, the float run is trained for as long. Repeat the command to resume it, or for the
    rows of another budget.
    """

    ratio: float | None = option("--ratio", "R", "budget, as a ratio of the bytes in float32 [0.1]")
    on: Literal["file", "codebook", "weights"] = option(
        "--on", None, "what the budget counts: the file, or layers with or without codebooks", default="weights"
    )
    epochs: int | None = option("--epochs", "N", "epochs of fine-tuning [a quarter of the run's]", min=1)
    seeds: int = option("--seeds", "N", "runs per row, for its spread", default=1, min=1)
    out: Path = option("--out", "DIR", "folder to write", default=MISSING)


class CompressSizeOptions(
    PluginCommand,
    name="compress size",
    run="compress.size",
    examples=("compress size runs/a", "compress size runs/a --policy policy.json"),
):
    """Compute the bytes of a packed run, and write nothing.

    By --policy, or for 1 to 8 bits in all layers.
    """

    runs: tuple[Path, ...] = argument(
        "RUN [KEY=VALUE]...",
        "a run directory; then overrides of its model (model.fused=false)",
        key_values="overrides",
    )
    overrides: tuple[str, ...] = ()
    checkpoint: str = CHECKPOINT
    policy: Path | None = option("--policy", "FILE", "weight format of each layer")


COMPRESS_COMMANDS = (CompressRunOptions, CompressSearchOptions, CompressReportOptions, CompressSizeOptions)
