"""Class weights, head, metrics and names that do not count the same classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from sightline.doctor.context import Context, check
from sightline.doctor.core.class_axes import class_axis
from sightline.doctor.core.dry_run import DryRun
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.object_graph import iter_reachable

__all__ = ["class_weight_length"]

_ALWAYS_PER_CLASS = ("class_weights", "class_weight")
_PER_CLASS_BESIDE_LOGITS = ("weights", "weight")


@check("G5", "class-weight-length", "preflight")
def class_weight_length(context: Context) -> list[Finding]:
    """Weights, outputs, names and metric classes are as many as classes; weights are finite and above 0."""
    num_classes = context.built.data.facts.get("num_classes")
    if not isinstance(num_classes, int):
        return []
    weights = list(_weights(context))
    counts = _counts(context, num_classes) | {path: (len(values), "loss.weights", path) for path, _, values in weights}
    findings = [
        _of_count(context, counts, name, num_classes) for name, (count, _, _) in counts.items() if count != num_classes
    ]
    for path, name, values in weights:
        findings += _of_values(context, path, name, values)
    return findings


def _counts(context: Context, num_classes: int) -> dict[str, tuple[int, str, str]]:
    """What counts classes: its name -> how many, the cause where it is wrong, and its place in the config."""
    facts = context.built.data.facts
    counts = {
        f"fact {name}": (len(facts[name]), "cfg.class_count", "data")
        for name in ("class_names", "class_counts")
        if facts.get(name) is not None
    }
    width = _head_width(context.dry_run, num_classes)
    if width is not None:
        counts["outputs of the head"] = (width, "cfg.class_count", "model")
    for place, meter in enumerate(context.built.selection_evaluator.metrics):
        classes = getattr(meter.metric, "num_classes", None)
        if isinstance(classes, int):
            name = f"classes of metric {type(meter.metric).__name__}"
            counts[name] = (classes, "cfg.class_count", f"metrics.{place}")
    return counts


def _head_width(rehearsal: DryRun, num_classes: int) -> int | None:
    """The width of `logits` along the axis of classes, from one forward pass on a copy."""
    outputs = rehearsal.seen_outputs
    logits, label = outputs.get("logits"), rehearsal.batch.get("label")
    if not isinstance(logits, Tensor) or not isinstance(label, Tensor):
        return None
    axis = class_axis(logits, label)
    return None if axis is None else logits.shape[axis]


def _weights(context: Context) -> Iterator[tuple[str, str, list[float]]]:
    """Class weights that losses hold: their config path, their name, their values."""
    for path, loss in iter_reachable(context.built.job.task, nn.Module):
        takes_logits = "logits" in getattr(type(loss).forward, "__annotations__", {})
        names = (*_ALWAYS_PER_CLASS, *(_PER_CLASS_BESIDE_LOGITS if takes_logits else ()))
        for name in names:
            values = _as_list(getattr(loss, name, None))
            if values is not None:
                component = next((c.name for c in context.config.losses if f"[{c.name!r}]" in path), "")
                yield f"{context.loss_path(component)}.{name}", name, values


def _as_list(value: Any) -> list[float] | None:
    if isinstance(value, nn.Parameter):
        return None
    if isinstance(value, Tensor):
        return value.tolist() if value.ndim == 1 else None
    if isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value):
        return [float(item) for item in value]
    return None


def _of_count(context: Context, counts: dict[str, tuple[int, str, str]], name: str, num_classes: int) -> Finding:
    count, cause, path = counts[name]
    return class_weight_length.finding(
        context,
        f"{name}: {count} for {num_classes} classes",
        causes=(cause, "loss.weights", "cfg.class_count", "model.structure"),
        at=path,
        measured="; ".join(f"{each} {number}" for each, (number, _, _) in counts.items()),
        expected=f"{num_classes} everywhere, the data set's fact num_classes",
        action=f"make {name} count {num_classes} classes",
    )


def _of_values(context: Context, path: str, name: str, values: list[float]) -> Iterator[Finding]:
    facts = context.built.data.facts
    names, class_counts = facts.get("class_names"), facts.get("class_counts")
    for index, value in enumerate(values):
        called = names[index] if names is not None and index < len(names) else str(index)
        is_wrong = not math.isfinite(value) or value < 0
        is_present = class_counts is not None and index < len(class_counts) and class_counts[index] > 0
        is_present &= index != facts.get("ignore_index")
        if not is_wrong and not (value == 0 and is_present):
            continue
        yield class_weight_length.finding(
            context,
            f"the weight of class '{called}' is {value:g}",
            severity="error" if is_wrong else "warning",
            causes=("loss.weights", "data.imbalance", "cfg.override"),
            at=path,
            measured=f"{name}[{index}] = {value:g}"
            + (f" for {class_counts[index]} training samples" if class_counts is not None and is_present else ""),
            expected="finite and > 0 for every class that occurs",
            action="give the class a positive weight, or let its labels be the ignore index",
        )
