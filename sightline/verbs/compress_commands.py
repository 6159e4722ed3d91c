"""Command line of `sightline compress`; the implementation is imported when a command runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sightline.gc_pause import gc_paused
from sightline.verbs.options import Checkpoint, Device, Json, Plugins, Traceback, split_words

__all__ = ["compress_app"]


class _RunByDefault(TyperGroup):
    """Command group in which `compress RUN` means `compress run RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_named = not args or args[0] in self.commands or args[0] == "--help"
        return super().parse_args(ctx, args if is_named else ["run", *args])


compress_app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make a trained run small: 'sightline compress RUN --ratio 0.1 --out DIR' searches the bits of each layer, "
    "fine-tunes, and packs. The other commands are its steps.",
)

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN [KEY=VALUE]...",
        help="a run directory; then arguments of the search (max_evaluations=100) and overrides of the config of "
        "the fine-tuning (train.batch_size=32)",
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder to write; it becomes a run directory")]
Ratio = Annotated[float | None, typer.Option("--ratio", metavar="R", help="budget, as a ratio of the bytes in float32")]
Bytes = Annotated[int | None, typer.Option("--bytes", metavar="N", help="budget in bytes, instead of --ratio")]
On = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="file|codebook|weights",
        help="what the budget counts: the file, or layers with or without codebooks",
    ),
]
Bits = Annotated[str, typer.Option("--bits", metavar="N,N...", help="bits to choose from per layer: 2,4 or 1-8")]
Kind = Annotated[str, typer.Option("--kind", metavar="codebook|linear", help="quantisation of the weights")]
PerChannel = Annotated[bool, typer.Option("--per-channel", help="one codebook or step size per output channel")]
Protect = Annotated[
    list[str] | None,
    typer.Option("--protect", metavar="NAME", help="layers to keep at --protect-bits: head.*; repeatable"),
]
ProtectEnds = Annotated[
    int, typer.Option("--protect-ends", metavar="N", min=0, help="protect this many first and last layers")
]
ProtectBits = Annotated[
    int, typer.Option("--protect-bits", metavar="N", help="bits of protected layers: 1 to 8, 16, or 32 for float32")
]
Activations = Annotated[
    int | None,
    typer.Option(
        "--activations", metavar="N", help="also quantise layer inputs to these bits; needs model.fused=false"
    ),
]
Calibration = Annotated[
    int, typer.Option("--calibration", metavar="N", min=1, help="samples that policies are evaluated on")
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="seed of the calibration samples and of the search")
]
Method = Annotated[str, typer.Option("--method", metavar="NAME", help="see 'sightline list searches'")]
Methods = Annotated[
    str, typer.Option("--method", metavar="NAME[,NAME...]", help="see 'sightline list searches'; all, for each of them")
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", metavar="N", min=0, help="epochs of fine-tuning, 0 for none [a quarter of the run's]"),
]
Rate = Annotated[
    float, typer.Option("--rate", metavar="F", help="learning rate of fine-tuning, as a factor of the run's")
]
Distil = Annotated[
    bool | None,
    typer.Option("--distil/--no-distil", help="also learn from the float model's logits [if the run has labels]"),
]
BatchNorm = Annotated[
    int,
    typer.Option("--batch-norm", metavar="N", min=0, help="training batches to re-estimate batch norm statistics on"),
]
PolicyFile = Annotated[Path, typer.Option("--policy", metavar="FILE", help="policy: the weight format of each layer")]
ALL_BITS = "1-8"
NUM_BATCHES = 50


def _import_verb() -> Any:
    with gc_paused():
        from sightline.verbs import compress as verb
    return verb


def _from_arguments(kind: Any, arguments: dict[str, Any]) -> Any:
    """Build a dataclass of the verb from the arguments of a command that are named like its fields."""
    fields = {field.name: arguments[field.name] for field in dataclasses.fields(kind) if field.name in arguments}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def _target(arguments: dict[str, Any]) -> Any:
    runs, overrides = split_words(arguments["words"])
    plugins = tuple(arguments["plugin"] or ())
    return _import_verb().CompressTarget(
        runs, overrides, arguments["checkpoint"], plugins, arguments.get("device", "cpu")
    )


@compress_app.command()
def run(
    words: Words,
    out: Out,
    ratio: Ratio = None,
    num_bytes: Bytes = None,
    on: On = "file",
    method: Method = "hybrid",
    bits: Bits = ALL_BITS,
    kind: Kind = "codebook",
    per_channel: PerChannel = False,
    protect: Protect = None,
    protect_ends: ProtectEnds = 0,
    protect_bits: ProtectBits = 8,
    activations: Activations = None,
    calibration: Calibration = 256,
    seed: Seed = 0,
    epochs: Epochs = None,
    rate: Rate = 0.1,
    is_distilled: Distil = None,
    batch_norm: BatchNorm = NUM_BATCHES,
    checkpoint: Checkpoint = "last",
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Search, fine-tune and pack a run.

    Writes a run directory whose weights, model.slq, fit the budget to the byte. Repeat the command to resume it. The
    reported metrics exclude the samples that policies were evaluated on.
    """
    arguments, verb = dict(locals()), _import_verb()
    budget = _from_arguments(verb.Budget, arguments)
    return verb.compress(
        _target(arguments),
        budget,
        _from_arguments(verb.FineTuneOptions, arguments),
        method=method,
        num_batches=batch_norm,
        out=out,
        json=json,
    )


@compress_app.command()
def search(
    words: Words,
    out: Out,
    ratio: Ratio = None,
    num_bytes: Bytes = None,
    on: On = "file",
    method: Methods = "hybrid",
    bits: Bits = ALL_BITS,
    kind: Kind = "codebook",
    per_channel: PerChannel = False,
    protect: Protect = None,
    protect_ends: ProtectEnds = 0,
    protect_bits: ProtectBits = 8,
    activations: Activations = None,
    calibration: Calibration = 256,
    seed: Seed = 0,
    checkpoint: Checkpoint = "last",
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Search the bits of each layer within a budget.

    Writes policy.json, and prints a table of the methods.
    """
    arguments, verb = dict(locals()), _import_verb()
    budget = _from_arguments(verb.Budget, arguments)
    return verb.search(_target(arguments), budget, methods=method, out=out, json=json)


@compress_app.command()
def apply(
    words: Words,
    policy: PolicyFile,
    out: Out,
    batch_norm: BatchNorm = NUM_BATCHES,
    checkpoint: Checkpoint = "last",
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Quantise a run by a policy and pack it, without fine-tuning."""
    arguments, verb = dict(locals()), _import_verb()
    return verb.apply(_target(arguments), policy, num_batches=batch_norm, out=out, json=json)


@compress_app.command()
def finetune(
    words: Words,
    policy: PolicyFile,
    out: Out,
    epochs: Epochs = None,
    rate: Rate = 0.1,
    is_distilled: Distil = None,
    checkpoint: Checkpoint = "last",
    plugin: Plugins = None,
    device: Device = "auto",
    traceback: Traceback = False,
) -> int:
    """Train a run further with quantised weights.

    'compress pack' packs the result. Repeat the command to resume it.
    """
    arguments, verb = dict(locals()), _import_verb()
    return verb.finetune(_target(arguments), policy, _from_arguments(verb.FineTuneOptions, arguments), out=out)


@compress_app.command()
def pack(
    words: Words,
    out: Out,
    batch_norm: BatchNorm = NUM_BATCHES,
    checkpoint: Checkpoint = "last",
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Pack a run that was trained with quantised weights, and evaluate the file."""
    arguments, verb = dict(locals()), _import_verb()
    return verb.pack(_target(arguments), num_batches=batch_norm, out=out, json=json)


@compress_app.command()
def size(
    words: Words,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="policy to pack by [1 to 8 bits in all layers]")
    ] = None,
    checkpoint: Checkpoint = "last",
    plugin: Plugins = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Print the size of a run's packed file.

    The file is not written. Without --policy, the sizes for 1 to 8 bits in all layers are printed.
    """
    arguments, verb = dict(locals()), _import_verb()
    return verb.size(_target(arguments), policy, json=json)


@compress_app.command()
def report(
    words: Words,
    out: Out,
    ratio: Ratio = None,
    num_bytes: Bytes = None,
    on: On = "weights",
    method: Method = "hybrid",
    bits: Bits = ALL_BITS,
    kind: Kind = "codebook",
    per_channel: PerChannel = False,
    calibration: Calibration = 256,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="runs per row, for its spread")] = 1,
    epochs: Epochs = None,
    rate: Rate = 0.1,
    batch_norm: BatchNorm = NUM_BATCHES,
    checkpoint: Checkpoint = "last",
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Write a table of compression steps.

    The rows lead from the float run to mixed bits, fine-tuned and distilled. For comparison, the float run is trained
    for as long. Mix: 4 bits in all layers, 8 in the first and the last. Repeat the command to resume it. Writes
    compression.json and compression.md into --out after every row.
    """
    arguments, verb = dict(locals()), _import_verb()
    arguments["ratio"] = 0.1 if ratio is None and num_bytes is None else ratio
    budget = _from_arguments(verb.Budget, arguments)
    return verb.report(
        _target(arguments),
        budget,
        _from_arguments(verb.FineTuneOptions, arguments),
        method=method,
        num_batches=batch_norm,
        num_seeds=seeds,
        out=out,
        json=json,
    )
