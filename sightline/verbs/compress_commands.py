"""`sightline compress` as the command line declares it; the rooms it needs are imported when it runs."""

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
    """`compress RUN` is `compress run RUN`."""

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
        help="a run directory; then arguments of the search (max_evaluations=100) and what is laid over the config of "
        "the fine-tuning (train.batch_size=32)",
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="the folder to write; it becomes a run directory")]
Ratio = Annotated[float | None, typer.Option("--ratio", metavar="R", help="of the bytes in float32 that may be used")]
Bytes = Annotated[int | None, typer.Option("--bytes", metavar="N", help="bytes that may be used, instead of a ratio")]
On = Annotated[
    str,
    typer.Option("--on", metavar="file|codebook|weights", help="what is counted: codebook and weights are of layers"),
]
Bits = Annotated[str, typer.Option("--bits", metavar="N,N...", help="bits that a layer may have: 2,4 or 1-8")]
Kind = Annotated[str, typer.Option("--kind", metavar="codebook|linear", help="how weights are quantised")]
PerChannel = Annotated[bool, typer.Option("--per-channel", help="a codebook or a step for each output channel")]
Protect = Annotated[
    list[str] | None, typer.Option("--protect", metavar="NAME", help="layers that are not lowered: head.*; repeatable")
]
ProtectEnds = Annotated[int, typer.Option("--protect-ends", metavar="N", min=0, help="so many first and last layers")]
ProtectBits = Annotated[
    int, typer.Option("--protect-bits", metavar="N", help="of protected layers: 1 to 8, 16, or 32 for float32")
]
Activations = Annotated[
    int | None,
    typer.Option("--activations", metavar="N", help="bits of the layers' inputs as well; needs model.fused=false"),
]
Calibration = Annotated[
    int, typer.Option("--calibration", metavar="N", min=1, help="samples that a policy is tried on")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="of the calibration samples and of the search")]
Method = Annotated[str, typer.Option("--method", metavar="NAME", help="see 'sightline list searches'")]
Methods = Annotated[
    str, typer.Option("--method", metavar="NAME[,NAME...]", help="see 'sightline list searches'; all, for each of them")
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", metavar="N", min=0, help="of fine-tuning, 0 for none [a quarter of the run's]")
]
Rate = Annotated[float, typer.Option("--rate", metavar="F", help="learning rate of fine-tuning, of the run's own")]
Distil = Annotated[
    bool | None,
    typer.Option("--distil/--no-distil", help="learn from the float model's logits as well [where the run has labels]"),
]
BatchNorm = Annotated[
    int,
    typer.Option("--batch-norm", metavar="N", min=0, help="training batches that batch norms are estimated on anew"),
]
PolicyFile = Annotated[Path, typer.Option("--policy", metavar="FILE", help="what each layer is stored as")]
ALL_BITS = "1-8"
NUM_BATCHES = 50


def _verb() -> Any:
    with gc_paused():
        from sightline.verbs import compress as verb
    return verb


def _made(kind: Any, given: dict[str, Any]) -> Any:
    """A record of the verb from the options that have the names of its fields."""
    fields = {field.name: given[field.name] for field in dataclasses.fields(kind) if field.name in given}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def _subject(given: dict[str, Any]) -> Any:
    runs, words = split_words(given["words"])
    plugins = tuple(given["plugin"] or ())
    return _verb().CompressTarget(runs, words, given["checkpoint"], plugins, given.get("device", "cpu"))


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
    """Search, fine-tune and pack: a run directory whose weights are model.slq, within the budget to the byte.

    Repeat the command to resume it. Samples that searches are tried on are held out of the figures.
    """
    given, verb = dict(locals()), _verb()
    asked = _made(verb.Budget, given)
    return verb.compress(
        _subject(given),
        asked,
        _made(verb.FineTuneOptions, given),
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
    """Search the bits of each layer within a budget: policy.json, and a table where several methods are given."""
    given, verb = dict(locals()), _verb()
    asked = _made(verb.Budget, given)
    return verb.search(_subject(given), asked, methods=method, out=out, json=json)


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
    given, verb = dict(locals()), _verb()
    return verb.apply(_subject(given), policy, num_batches=batch_norm, out=out, json=json)


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
    """Train a run further with the weights quantised by a policy; 'compress pack' packs the result.

    Repeat the command to resume it.
    """
    given, verb = dict(locals()), _verb()
    return verb.finetune(_subject(given), policy, _made(verb.FineTuneOptions, given), out=out)


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
    given, verb = dict(locals()), _verb()
    return verb.pack(_subject(given), num_batches=batch_norm, out=out, json=json)


@compress_app.command()
def size(
    words: Words,
    policy: Annotated[Path | None, typer.Option("--policy", metavar="FILE", help="[1 to 8 bits]")] = None,
    checkpoint: Checkpoint = "last",
    plugin: Plugins = None,
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """Print the bytes of a run's packed file without writing it: by a policy, or at 1 to 8 bits everywhere."""
    given, verb = dict(locals()), _verb()
    return verb.size(_subject(given), policy, json=json)


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
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="runs of each row, for its spread")] = 1,
    epochs: Epochs = None,
    rate: Rate = 0.1,
    batch_norm: BatchNorm = NUM_BATCHES,
    checkpoint: Checkpoint = "last",
    plugin: Plugins = None,
    device: Device = "auto",
    json: Json = None,
    traceback: Traceback = False,
) -> int:
    """A table from the float run to mixed bits, fine-tuned and distilled, with the float run trained as long beside it.

    Mix: 4 bits everywhere, 8 in the first and the last layer. Repeat the command to resume it. Writes
    compression.json and compression.md into --out after every row.
    """
    given, verb = dict(locals()), _verb()
    given["ratio"] = 0.1 if ratio is None and num_bytes is None else ratio
    asked = _made(verb.Budget, given)
    return verb.report(
        _subject(given),
        asked,
        _made(verb.FineTuneOptions, given),
        method=method,
        num_batches=batch_norm,
        num_seeds=seeds,
        out=out,
        json=json,
    )
