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
_PER_CLASS_WITH_LOGITS = ("weights", "weight")


@check("G5", "class-weight-length", "preflight")
def class_weight_length(context: Context) -> list[Finding]:
    """Class weights, logits, class names and metrics all have `num_classes` entries; weights are finite and >= 0.

    Finds: Class weights, head, metrics and names that do not count the same classes.
    """
    num_classes = context.built.data.facts.get("num_classes")
    if not isinstance(num_classes, int):
        return []
    weights = list(_iter_class_weights(context))
    counts = _collect_counts(context, num_classes) | {
        path: (len(values), "loss.weights", path) for path, _, values in weights
    }
    findings = [
        _finding_count(context, counts, name, num_classes)
        for name, (count, _, _) in counts.items()
        if count != num_classes
    ]
    for path, name, values in weights:
        findings += _value_findings(context, path, name, values)
    return findings


def _collect_counts(context: Context, num_classes: int) -> dict[str, tuple[int, str, str]]:
    """Map everything that counts classes to its number of classes, the cause of a wrong number, and its config path."""
    facts = context.built.data.facts
    counts = {
        f"fact {name}": (len(facts[name]), "cfg.class_count", "data")
        for name in ("class_names", "class_counts")
        if facts.get(name) is not None
    }
    width = _find_head_width(context.dry_run, num_classes)
    if width is not None:
        counts["outputs of the head"] = (width, "cfg.class_count", "model")
    for index, meter in enumerate(context.built.selection_evaluator.metrics):
        classes = getattr(meter.metric, "num_classes", None)
        if isinstance(classes, int):
            name = f"classes of metric {type(meter.metric).__name__}"
            counts[name] = (classes, "cfg.class_count", f"metrics.{index}")
    return counts


def _find_head_width(rehearsal: DryRun, num_classes: int) -> int | None:
    """Return the size of the class axis of `logits` in the dry run; None without logits or labels."""
    outputs = rehearsal.seen_outputs
    logits, label = outputs.get("logits"), rehearsal.batch.get("label")
    if not isinstance(logits, Tensor) or not isinstance(label, Tensor):
        return None
    axis = class_axis(logits, label)
    return None if axis is None else logits.shape[axis]


def _iter_class_weights(context: Context) -> Iterator[tuple[str, str, list[float]]]:
    """Yield the config path, attribute name and values of each class weight of the losses."""
    for path, loss in iter_reachable(context.built.job.task, nn.Module):
        takes_logits = "logits" in getattr(type(loss).forward, "__annotations__", {})
        names = (*_ALWAYS_PER_CLASS, *(_PER_CLASS_WITH_LOGITS if takes_logits else ()))
        for name in names:
            weights = _as_list(getattr(loss, name, None))
            if weights is not None:
                component = next((c.name for c in context.config.losses if f"[{c.name!r}]" in path), "")
                yield f"{context.loss_path(component)}.{name}", name, weights


def _as_list(value: Any) -> list[float] | None:
    if isinstance(value, nn.Parameter):
        return None
    if isinstance(value, Tensor):
        return value.tolist() if value.ndim == 1 else None
    if isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value):
        return [float(item) for item in value]
    return None


def _finding_count(context: Context, counts: dict[str, tuple[int, str, str]], name: str, num_classes: int) -> Finding:
    count, cause, path = counts[name]
    return class_weight_length.finding(
        context,
        f"{name}: {count} for {num_classes} classes",
        causes=(cause, "loss.weights", "cfg.class_count", "model.structure"),
        at=path,
        measured="; ".join(f"{counted} {number}" for counted, (number, _, _) in counts.items()),
        expected=f"{num_classes} everywhere, the data set's fact num_classes",
        action=f"make {name} count {num_classes} classes",
    )


def _value_findings(context: Context, path: str, name: str, values: list[float]) -> Iterator[Finding]:
    """Yield a finding for each weight that is not finite, negative, or 0 for a class with training samples."""
    facts = context.built.data.facts
    names, class_counts = facts.get("class_names"), facts.get("class_counts")
    for index, value in enumerate(values):
        class_name = names[index] if names is not None and index < len(names) else str(index)
        is_wrong = not math.isfinite(value) or value < 0
        is_present = class_counts is not None and index < len(class_counts) and class_counts[index] > 0
        is_present &= index != facts.get("ignore_index")
        if not is_wrong and not (value == 0 and is_present):
            continue
        yield class_weight_length.finding(
            context,
            f"the weight of class '{class_name}' is {value:g}",
            severity="error" if is_wrong else "warning",
            causes=("loss.weights", "data.imbalance", "cfg.override"),
            at=path,
            measured=f"{name}[{index}] = {value:g}"
            + (f" for {class_counts[index]} training samples" if class_counts is not None and is_present else ""),
            expected="finite and > 0 for every class that occurs",
            action="give the class a positive weight, or let its labels be the ignore index",
        )
