"""`sightline compare`: compare two variants of a network layer by layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from sightline.commands.prove import CompareOptions
from sightline.contract import registry
from sightline.contract.pytree import tree_leaves
from sightline.engine.build import TrainingSetup, build
from sightline.engine.device import set_backends
from sightline.engine.distributed import start_world
from sightline.engine.run_loading import OpenRun, open_run
from sightline.instrument.judge import INFINITE_RATIO, MAX_ROUNDING_UNITS
from sightline.runs.run_directory import write_document
from sightline.verbs.output import load_config, print_note, show_table
from sightline.workbench.compare.comparison import ComparisonSubject, VariantComparison, compare_networks
from sightline.workbench.compare.layerwise import LayerComparison
from sightline.workbench.describe.report import first_samples

_COLUMNS = ("layer", "class", "forward", "backward", "farthest off")
_MAX_NUMBERS = 2**18
"""Numbers per sample (64 x 64 x 64 voxels) above which one sample is compared, over two steps."""


def compare_variants(options: CompareOptions) -> int:
    """Compare two variants, print what differs, and return 1 where they diverge."""
    config = load_config(options.config, options.overrides, options.plugins)
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        opened = open_run(options.config, config=config, world=world)
        subject, num_steps = make_subject(opened, options.samples, options.steps, note=print_note)
        comparison = compare_networks(subject, options.against, keys=options.keys, num_steps=num_steps)
    for line in comparison.notes:
        print_note(line)
    _show_comparison(comparison)
    write_document(options.json, comparison.to_dict())
    print_note(comparison.verdict)
    for line in comparison.settings:
        print_note(f"{comparison.guilty_rows[0].layer}: {line}")
    return 0 if comparison.is_equal else 1


def make_subject(
    opened: OpenRun, samples: int | None, steps: int | None, *, note: Callable[[str], object]
) -> tuple[ComparisonSubject, int]:
    """Build what is compared of an opened run or config, and the number of optimiser steps; both have defaults."""
    config = opened.config
    set_backends(config.train)
    built = _build_setup(opened, note)
    recipe = registry.optimizers.build(config.optimizer, facts=built.data.facts)
    is_large = _count_inputs(built) > _MAX_NUMBERS
    count = samples or min(1 if is_large else 4, built.config.train.num_samples)
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
