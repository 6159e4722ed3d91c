"""`sightline compare`: a run's network against another variant of itself, layer by layer; a record; the matrix."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline import registry
from sightline.bench.memory import peak_of_run
from sightline.compare.comparison import (
    OTHER_KERNELS,
    ComparisonSubject,
    VariantComparison,
    compare_networks,
    make_record,
)
from sightline.compare.layerwise import LayerComparison
from sightline.compare.matrix import NOT_AVAILABLE, STEPS, CellResult, cells, run_cell
from sightline.compare.measure import INFINITE_RATIO, MAX_ROUNDING_UNITS
from sightline.compare.page import encode_comparison_page, verdict
from sightline.compare.records import write_record
from sightline.compare.repro import LayerOrigin, assert_empty_folder, write_repro
from sightline.config import RunConfig
from sightline.describe.memory import first_samples
from sightline.describe.sources import build_subject
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import start_world
from sightline.engine.precision import set_backends
from sightline.engine.run_loading import OpenRun, open_run
from sightline.errors import UserError
from sightline.pytree import tree_leaves
from sightline.verbs.common import load_config, write_document, write_file
from sightline.verbs.output import print_note, show_table

__all__ = ["CompareOptions", "compare_variants"]

_COLUMNS = ("layer", "class", "forward", "backward", "farthest off")
_MATRIX = ("format", "device", "cuDNN", "TF32", *(f"loss at {step}" for step in STEPS), "s/step", "peak MiB")


_LARGE = 2**18
"""Numbers in a sample (a volume of 64 voxels a side) beyond which one is compared, and over two steps."""


@dataclass(frozen=True)
class CompareOptions:
    """What the command line asks for; `path` is a config or a run."""

    path: Path
    overrides: tuple[str, ...]
    against: str | None
    keys: Path | None
    steps: int | None
    samples: int | None
    out: Path | None
    matrix: bool
    html: Path | None
    repro: Path | None
    plugins: tuple[Path, ...]
    device: str
    json: Path | None


def compare_variants(options: CompareOptions, *, is_record: bool) -> int:
    """Compare, record, or run the matrix; exit code 1 where variants diverge."""
    _assert_goes_together(options, is_record=is_record)
    config, _ = load_config(options.path, options.overrides, options.plugins)
    if config.teacher is not None and config.teacher.features:
        raise UserError("compare: follows no loss of teacher.features; leave out that loss, and teacher.features=[]")
    set_backends(determinism=config.train.determinism, cudnn=config.train.cudnn)
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        built = _built(open_run(options.path, config=config, world=world))
        recipe = registry.optimizers.build(config.optimizer, facts=built.data.facts)
        is_large = _size_of_sample(built) > _LARGE
        count = options.samples or min(1 if is_large else 4, config.train.batch_size)
        num_steps = options.steps if options.steps is not None else 2 if is_large else 5
        subject = ComparisonSubject(built, recipe, tuple(first_samples(built.job, count)), world.device)
        if options.matrix:
            return _matrix(subject, options.json)
        if is_record:
            assert options.out is not None
            write_record(options.out, make_record(subject, num_steps=num_steps))
            print_note(
                f"recorded: {options.out}, a step of {count} samples; sightline compare CONFIG --against {options.out}"
            )
            return 0
        assert options.against is not None
        found = compare_networks(subject, options.against, keys=options.keys, num_steps=num_steps)
    return _report(found, config, built, options)


def _size_of_sample(built: TrainingSetup) -> int:
    """The numbers that the model reads of one sample."""
    batch = built.job.stream.reader(first_samples(built.job, 1))
    names = inspect.signature(built.job.model.forward).parameters
    return sum(tensor.numel() for name, value in batch.items() if name in names for _, tensor in tree_leaves(value))


def _built(opened: OpenRun) -> TrainingSetup:
    """The run's parts with the weights that it starts from, or of a run directory, those that it came to."""
    if opened.config.init is not None and opened.directory is None:
        return opened.training_setup
    made = build_subject(opened)
    print_note(f"batch: {made.batch}")
    if opened.directory is not None:
        opened.load_into(made.built.job.model)
    return made.built


def _report(found: VariantComparison, config: RunConfig, built: TrainingSetup, options: CompareOptions) -> int:
    for line in found.notes:
        print_note(line)
    _show(found)
    title = f"sightline compare: {config.name}"
    write_file(options.html, encode_comparison_page(found, title=title) if options.html is not None else "")
    write_document(options.json, found.to_dict())
    print_note(verdict(found))
    for line in found.settings:
        print_note(f"{found.guilty_rows[0].layer}: {line}")
    if options.repro is not None:
        file = Path(str(options.against)) if str(options.against).endswith(".py") else None
        print_note(write_repro(options.repro, found, LayerOrigin(config, built.data.facts, options.plugins, file)))
    return 0 if found.is_equal else 1


def _show(found: VariantComparison) -> None:
    """A line for each layer in the order of execution: how many units of rounding it is off, each way."""
    rows: dict[str, dict[str, LayerComparison]] = {}
    for row in found.rows:
        held = rows.setdefault(row.layer, {})
        kind = "backward" if row.which == "backward" else "forward"
        if kind not in held or row.deviation.ratio > held[kind].deviation.ratio:
            held[kind] = row
    lines = []
    for layer, held in rows.items():
        worst = max(held.values(), key=lambda row: row.deviation.ratio)
        worst_tensor = f"{worst.what}{'  <- diverges' if worst.is_guilty else ''}"
        lines.append(
            [layer, worst.class_name, *(_ratio(held.get(kind)) for kind in ("forward", "backward")), worst_tensor]
        )
    title = (
        f"{found.variant}, against {found.reference}: units of rounding, at most {MAX_ROUNDING_UNITS:g} are explained"
    )
    show_table(title, _COLUMNS, lines, unbroken="layer", droppable=("farthest off", "class"))
    if found.trace is not None:
        steps = zip(found.trace.losses, found.trace.expected, found.trace.tolerated, strict=True)
        lines = [[str(n), f"{a:.7g}", f"{b:.7g}", f"{abs(a - b):.2g}", f"{c:.2g}"] for n, (a, b, c) in enumerate(steps)]
        show_table("optimiser steps on this batch", ("step", "loss", "reference", "apart", "explained"), lines)


def _ratio(row: LayerComparison | None) -> str:
    if row is None:
        return ""
    return "beyond measure" if row.deviation.ratio >= INFINITE_RATIO else f"{row.deviation.ratio:.3g}"


def _matrix(subject: ComparisonSubject, json: Path | None) -> int:
    """Every cell in turn; those that this machine cannot run read 'not available'."""
    outcomes = []
    for cell in cells():
        print_note(f"{cell.precision} on {cell.device}" + (f", cuDNN {cell.cudnn}" if cell.cudnn else ""))
        outcomes.append(run_cell(subject, cell, peak=peak_of_run if sys.platform.startswith("linux") else None))
    title = f"{subject.built.config.name}: {len(subject.keys)} samples, the same at every step"
    show_table(title, _MATRIX, [_matrix_row(outcome) for outcome in outcomes])
    document = {"matrix": [outcome.to_dict() for outcome in outcomes], "torch": torch.__version__}
    write_document(json, document)
    return 0


def _matrix_row(outcome: CellResult) -> Sequence[Any]:
    cell = outcome.cell
    tf32 = "" if cell.tf32 is None else "on" if cell.tf32 else "off"
    named = [cell.precision, cell.device, cell.cudnn or "", tf32]
    if outcome.losses is None:
        return [*named, *(NOT_AVAILABLE for _ in STEPS), NOT_AVAILABLE, NOT_AVAILABLE]
    losses = [f"{outcome.losses[step]:.6g}" for step in STEPS]
    peak = "?" if outcome.peak_bytes is None else f"{outcome.peak_bytes / 2**20:.1f}"
    return [*named, *losses, f"{outcome.step_s:.3g}", peak]


def _assert_goes_together(options: CompareOptions, *, is_record: bool) -> None:
    """Raises UserError for options that do not apply."""
    if is_record:
        if options.out is None:
            raise UserError("compare record: give the place of the record: --out RECORD")
        if options.against or options.matrix:
            raise UserError("compare record: keeps one variant; --against and --matrix compare")
        for name in ("json", "html", "repro", "keys"):
            if getattr(options, name) is not None:
                raise UserError(f"compare record: --{name} is for a comparison; leave it out")
        return
    if options.out is not None:
        raise UserError("--out: is for 'sightline compare record'; give --json, --html or --repro")
    if options.repro is not None:
        assert_empty_folder(options.repro)
        if options.against in OTHER_KERNELS:
            raise UserError(f"--repro: its script chooses no kernels or devices; --against {options.against} does")
    if options.matrix == (options.against is not None):
        raise UserError("compare: give either --against or --matrix")
    if options.matrix and (options.html or options.repro or options.keys or options.steps is not None):
        raise UserError(f"--matrix: goes with --json and --samples; its steps are {', '.join(map(str, STEPS))}")
