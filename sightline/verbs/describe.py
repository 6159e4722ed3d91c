"""`sightline describe`: print a model's modules with shapes and cost, draw it, and estimate its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sightline.describe.anchors import anchor_coverage
from sightline.describe.drawing import draw, short_number, show_shape
from sightline.describe.figure import build_figure
from sightline.describe.memory import Memory, estimate_memory
from sightline.describe.projection import projection_summary
from sightline.describe.report import description_document, learnt_losses, trace_run
from sightline.describe.sources import build_subject
from sightline.describe.trace import Node, Trace
from sightline.engine.distributed import start_world
from sightline.engine.run_loading import open_run
from sightline.verbs.common import load_config, write_document, write_file
from sightline.verbs.output import print_note, show_table

__all__ = ["describe"]

_COLUMNS = ("module", "class", "defined in", "inputs", "outputs", "parameters", "MAC/sample")
_DROPPABLE = ("inputs", "outputs", "class", "defined in")
_PACKAGES = (Path(torch.__file__).parents[1], Path(__file__).parents[2])
"""Package folders: files below them are shown by their relative path, files of plugins as given."""
_PARTS = {
    "parameters_bytes": "parameters",
    "buffers_bytes": "buffers",
    "optimizer_bytes": "optimiser's state",
    "average_bytes": "average of the weights",
    "teacher_bytes": "teacher",
    "batch_bytes": "batch",
    "saved_bytes": "saved for the backward pass",
    "working_bytes": "gradients and temporaries beyond",
    "peak_bytes": "peak",
}


def describe(
    path: Path,
    overrides: Sequence[str],
    *,
    plugins: Sequence[Path],
    batch_size: int | None,
    depth: int | None,
    device: str,
    svg: Path | None,
    json: Path | None,
) -> int:
    """Trace one forward pass of a config's model, and estimate the peak memory of its training step."""
    batch_size_override = [] if batch_size is None else [f"train.batch_size={batch_size}"]
    config, _ = load_config(path, [*overrides, *batch_size_override], plugins)
    with start_world(device=device, timeout_s=config.distributed.timeout_s) as world:
        subject = build_subject(open_run(path, config=config, world=world))
        print_note(f"batch: {subject.batch}")
        traced = trace_run(subject.built)
        memory = estimate_memory(subject.built)
        readers = {} if subject.is_promised else {"projection": projection_summary, "anchors": anchor_coverage}
        data_tables = {name: read(subject.built) for name, read in readers.items()}
    document = description_document(subject, traced, memory, data_tables)
    _show_modules(traced, f"{config.model.name}: a forward pass of {traced.num_samples} samples", depth)
    for row in learnt_losses(subject.built):
        trainable = f", {row['trainable']:,} trainable" if row["trainable"] != row["parameters"] else ""
        location = _format_location(row["file"], row["line"])
        print_note(
            f"learns too: {row['path']}, {row['class']} ({location}), {row['parameters']:,} parameters{trainable}"
        )
    _show_memory(memory)
    if (projection := data_tables.get("projection")) is not None:
        _show_projection(projection)
    if (anchors := data_tables.get("anchors")) is not None:
        _show_anchors(anchors)
    if svg is not None:
        figure = build_figure(traced, depth=depth)
        cost = f"{short_number(traced.macs / traced.num_samples)} multiply-accumulates per sample"
        subtitle = f"{traced.parameters:,} parameters, {cost}"
        drawing = draw(figure, title=config.model.name, subtitle=subtitle, num_samples=traced.num_samples)
        write_file(svg, drawing)
        print_note(f"drawing: {svg}")
    write_document(json, document)
    return 0


def _show_projection(projection: Mapping[str, Any]) -> None:
    """Print the coverage of scans by range images, and the upper bound of the mIoU over points."""
    height, width = projection["image"]
    lines = [
        f"range images of {height} x {width} pixels, over {projection['num_scans']} scan(s): "
        f"{projection['points_shown']:.1%} of the points shown, {projection['pixels_filled']:.1%} of the pixels filled"
    ]
    if "ceiling_knn" in projection:
        lines.append(
            f"mIoU over points of a network that is correct in every pixel: {projection['ceiling_nearest']:.4f} by "
            f"lift: nearest, {projection['ceiling_knn']:.4f} by lift: knn"
        )
    for line in lines:
        print_note(line)


def _show_anchors(coverage: Mapping[str, Any]) -> None:
    """Print the best IoU of training boxes with the anchors and with fitted sizes, by box size."""
    sets = {
        "of the config, at their positions": "placed",
        "of the config, sizes only": "sizes",
        "fitted, at their positions": "fitted_placed",
        "fitted, sizes only": "fitted",
    }
    bins = [name for name, statistics in coverage["placed"]["bins"].items() if statistics["num_boxes"]]
    rows = [
        [
            title_of_set,
            *(f"{coverage[key][name]:.3f}" for name in ("mean_best_iou", "share_half", "share_below_0.3")),
            *(f"{coverage[key]['bins'][name]['mean_best_iou']:.3f}" for name in bins),
        ]
        for title_of_set, key in sets.items()
        if coverage[key] is not None and coverage[key]["num_boxes"]
    ]
    counts = [f"{name} ({coverage['placed']['bins'][name]['num_boxes']})" for name in bins]
    title = (
        f"best IoU of {coverage['placed']['num_boxes']} boxes "
        f"in {coverage['num_images']} training images with an anchor"
    )
    show_table(title, ("anchors", "mean", "share >= 0.5", "share < 0.3", *counts), rows)
    if coverage["fitted_placed"] and coverage["fitted_placed"]["mean_best_iou"] > coverage["placed"]["mean_best_iou"]:
        levels = [[list(anchor) for anchor in level] for level in coverage["fitted_sizes"]]
        print_note(f"the fitted sizes cover boxes better: task.anchors={{sizes: {levels}}}")
    if not coverage["spanned"]["is_spanned"]:
        print_note("the anchors' centres do not reach all sides of the canvas; look at task.grid and the canvas")


def _show_modules(traced: Trace, title: str, depth: int | None) -> None:
    """Print the module calls, indented by nesting; calls deeper than `depth` are added to their parent."""
    rows: list[list[Any]] = []
    parents: list[str] = []
    sums: list[list[int]] = []
    for node in traced.calls:
        if depth is not None and node.depth > depth:
            sums[-1] = [sums[-1][0] + node.parameters, sums[-1][1] + node.macs, sums[-1][2] + node.shared]
            continue
        parents[node.depth :] = [node.path]
        name = _format_path(node, parents[-2] if len(parents) > 1 else "")
        rows.append(
            [
                name,
                node.class_name,
                _format_location(*node.defined_in),
                _format_shapes(node.inputs),
                _format_shapes(node.outputs),
            ]
        )
        sums.append([node.parameters, node.macs, node.shared])
    cells = [
        [*row, _format_count(parameters, shared), short_number(macs / traced.num_samples) if macs else ""]
        for row, (parameters, macs, shared) in zip(rows, sums, strict=True)
    ]
    trainable = "" if traced.trainable == traced.parameters else f", {traced.trainable:,} trainable"
    total = [f"{traced.parameters:,}{trainable}", short_number(traced.macs / traced.num_samples)]
    rows = [*cells, ["total", "", "", "", "", *total]]
    show_table(title, _COLUMNS, rows, unbroken="module", droppable=_DROPPABLE)


def _format_path(node: Node, parent: str) -> str:
    """Format a module's path relative to its parent call, indented by depth."""
    path = node.path.removeprefix(f"{parent}.") or "(model)"
    return "  " * node.depth + (f"{path} (call {node.call})" if node.call > 1 else path)


def _format_location(file: str, line: int) -> str:
    """Format file and line of a class so that an editor can open them; empty without a file."""
    path = Path(file)
    package = next((folder for folder in _PACKAGES if path.is_relative_to(folder)), None)
    return f"{path if package is None else path.relative_to(package)}:{line}" if file else ""


def _format_shapes(named: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(show_shape(shape, 0) for _, shape in named)


def _format_count(parameters: int, shared: int) -> str:
    marked = f"{shared:,} shared" if shared else ""
    return " + ".join(filter(None, (f"{parameters:,}" if parameters else "", marked)))


def _show_memory(memory: Memory) -> None:
    show_table(
        f"peak memory of a training step of {memory.batch_size} samples, in {memory.where}",
        ("part", "bytes"),
        [[part, _format_bytes(getattr(memory, name))] for name, part in _PARTS.items() if getattr(memory, name)],
    )


def _format_bytes(count: int) -> str:
    return short_number(count) + ("B" if count >= 1000 else " B")
