"""`sightline compare`: compare variants of a network layer by layer, two of them or all that the machine has."""

from __future__ import annotations

import os

from sightline.commands.prove import CompareOptions
from sightline.contract.errors import UserError
from sightline.engine.distributed import start_world
from sightline.engine.run_loading import open_run
from sightline.instrument.judge import INFINITE_RATIO, MAX_ROUNDING_UNITS
from sightline.runs.output_files import write_document
from sightline.verbs.output import load_config, print_note, show_table
from sightline.workbench.compare.comparison import VariantComparison, compare_networks, read_reference
from sightline.workbench.compare.layerwise import LayerComparison
from sightline.workbench.compare.matrix import SHOWN_STEPS, Matrix, run_matrix
from sightline.workbench.compare.repro import assert_empty_folder, write_repro
from sightline.workbench.compare.subject import ComparisonSubject, make_subject

_LOSSES = tuple(f"loss at {step}" for step in SHOWN_STEPS)
_MATRIX_COLUMNS = ("format", "device", "cuDNN", "TF32", "diverges first", *_LOSSES, "s/step", "MiB")


def compare_variants(options: CompareOptions) -> int:
    """Compare variants, print what differs, and return 1 where they diverge."""
    if options.matrix:
        _assert_alone(options, "--matrix", against="float64", keys=None, repro=None)
    for word in options.overrides:
        if os.path.isfile(os.path.join(word, "config.yaml")):
            command = f"sightline runs diff {options.config} {word}"
            raise UserError(f"compare: {word}: is a second run; two runs are compared by: {command}")
    config = load_config(options.config, options.overrides, options.plugins)
    reference = read_reference(options.against, options.keys)
    if reference.record is not None:
        _assert_alone(options, "--against with a record", steps=None, samples=None, repro=None)
    if options.repro is not None:
        assert_empty_folder(options.repro)
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        opened = open_run(options.config, config=config, world=world)
        subject, num_steps = make_subject(opened, options.samples, options.steps, note=print_note)
        if options.matrix:
            return _compare_all(subject, options)
        comparison = compare_networks(subject, reference, num_steps=num_steps)
    for line in comparison.notes:
        print_note(line)
    _show_comparison(comparison)
    write_document(options.json, comparison.to_dict())
    print_note(comparison.verdict)
    for line in comparison.settings:
        print_note(f"{comparison.guilty_rows[0].layer}: {line}")
    if options.repro is not None:
        print_note(write_repro(options.repro, comparison))
    return 0 if comparison.is_equal else 1


def _assert_alone(options: CompareOptions, flag: str, **defaults: object) -> None:
    """Raise UserError for an option that says nothing beside `flag`: one that has another value than its default."""
    flags = dict(CompareOptions.parameters())
    for name, default in defaults.items():
        if getattr(options, name) != default:
            raise UserError(f"{flag}: does not go with {flags[name].flag}; leave one of them out")


def _compare_all(subject: ComparisonSubject, options: CompareOptions) -> int:
    """Print the matrix of all variants, and return 1 where a cell diverges from float64 on the CPU."""
    num_steps = {} if options.steps is None else {"num_steps": options.steps}
    matrix = run_matrix(subject, report=print_note, **num_steps)
    rows = []
    for result in matrix.results:
        cell, losses = result.cell, result.shown_losses
        tf32 = "" if cell.tf32 is None else "on" if cell.tf32 else "off"
        first = result.why_not or ("none" if result.first is None else f"{result.first.layer}, {result.first.which}")
        seconds = "" if result.step_s is None else f"{result.step_s:.3g}"
        peak = "" if result.peak_bytes is None else f"{result.peak_bytes / 2**20:.1f}"
        shown = [f"{losses[step]:.7g}" if step in losses else "" for step in SHOWN_STEPS]
        cudnn = "" if cell.cudnn is None else cell.cudnn.replace("_", " ")
        rows.append([cell.precision, cell.device, cudnn, tf32, first, *shown, seconds, peak])
    title = "one batch in every format, on every device, with all kernels; layers against float64 on cpu"
    show_table(title, _MATRIX_COLUMNS, rows, droppable=("MiB", "s/step", *_LOSSES[:0:-1]))
    write_document(options.json, matrix.to_dict())
    for line in (*matrix.notes, *_describe_diverging(matrix)):
        print_note(line)
    return 0 if matrix.is_equal else 1


def _describe_diverging(matrix: Matrix) -> list[str]:
    """Describe the first diverging layer of each cell that has one."""
    guilty = [f"{result.cell}: {result.first.describe()}" for result in matrix.results if result.first is not None]
    return guilty or ["equal: rounding explains every difference of the cells that ran"]


def _show_comparison(comparison: VariantComparison) -> None:
    """Print a row per layer in order of execution: its largest deviation forward and backward, in rounding units."""
    rows: dict[str, dict[str, LayerComparison]] = {}
    for row in comparison.rows:
        worst_by_pass = rows.setdefault(row.layer, {})
        pass_name = row.which if row.which in ("backward", "update") else "forward"
        if pass_name not in worst_by_pass or row.deviation.ratio > worst_by_pass[pass_name].deviation.ratio:
            worst_by_pass[pass_name] = row
    passes = ["forward", "backward", *(["update"] if any("update" in row for row in rows.values()) else [])]
    lines = []
    for layer, worst_by_pass in rows.items():
        worst = max(worst_by_pass.values(), key=lambda row: row.deviation.ratio)
        worst_tensor = f"{worst.what}{'  <- diverges' if worst.is_guilty else ''}"
        lines.append(
            [
                layer,
                worst.class_name,
                *(_format_ratio(worst_by_pass.get(pass_name)) for pass_name in passes),
                worst_tensor,
            ]
        )
    title = (
        f"{comparison.variant}, against {comparison.reference}: "
        f"rounding units, up to {MAX_ROUNDING_UNITS:g} are explained"
    )
    columns = ("layer", "class", *passes, "farthest off")
    show_table(title, columns, lines, unbroken="layer", droppable=("farthest off", "class"))
    if comparison.is_record:
        show_table("stages of the recorded step", ("stage", "compared", "differ"), comparison.stages)
    if comparison.trace is not None:
        steps = zip(comparison.trace.losses, comparison.trace.expected, comparison.trace.tolerated, strict=True)
        lines = [[str(n), f"{a:.7g}", f"{b:.7g}", f"{abs(a - b):.2g}", f"{c:.2g}"] for n, (a, b, c) in enumerate(steps)]
        show_table("optimiser steps on this batch", ("step", "loss", "reference", "apart", "explained"), lines)


def _format_ratio(row: LayerComparison | None) -> str:
    if row is None:
        return ""
    return "beyond measure" if row.deviation.ratio >= INFINITE_RATIO else f"{row.deviation.ratio:.3g}"
