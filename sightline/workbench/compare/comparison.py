"""Comparison of two variants of one network, or of a network by somebody else: layers, losses, verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from sightline.config.run_config import Cudnn
from sightline.contract.errors import UserError
from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.contract.types import Batch
from sightline.workbench.compare.external_model import (
    Bridge,
    ExternalModel,
    build_reference,
    prepare_foreign,
    translate_recording,
)
from sightline.workbench.compare.layerwise import LayerComparison, compare_layerwise, differing_settings, find_module
from sightline.workbench.compare.recorded_step import STAGES, compare_step
from sightline.workbench.compare.recording import StepRecording
from sightline.workbench.compare.records import StepRecord, is_record, read_record
from sightline.workbench.compare.steps import LossTrace, losses_over_steps, trace_losses
from sightline.workbench.compare.subject import ComparisonSubject
from sightline.workbench.compare.variants import ModelVariant, make_variant, record_step

AGAINST = ("float64", "float32", "bfloat16", "cuda", "no-cudnn", "native-batch-norm")
_PRECISIONS = ("bf16", "fp16", "tf32", "float32", "float64")
"""Number formats of a training, the coarsest first."""


@dataclass(frozen=True, repr=False)
class VariantComparison:
    """Result of a comparison: rows in the order of execution, losses over some steps, and notes.

    `variant` ran unchanged; `reference`, in float64, is what its layers were compared with. A record has no `variants`.
    """

    variant: str
    reference: str
    rows: tuple[LayerComparison, ...]
    trace: LossTrace | None = None
    notes: tuple[str, ...] = ()
    variants: tuple[ModelVariant, ModelVariant] | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        return f"VariantComparison({self.variant} against {self.reference}, {len(self.rows)} rows: {self.verdict})"

    @property
    def guilty_rows(self) -> list[LayerComparison]:
        """The rows that rounding does not explain, in the order of execution."""
        return [row for row in self.rows if row.is_guilty]

    @property
    def is_record(self) -> bool:
        """True if the variant is a step that another program recorded."""
        return self.variants is None

    @property
    def settings(self) -> list[str]:
        """Attributes that differ between the variant and the reference in the first guilty layer."""
        if not self.guilty_rows or self.variants is None:
            return []
        first, second = (find_module(_network_of(variant), self.guilty_rows[0]) for variant in self.variants)
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

    @property
    def verdict(self) -> str:
        """Summary of the comparison in one line."""
        parted = "" if self.parts_at_step is None else f"; the losses diverge at step {self.parts_at_step}"
        if self.trace is not None and self.trace.is_none_from is not None:
            parted += f"; from step {self.trace.is_none_from} on both have losses or gradients that are NaN or infinite"
        if self.guilty_rows:
            stage = f"the first stage that differs: {STAGES[self.guilty_rows[0].which]}; " if self.is_record else ""
            return f"{stage}they diverge first at {self.guilty_rows[0].describe()}{parted}"
        return f"every layer agrees{parted}" if parted else "equal: rounding explains every difference"

    @property
    def stages(self) -> list[tuple[str, int, int]]:
        """Stages of a record in order: name, number of tensors that were compared, and of those that differ."""
        rows = {which: [row.is_guilty for row in self.rows if row.which == which] for which in STAGES}
        return [(STAGES[which], len(flags), sum(flags)) for which, flags in rows.items() if self.is_record]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        guilty = [row.to_dict() for row in self.guilty_rows]
        return {
            "equal": self.is_equal,
            "first": guilty[0] if guilty else None,
            "guilty": guilty,
            "layers": [row.to_dict() for row in self.rows],
            "parts_at_step": self.parts_at_step,
            "steps": None if self.trace is None else self.trace.to_dict(),
            "variant": self.variant,
            "reference": self.reference,
            "settings": self.settings,
            "stages": [{"stage": name, "compared": num, "differ": differ} for name, num, differ in self.stages],
            "notes": list(self.notes),
        }


class Reference(NamedTuple):
    """Reference to compare a network with: a variant of it or a file, by `name`, or a record; `keys` map the names."""

    name: str
    keys: Mapping[str, str | None] | None = None
    record: StepRecord | None = None


def read_reference(against: str, keys: Path | None = None) -> Reference:
    """Read what `against` names, with the map of names in the file `keys`; the network is not needed.

    Raises UserError for an unknown variant, and for a map or a record that cannot be read.
    """
    path = Path(against)
    if (path / "config.yaml").is_file():
        raise UserError(f"--against {against}: is a run; two runs are compared by: sightline runs diff A {against}")
    is_variant, is_file = against in AGAINST, path.suffix == ".py"
    if is_variant and keys is not None:
        raise UserError(f"--keys {keys}: needs a reference of another implementation, --against FILE.py or a record")
    if not is_variant and not is_file and not is_record(path):
        names = ", ".join(AGAINST)
        raise UserError(
            f"--against {against}: must be one of {names}, a Python file (FILE.py), or the folder of a record"
        )
    record = None if is_variant or is_file else read_record(path)
    return Reference(against, _read_key_map(keys), record)


def compare_networks(subject: ComparisonSubject, reference: Reference, *, num_steps: int = 0) -> VariantComparison:
    """Compare a run's network with another variant of itself, with a file's network, or with a record of a step.

    Raises UserError for a variant that this machine cannot run.
    """
    if reference.record is not None:
        return _compare_with_record(subject, reference.record, reference.keys)
    if reference.name not in AGAINST:
        return _compare_with_file(subject, Path(reference.name), reference.keys, num_steps)
    variant, exact = _make_pair(subject, reference.name)
    recording = record_step(subject.built.job, variant, variant.batch(subject.batch))
    return _compare(subject, (variant, exact), recording, num_steps)


def _make_pair(subject: ComparisonSubject, against: str) -> tuple[ModelVariant, ModelVariant]:
    """Make the run's variant, and the float64 one whose layers are the reference. Raises UserError without a GPU."""
    if against == "cuda" and not torch.cuda.is_available():
        raise UserError("--against cuda: this machine has no CUDA device; not available")
    if against in ("no-cudnn", "native-batch-norm") and subject.device.type != "cuda":
        raise UserError(f"--against {against}: differs only on a GPU with cuDNN; not available on this device")
    model, train = subject.built.job.model, subject.built.config.train
    formats = (train.precision, "bf16" if against == "bfloat16" else against)
    precision = min((name for name in formats if name in _PRECISIONS), key=_PRECISIONS.index)
    ours, theirs = (torch.device(name) for name in ("cuda", "cpu")) if against == "cuda" else (subject.device,) * 2
    variant = make_variant(model, precision, ours, cudnn="off" if train.cudnn == "off" else "on")
    kernels: dict[str, Cudnn] = {"no-cudnn": "off", "native-batch-norm": "all_but_batch_norm"}
    return variant, make_variant(model, "float64", theirs, cudnn=kernels.get(against, "on"))


def _compare_with_file(
    subject: ComparisonSubject, path: Path, keys: Mapping[str, str | None] | None, num_steps: int
) -> VariantComparison:
    """Compare our layers, in the run's precision, with the network that a user's file builds."""
    job, device = subject.built.job, subject.device
    if job.frozen:
        raise UserError(f"optimizer.frozen: {path} names its modules otherwise; compare with optimizer.frozen=[]")
    variant, ours = (
        make_variant(job.model, name, device) for name in (subject.built.config.train.precision, "float64")
    )
    theirs = make_variant(build_reference(path), "float64", device)
    recording = record_step(job, variant, variant.batch(subject.batch))
    foreign, mapping = prepare_foreign(variant.model, theirs.model, keys, recording)
    recording, notes = translate_recording(recording, foreign, mapping)
    layers = replace(theirs, name=str(path), model=foreign)
    trained = replace(ours, name=str(path), on=lambda model: Bridge(model, foreign, mapping.pairs))
    notes = [*(f"guess: {guess}" for guess in mapping.guesses), *notes]
    return _compare(subject, (variant, layers), recording, num_steps, trained=trained, notes=notes)


def _compare_with_record(
    subject: ComparisonSubject, step_record: StepRecord, keys: Mapping[str, str | None] | None
) -> VariantComparison:
    """Compare the step that another program recorded with our network in float64, on its inputs and weights."""
    built = subject.built

    def read_batch(indices: Sequence[int] | None) -> Batch:
        keys = subject.keys if indices is None else [replace(subject.keys[0], index=index) for index in indices]
        return built.job.stream.reader(list(keys))

    rows, notes = compare_step(built, subject.recipe, step_record, read_batch, keys)
    name = f"{step_record.path} ({step_record.format.name})"
    return VariantComparison(name, "float64 on cpu", tuple(rows), None, tuple(notes))


def _compare(
    subject: ComparisonSubject,
    variants: tuple[ModelVariant, ModelVariant],
    recording: StepRecording,
    num_steps: int,
    *,
    trained: ModelVariant | None = None,
    notes: Sequence[str] = (),
) -> VariantComparison:
    """Compare a recorded step layer by layer, then the losses over some steps; `trained` takes the reference's."""
    (variant, reference), job, recipe = variants, subject.built.job, subject.recipe
    batch = variant.batch(subject.batch)
    rows = compare_layerwise(recording, reference, job, reference.batch(batch))
    trace = None
    if num_steps:
        losses = losses_over_steps(variant, job, recipe, batch, num_steps=num_steps)
        trained = trained or reference
        trace = trace_losses(losses, trained, variant.coarsest_format, job, recipe, trained.batch(batch))
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in job.model.modules()):
        notes = ["dropout and stochastic depth are off in both variants: they draw random numbers", *notes]
    return VariantComparison(variant.name, reference.name, tuple(rows), trace, tuple(notes), variants)


def _network_of(variant: ModelVariant) -> nn.Module:
    return variant.model.network if isinstance(variant.model, ExternalModel) else variant.model


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
