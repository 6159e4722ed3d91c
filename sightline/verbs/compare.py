"""`sightline compare`: compare two variants of a network layer by layer, record a step, run the matrix."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sightline.commands.prove import CompareOptions
from sightline.config import RunConfig
from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.contract.pytree import tree_leaves
from sightline.engine.build import TrainingSetup, build
from sightline.engine.device import set_backends
from sightline.engine.distributed import start_world
from sightline.engine.run_loading import OpenRun, open_run
from sightline.instrument.judge import INFINITE_RATIO, MAX_ROUNDING_UNITS
from sightline.instrument.memory import peak_of_run
from sightline.runs.run_directory import write_document, write_file
from sightline.verbs.output import load_config, print_note, show_table
from sightline.workbench.compare.comparison import (
    OTHER_KERNELS,
    ComparisonSubject,
    VariantComparison,
    compare_networks,
    make_record,
)
from sightline.workbench.compare.layerwise import LayerComparison
from sightline.workbench.compare.recording import write_record
from sightline.workbench.compare.report import (
    NOT_AVAILABLE,
    STEPS,
    CellResult,
    cells,
    encode_comparison_page,
    run_cell,
    verdict,
)
from sightline.workbench.compare.repro import LayerOrigin, assert_empty_folder, write_repro
from sightline.workbench.describe.report import first_samples

_COLUMNS = ("layer", "class", "forward", "backward", "farthest off")
_MATRIX = ("format", "device", "cuDNN", "TF32", *(f"loss at {step}" for step in STEPS), "s/step", "peak MiB")


_MAX_NUMBERS = 2**18
"""Numbers per sample (64 x 64 x 64 voxels) above which one sample is compared, over two steps."""


def compare_variants(options: CompareOptions) -> int:
    """Compare, record, or run the matrix; exit code 1 where variants diverge."""
    is_record = options.paths[:1] == (Path("record"),) and not Path("record").exists()
    paths = options.paths[1:] if is_record else options.paths
    if len(paths) != 1:
        raise UserError(f"compare: give one config or run, not {len(paths)}")
    (path,) = paths
    _assert_goes_together(options, is_record=is_record)
    config = load_config(path, options.overrides, options.plugins)
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        opened = open_run(path, config=config, world=world)
        subject, num_steps = make_subject(opened, options.samples, options.steps, note=print_note)
        if options.matrix:
            return _matrix(subject, options.json)
        if is_record:
            assert options.out is not None
            write_record(options.out, make_record(subject, num_steps=num_steps))
            print_note(
                f"recorded: {options.out}, a step of {len(subject.keys)} samples; "
                f"sightline compare CONFIG --against {options.out}"
            )
            return 0
        assert options.against is not None
        comparison = compare_networks(subject, options.against, keys=options.keys, num_steps=num_steps)
    return _report(comparison, config, subject.built, options)


def make_subject(
    opened: OpenRun, samples: int | None, steps: int | None, *, note: Callable[[str], object]
) -> tuple[ComparisonSubject, int]:
    """Build what is compared of an opened run or config, and the number of optimiser steps; both have defaults."""
    config = opened.config
    if config.teacher is not None and config.teacher.features:
        raise UserError(
            "compare: losses of teacher.features are not supported; leave out that loss, and set teacher.features=[]"
        )
    set_backends(config.train)
    built = _build_setup(opened, note)
    recipe = registry.optimizers.build(config.optimizer, facts=built.data.facts)
    is_large = _count_inputs(built) > _MAX_NUMBERS
    count = samples or min(1 if is_large else 4, config.train.batch_size)
    num_steps = steps if steps is not None else 2 if is_large else 5
    return ComparisonSubject(built, recipe, tuple(first_samples(built.job, count)), opened.world.device), num_steps


def _count_inputs(built: TrainingSetup) -> int:
    """Count the numbers of one sample that the model reads."""
    batch = built.job.stream.reader(first_samples(built.job, 1))
    names = inspect.signature(built.job.model.forward).parameters
    return sum(tensor.numel() for name, value in batch.items() if name in names for _, tensor in tree_leaves(value))


def _build_setup(opened: OpenRun, note: Callable[[str], object]) -> TrainingSetup:
    """Build the training setup with the initial weights, or for a run directory with the trained ones."""
    if opened.config.init is not None and opened.files is None:
        return opened.training_setup
    built = build(opened.config, opened.world, is_resumed=True)
    note(f"batch: the first samples of data set '{opened.config.data.name}', with its training transforms")
    if opened.files is not None:
        opened.load_into(built.job.model)
    return built


def _report(comparison: VariantComparison, config: RunConfig, built: TrainingSetup, options: CompareOptions) -> int:
    for line in comparison.notes:
        print_note(line)
    _show_comparison(comparison)
    title = f"sightline compare: {config.name}"
    write_file(options.html, encode_comparison_page(comparison, title=title) if options.html is not None else "")
    write_document(options.json, comparison.to_dict())
    print_note(verdict(comparison))
    for line in comparison.settings:
        print_note(f"{comparison.guilty_rows[0].layer}: {line}")
    if options.repro is not None:
        file = Path(str(options.against)) if str(options.against).endswith(".py") else None
        print_note(write_repro(options.repro, comparison, LayerOrigin(config, built.data.facts, options.plugins, file)))
    return 0 if comparison.is_equal else 1


def _show_comparison(comparison: VariantComparison) -> None:
    """Print a row per layer in order of execution: its largest deviation forward and backward, in rounding units."""
    rows: dict[str, dict[str, LayerComparison]] = {}
    for row in comparison.rows:
        worst_by_pass = rows.setdefault(row.layer, {})
        pass_name = "backward" if row.which == "backward" else "forward"
        if pass_name not in worst_by_pass or row.deviation.ratio > worst_by_pass[pass_name].deviation.ratio:
            worst_by_pass[pass_name] = row
    lines = []
    for layer, worst_by_pass in rows.items():
        worst = max(worst_by_pass.values(), key=lambda row: row.deviation.ratio)
        worst_tensor = f"{worst.what}{'  <- diverges' if worst.is_guilty else ''}"
        lines.append(
            [
                layer,
                worst.class_name,
                *(_format_ratio(worst_by_pass.get(pass_name)) for pass_name in ("forward", "backward")),
                worst_tensor,
            ]
        )
    title = (
        f"{comparison.variant}, against {comparison.reference}: "
        f"rounding units, up to {MAX_ROUNDING_UNITS:g} are explained"
    )
    show_table(title, _COLUMNS, lines, unbroken="layer", droppable=("farthest off", "class"))
    if comparison.trace is not None:
        steps = zip(comparison.trace.losses, comparison.trace.expected, comparison.trace.tolerated, strict=True)
        lines = [[str(n), f"{a:.7g}", f"{b:.7g}", f"{abs(a - b):.2g}", f"{c:.2g}"] for n, (a, b, c) in enumerate(steps)]
        show_table("optimiser steps on this batch", ("step", "loss", "reference", "apart", "explained"), lines)


def _format_ratio(row: LayerComparison | None) -> str:
    if row is None:
        return ""
    return "beyond measure" if row.deviation.ratio >= INFINITE_RATIO else f"{row.deviation.ratio:.3g}"


def _matrix(subject: ComparisonSubject, json: Path | None) -> int:
    """Run and print all cells of the matrix; those that this machine cannot run read 'not available'."""
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
    """Raise UserError for options that do not go together."""
    if is_record:
        if options.out is None:
            raise UserError("compare record: give the folder of the record: --out RECORD")
        if options.against or options.matrix:
            raise UserError("compare record: records one variant; leave out --against and --matrix")
        for name in ("json", "html", "repro", "keys"):
            if getattr(options, name) is not None:
                raise UserError(f"compare record: --{name} belongs to a comparison; leave it out")
        return
    if options.out is not None:
        raise UserError("--out: belongs to 'sightline compare record'; give --json, --html or --repro")
    if options.repro is not None:
        assert_empty_folder(options.repro)
        if options.against in OTHER_KERNELS:
            raise UserError(
                f"--repro: its script cannot choose kernels or devices, as --against {options.against} does"
            )
    if options.matrix == (options.against is not None):
        raise UserError("compare: give either --against or --matrix")
    if options.matrix and (options.html or options.repro or options.keys or options.steps is not None):
        raise UserError(f"--matrix: goes with --json and --samples; its steps are {', '.join(map(str, STEPS))}")
