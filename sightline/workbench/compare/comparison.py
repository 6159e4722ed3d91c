"""Comparison of two variants of one network: the runs, their layers and their losses.

Comparison of a batch's data after each transform; the first stage that differs is reported.

Comparison of a compiled network with the eager one: as a whole, and by bisection if it differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.config.run_config import to_plain
from sightline.contract.errors import UserError
from sightline.contract.pytree import tree_leaves
from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.contract.types import Batch, SampleKey
from sightline.engine.build import TrainingSetup
from sightline.engine.device import Precision
from sightline.engine.optimizers import OptimizerSpec
from sightline.engine.train import TrainState
from sightline.instrument import ModuleCall, copy_module
from sightline.instrument.formats import FORMATS, TF32, Format, is_tf32_allowed
from sightline.instrument.judge import Deviation, max_abs_difference
from sightline.layers.batch_norm import disable_cudnn_batch_norm
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.compare.external_model import (
    Bridge,
    build_reference,
    has_same_structure,
    load_matched_weights,
    match_keys,
    prepare_foreign,
    translate_recording,
)
from sightline.workbench.compare.layerwise import LayerComparison, compare_layerwise, differing_settings, find_module
from sightline.workbench.compare.recording import Record, StepRecording, is_record, read_record
from sightline.workbench.compare.steps import LossTrace, losses_over_steps, trace_losses
from sightline.workbench.compare.variants import ModelVariant, deterministic_copy, record_step

Stages = list[tuple[str, dict[str, Any]]]
RAW = "(data set)"


def record_stages(reader: BatchReader, keys: Sequence[SampleKey]) -> Stages:
    """Record the raw samples and the samples after each transform; field names end in the sample's number."""
    stages: dict[int, tuple[str, dict[str, Any]]] = {}
    for number, key in enumerate(keys):
        for index, (name, sample) in enumerate(reader.sample_stages(key)):
            _, fields = stages.setdefault(index, (name, {}))
            fields |= {f"{field}.{number}": value for field, value in sample.items() if isinstance(value, Tensor)}
    return [stages[index] for index in sorted(stages)]


def compare_stages(recorded: Stages, expected: Stages) -> list[LayerComparison]:
    """Compare stage by stage, up to the first that differs: later stages only propagate the difference.

    The same operations in the same order compute the data: values may differ by ulps of float32.
    """
    rows: list[LayerComparison] = []
    for index in range(max(len(recorded), len(expected))):
        names = [stages[index][0] or RAW if index < len(stages) else "nothing" for stages in (recorded, expected)]
        if names[0] != names[1]:
            note = f"{names[0]} where the reference has {names[1]}"
            return [*rows, _make_row(names[0], "stage", Deviation(float("inf"), 1.0, 1.0, 1, note=note))]
        worst = _find_worst(recorded[index][1], expected[index][1])
        if worst is None:
            continue
        rows.append(_make_row(names[0], *worst))
        if rows[-1].is_guilty:
            break
    return rows


def _find_worst(recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[str, Deviation] | None:
    tensors, expected_tensors = dict(tree_leaves(dict(recorded))), dict(tree_leaves(dict(expected)))
    missing = sorted(tensors.keys() ^ expected_tensors.keys())
    if missing:
        side = "only here" if missing[0] in tensors else "missing here"
        return missing[0], Deviation(float("inf"), 1.0, 1.0, 1, note=side)
    deviations = {name: _compute_deviation(tensors[name], expected_tensors[name]) for name in tensors}
    return max(deviations.items(), key=lambda item: item[1].ratio) if deviations else None


def _compute_deviation(recorded: Tensor, expected: Tensor) -> Deviation:
    if recorded.shape != expected.shape:
        note = f"shape {tuple(recorded.shape)}, the reference's is {tuple(expected.shape)}"
        return Deviation(float("inf"), 1.0, 1.0, expected.numel(), note=note)
    is_real = expected.is_floating_point()
    unit = FORMATS[torch.float32 if is_real else torch.float64].unit_of_largest(expected)
    scale = float(expected.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if expected.numel() else 0.0
    return Deviation(max_abs_difference(recorded, expected), unit, scale, expected.numel())


def _make_row(stage: str, what: str, deviation: Deviation) -> LayerComparison:
    return LayerComparison(stage, "", "data", what, deviation, "float32")


def compare_compiled(
    job: TrainState, variant: ModelVariant, reference: ModelVariant, batch: Batch
) -> tuple[list[LayerComparison], list[str]]:
    """Compare the compiled network as a whole; if rows are guilty, find the layer whose compiling causes it.

    Returns the rows, and notes. A compiled network has no layers to inspect. So layers are taken out of the compiled
    part, the first half of the candidates each time, until one layer remains whose compiling makes the difference.
    """
    order = [call.path for call in record_step(job, variant, variant.batch(batch)).calls if call.path]
    layers = [path for path in dict.fromkeys(order) if not any(other.startswith(f"{path}.") for other in order)]

    def rows_with(eager: Sequence[str]) -> list[LayerComparison]:
        return _compare_with_eager(job, variant, reference, batch, eager)

    rows = rows_with([])
    if not any(row.is_guilty for row in rows):
        return rows, ["the compiled network was compared as a whole"]
    first = bisect_layers(layers, lambda eager: any(row.is_guilty for row in rows_with(eager)))
    notes = [f"uncompiled up to {first}, the network agrees; with {first} compiled it does not"] if first else []
    named_rows = [row if first is None else _with_layer(row, first) for row in rows]
    return named_rows, notes


def bisect_layers(layers: Sequence[str], is_guilty: Callable[[Sequence[str]], bool]) -> str | None:
    """Find the last layer of the shortest eager prefix with which the network agrees; None if no prefix helps.

    `is_guilty(prefix)` returns True if the network still deviates with these layers eager. Source: bisection.
    """
    if not layers or is_guilty(layers):
        return None
    low, high = 0, len(layers)  # with the first `low` it deviates, with the first `high` it does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_guilty(layers[:middle]) else (low, middle)
    return layers[high - 1]


def _compare_with_eager(
    job: TrainState, variant: ModelVariant, reference: ModelVariant, batch: Batch, eager: Sequence[str]
) -> list[LayerComparison]:
    model = deterministic_copy(variant.model, dtype=variant.precision.parameter_dtype, device=variant.device)
    modules = dict(model.named_modules())
    for path in eager:
        modules[path].forward = torch.compiler.disable(modules[path].forward)
    compiled = ModelVariant(
        "compiled", _Whole(model), variant.precision, variant.device, variant.cudnn, inner="network._orig_mod"
    )
    recording = record_step(job, compiled, compiled.batch(batch), hooked=[""])
    calls = [_rename_buffers(call) for call in recording.calls]
    gradients = {name.removeprefix("network._orig_mod."): g for name, g in recording.gradients.items()}
    plain = StepRecording(calls, recording.losses, gradients, recording.format, prepared=recording.prepared)
    torch.compiler.reset()
    return compare_layerwise(plain, reference, job, reference.batch(compiled.batch(batch)))


class _Whole(nn.Module):
    """Compiled network with the model's call signature."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = torch.compile(model)

    def forward(self, **inputs: Any) -> Any:
        return self.network(**inputs)


def _rename_buffers(call: ModuleCall) -> ModuleCall:
    call.buffers = {name.removeprefix("network._orig_mod."): values for name, values in call.buffers.items()}
    return call


def _with_layer(row: LayerComparison, layer: str) -> LayerComparison:
    return replace(row, layer=layer) if row.is_guilty else row


OTHER_KERNELS = ("cuda", "no-cudnn", "native-batch-norm", "compiled")
AGAINST = ("float64", "float32", "bfloat16", *OTHER_KERNELS)
_DIGITS = {"float64": 53, "float32": 24, "tf32": 24, "fp16": 11, "bf16": 8}


@dataclass(frozen=True)
class ComparisonSubject:
    """Subject of a comparison: a run's training setup, its optimizer recipe, and the sample keys of one step."""

    built: TrainingSetup
    recipe: OptimizerSpec
    keys: Sequence[SampleKey]
    device: torch.device

    @property
    def batch(self) -> Batch:
        """The samples as the loop reads them, before they go to a device."""
        return self.built.job.stream.reader(list(self.keys))


@dataclass(frozen=True, repr=False)
class VariantComparison:
    """Result of a comparison: rows in the order of execution, losses over some steps, and notes.

    `variant` ran unchanged; `reference`, in float64, is what its layers were compared with.
    """

    variant: str
    reference: str
    rows: tuple[LayerComparison, ...]
    trace: LossTrace | None = None
    notes: tuple[str, ...] = ()
    models: tuple[nn.Module, nn.Module] | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        guilty = ", ".join(dict.fromkeys(row.layer for row in self.guilty_rows))
        result = "equal" if self.is_equal else f"diverges in {guilty or 'the losses'}"
        return f"VariantComparison({self.variant} against {self.reference}, {len(self.rows)} rows: {result})"

    @property
    def guilty_rows(self) -> list[LayerComparison]:
        """The rows that rounding does not explain, in the order of execution."""
        return [row for row in self.rows if row.is_guilty]

    @property
    def settings(self) -> list[str]:
        """Attributes that differ between the variant and the reference in the first guilty layer."""
        if not self.guilty_rows or self.models is None:
            return []
        first, second = (find_module(model, self.guilty_rows[0]) for model in self.models)
        return [] if first is None or second is None else differing_settings(first, second)

    @property
    def parts_at_step(self) -> int | None:
        """The first optimiser step, counted from 0, whose losses rounding does not explain."""
        return None if self.trace is None else self.trace.first_diverging_step

    @property
    def is_equal(self) -> bool:
        """True if rounding explains every row and loss; False if a step's losses are not finite in both variants."""
        is_number = self.trace is None or self.trace.is_none_from is None
        return not self.guilty_rows and self.parts_at_step is None and is_number

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        guilty = self.guilty_rows
        return {
            "equal": self.is_equal,
            "first": _row_to_dict(guilty[0]) if guilty else None,
            "guilty": [_row_to_dict(row) for row in guilty],
            "layers": [_row_to_dict(row) for row in self.rows],
            "parts_at_step": self.parts_at_step,
            "steps": None if self.trace is None else self.trace.to_dict(),
            "variant": self.variant,
            "reference": self.reference,
            "settings": self.settings,
            "notes": list(self.notes),
        }


def compare_networks(
    subject: ComparisonSubject, against: str, *, keys: Path | None = None, num_steps: int = 0
) -> VariantComparison:
    """Compare a run's network with another variant of itself, a reference in a file, or a record.

    Raises UserError for an unknown variant, or one that this machine cannot run.
    """
    path = Path(against)
    if keys is not None and path.suffix != ".py":
        raise UserError(f"--keys {keys}: needs a reference of another implementation, --against FILE.py")
    if against in AGAINST:
        return _compare_with_form(subject, against, num_steps)
    if path.suffix == ".py":
        return _compare_with_file(subject, path, _read_key_map(keys), num_steps)
    if is_record(path):
        return compare_record(subject, read_record(path), name=str(path))
    valid_names = ", ".join(AGAINST)
    raise UserError(f"--against {against}: must be one of {valid_names}, a Python file (FILE.py) or a record")


def make_record(subject: ComparisonSubject, *, num_steps: int = 0) -> Record:
    """Record one step of the run's network in its own precision, with all that another machine needs to compare it."""
    variant = _own_variant(subject)
    batch = variant.batch(subject.batch)
    built = subject.built
    losses = losses_over_steps(variant, built.job, subject.recipe, batch, num_steps=num_steps)
    about = {
        "run": built.config.name,
        "model": built.config.model.name,
        "precision": variant.precision.name,
        "device": variant.device.type,
        "torch": torch.__version__,
        "samples": [list(dataclasses.astuple(key)) for key in subject.keys],
        "recipe": _describe_recipe(built, num_steps),
    }
    return Record(
        record_step(built.job, variant, batch),
        {name: tensor.detach() for name, tensor in variant.model.state_dict().items()},
        subject.batch,
        record_stages(built.data.train.reader, subject.keys),
        losses,
        about,
    )


def compare_record(subject: ComparisonSubject, had: Record, *, name: str) -> VariantComparison:
    """Compare a record from another machine with the run's own layers, on the record's weights and batch."""
    built = subject.built
    samples = [SampleKey(*numbers) for numbers in had.about.get("samples", [])]
    rows = compare_stages(had.stages, record_stages(built.data.train.reader, samples)) if had.stages else []
    model = copy_module(built.job.model)
    mapping = match_keys(had.weights, model.state_dict(), None)
    load_matched_weights(model, had.weights, mapping.pairs)
    reference = _make_reference(subject, model, torch.device("cpu"))
    batch = reference.batch(had.batch)
    rows += compare_layerwise(had.recording, reference, built.job, batch)
    steps = None
    if had.trace:
        steps = trace_losses(had.trace, reference, had.recording.format, built.job, subject.recipe, batch)
    about = f"recorded of {had.about.get('run')} in {had.about.get('precision')} with torch {had.about.get('torch')}"
    notes = [*_differing_recipes(had, built), *(f"guess: {guess}" for guess in mapping.guesses)]
    return VariantComparison(f"{name} ({about})", "float64", tuple(rows), steps, tuple(notes))


def _describe_recipe(built: TrainingSetup, num_steps: int) -> dict[str, Any]:
    """Describe the recipe of optimiser steps: plain values, and the schedule's factor at each step."""
    config = built.config
    return {
        "optimizer": to_plain(config.optimizer),
        "schedule": to_plain(config.schedule),
        "train.clip_norm": config.train.clip_norm,
        "factor of the learning rate": [float(built.job.schedule(step)) for step in range(num_steps)],
    }


def _differing_recipes(record: Record, built: TrainingSetup) -> list[str]:
    """Describe recipe differences that alone may separate the losses."""
    recorded = record.about["recipe"]
    if not record.trace:
        return []
    current = _describe_recipe(built, len(record.trace))
    if recorded.get("factor of the learning rate") == current["factor of the learning rate"]:
        current.pop("schedule")  # other words for the same steps
    return [
        f"{key} differs: {recorded.get(key)} in the record, {value} here: this alone may explain different losses"
        for key, value in current.items()
        if recorded.get(key) != value
    ]


def _compare_with_form(subject: ComparisonSubject, against: str, num_steps: int) -> VariantComparison:
    """Compare the run's layers in another number format, on another device, with other kernels, or compiled."""
    own_variant = _own_variant(subject)
    _assert_available(against, subject)
    device = torch.device("cpu") if against == "cuda" else subject.device
    reference = _make_reference(subject, subject.built.job.model, device)
    variant = own_variant
    if against in ("float64", "float32", "bfloat16"):
        compared_name = "bf16" if against == "bfloat16" else against
        coarse = min((own_variant.precision.name, compared_name), key=lambda name: _DIGITS[name])
        variant = _make_variant(subject, Precision(coarse), subject.device)
    elif against == "cuda":
        variant = _make_variant(subject, own_variant.precision, torch.device("cuda"))
    elif against == "no-cudnn":
        reference = ModelVariant(reference.name, reference.model, reference.precision, device, "off")
    elif against == "native-batch-norm":
        disable_cudnn_batch_norm(reference.model)
    if against == "compiled":
        rows, notes = compare_compiled(subject.built.job, variant, reference, subject.batch)
        return _build_comparison(subject, variant, reference, rows, num_steps, notes)
    rows = _compare_layers(subject, variant, reference)
    return _build_comparison(subject, variant, reference, rows, num_steps, [])


def _compare_with_file(
    subject: ComparisonSubject, path: Path, keys: Mapping[str, str | None] | None, num_steps: int
) -> VariantComparison:
    """Compare our layers, in the run's precision, with the network that a user's file builds."""
    variant, job, exact = _own_variant(subject), subject.built.job, Precision("float64")
    theirs = deterministic_copy(build_reference(path), dtype=torch.float64, device=variant.device)
    batch = variant.batch(subject.batch)
    recording = record_step(job, variant, batch)
    notes: list[str] = []
    if keys is None and has_same_structure(variant.model, theirs):
        load_matched_weights(theirs, variant.model.state_dict(), {name: name for name in variant.model.state_dict()})
        reference = trained = ModelVariant(str(path), theirs, exact, variant.device)
    else:
        if job.frozen:
            raise UserError(f"optimizer.frozen: {path} names its modules otherwise; compare with optimizer.frozen=[]")
        foreign, mapping = prepare_foreign(variant.model, theirs, keys, recording)
        recording, alignment_notes = translate_recording(recording, foreign, mapping)
        notes = [*(f"guess: {guess}" for guess in mapping.guesses), *alignment_notes]
        reference = ModelVariant(str(path), foreign, exact, variant.device)
        ours = deterministic_copy(job.model, dtype=torch.float64, device=variant.device)
        trained = ModelVariant(
            str(path), ours, exact, variant.device, on=lambda model: Bridge(model, foreign, mapping.pairs)
        )
    rows = compare_layerwise(recording, reference, job, reference.batch(batch))
    return _build_comparison(subject, variant, trained, rows, num_steps, notes, models=(variant.model, theirs))


def _build_comparison(
    subject: ComparisonSubject,
    variant: ModelVariant,
    reference: ModelVariant,
    rows: Sequence[LayerComparison],
    num_steps: int,
    notes: Sequence[str],
    models: tuple[nn.Module, nn.Module] | None = None,
) -> VariantComparison:
    steps = _compare_losses(subject, variant, reference, num_steps) if num_steps else None
    has_dropout = any(
        isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in subject.built.job.model.modules()
    )
    dropout_notes = (
        ["dropout and stochastic depth are off in both variants: they draw random numbers"] if has_dropout else []
    )
    return VariantComparison(
        variant.name,
        reference.name,
        tuple(rows),
        steps,
        (*dropout_notes, *notes),
        models or (variant.model, reference.model),
    )


def _compare_layers(
    subject: ComparisonSubject, variant: ModelVariant, reference: ModelVariant
) -> list[LayerComparison]:
    job, batch = subject.built.job, variant.batch(subject.batch)
    recording = record_step(job, variant, batch)
    return compare_layerwise(recording, reference, job, reference.batch(batch))


def _compare_losses(
    subject: ComparisonSubject, variant: ModelVariant, reference: ModelVariant, num_steps: int
) -> LossTrace:
    job, recipe, batch = subject.built.job, subject.recipe, variant.batch(subject.batch)
    losses = losses_over_steps(variant, job, recipe, batch, num_steps=num_steps)
    return trace_losses(losses, reference, _coarsest_format(variant), job, recipe, reference.batch(batch))


def _coarsest_format(variant: ModelVariant) -> Format:
    """Return the coarsest number format that a variant computes in."""
    lowered = {"bf16": FORMATS[torch.bfloat16], "fp16": FORMATS[torch.float16]}.get(variant.precision.name)
    if lowered is None and variant.device.type == "cuda" and variant.format.name == "float32":
        switches = (is_tf32_allowed(torch.backends.cudnn, "conv"), is_tf32_allowed(torch.backends.cuda, "matmul"))
        return TF32 if any(switches) else variant.format
    return lowered or variant.format


def _own_variant(subject: ComparisonSubject) -> ModelVariant:
    return _make_variant(subject, Precision(subject.built.config.train.precision), subject.device)


def _make_variant(subject: ComparisonSubject, precision: Precision, device: torch.device) -> ModelVariant:
    config = subject.built.config
    model = deterministic_copy(subject.built.job.model, dtype=precision.parameter_dtype, device=device)
    name = f"{precision.name} on {device.type}"
    return ModelVariant(name, model, precision, device, "off" if config.train.cudnn == "off" else "on")


def _make_reference(subject: ComparisonSubject, model: nn.Module, device: torch.device) -> ModelVariant:
    exact = Precision("float64")
    return ModelVariant(
        f"float64 on {device.type}", deterministic_copy(model, dtype=torch.float64, device=device), exact, device
    )


def _assert_available(against: str, subject: ComparisonSubject) -> None:
    if against == "cuda" and not torch.cuda.is_available():
        raise UserError("--against cuda: this machine has no CUDA device; not available")
    if against in ("no-cudnn", "native-batch-norm") and subject.device.type != "cuda":
        raise UserError(f"--against {against}: differs only on a GPU with cuDNN; not available on this device")


def _read_key_map(path: Path | None) -> dict[str, str | None] | None:
    """Read the user's map of names. Raises UserError if the file is not one."""
    if path is None:
        return None
    try:
        document = parse_json(read_regular_file(path))
    except (OSError, ValueError) as error:
        raise UserError(f"--keys {path}: cannot be read as JSON: {error}") from None
    is_map = isinstance(document, dict) and all(value is None or isinstance(value, str) for value in document.values())
    if not is_map:
        raise UserError(f'--keys {path}: has to be an object of our names and theirs (or null): {{"stem": "conv1"}}')
    return document


def _row_to_dict(row: LayerComparison) -> dict[str, Any]:
    deviation = row.deviation
    return {
        "layer": row.layer,
        "class": row.class_name,
        "pass": row.which,
        "what": row.what,
        "inside": row.inside,
        "ratio": deviation.ratio,
        "measured": deviation.relative_error,
        "tolerated": deviation.relative_bound,
        "format": row.format,
        "entries": deviation.entries,
        "undefined": deviation.undefined,
        "note": deviation.note,
    }
