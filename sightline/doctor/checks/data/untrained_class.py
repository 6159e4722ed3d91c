"""Evaluated classes without training samples; classes of boxes that count from 1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sightline.doctor.context import Context, check
from sightline.doctor.core.class_counts import ClassCounts
from sightline.doctor.core.finding import Finding

__all__ = ["class_display_name", "untrained_class"]

_MAX_LISTED = 5
_MIN_CLASSES, _MIN_PER_CLASS = 3, 20
_BACKGROUND = frozenset({"background", "__background__", "_background_", "bg", "none"})


@check(
    "G38",
    "untrained-class",
    "preflight",
    severity="warning",
    causes=("data.split", "data.label_mapping", "data.sampling"),
    config_path="data",
)
def untrained_class(context: Context) -> list[Finding]:
    """Every class of an evaluated part occurs in training; judged only if the training part is fully counted.

    Finds: Evaluated classes without training samples; classes of boxes that count from 1.

    The first class of boxes is not background, and is not the only one of several that never occurs.
    """
    trained, *evaluated = context.class_counts
    if trained is not None and context.statistics[0].boxed and _is_shifted(context, trained.targets):
        return [
            untrained_class.finding(
                context,
                f"no box has the class {class_display_name(context, 0)}: labels count from 1?",
                causes=("data.label_mapping", "cfg.class_count"),
                split="train",
                measured=f"0 of {trained.targets.sum()} boxes, {trained.targets[-1]} of the last, {trained.looked_at}",
                expected=f"labels from 0 to {len(trained.targets) - 1}, and no class for background",
                action="subtract 1 from the labels, or map category ids to indices of class_names",
            )
        ]
    if trained is None or not trained.is_whole:
        return []
    return [
        finding for census in evaluated if census is not None for finding in _part_findings(context, trained, census)
    ]


def _is_shifted(context: Context, targets: np.ndarray) -> bool:
    name = (context.built.data.facts.get("class_names") or ("",))[0]
    is_many = len(targets) >= _MIN_CLASSES and targets.sum() >= _MIN_PER_CLASS * len(targets)
    is_only = is_many and bool((targets[1:] > 0).all())
    return bool(targets[0] == 0 < targets.sum()) and (is_only or name.lower() in _BACKGROUND)


def class_display_name(context: Context, number: int) -> str:
    """Return the number and name of a class, or only its number if it has no name."""
    names = context.built.data.facts.get("class_names") or ()
    return f"{number} ({names[number]})" if number < len(names) else str(number)


def _part_findings(context: Context, trained: ClassCounts, evaluated: ClassCounts) -> Iterator[Finding]:
    if len(trained.targets) != len(evaluated.targets):
        return
    missing = np.flatnonzero((trained.targets == 0) & (evaluated.targets > 0)).tolist()
    if not missing:
        return
    listed = ", ".join(class_display_name(context, number) for number in missing[:_MAX_LISTED])
    more = f" and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
    share = evaluated.targets[missing].sum() / evaluated.targets.sum()
    yield untrained_class.finding(
        context,
        f"the {evaluated.split} part has {'a class' if len(missing) == 1 else f'{len(missing)} classes'} "
        f"without training samples: {listed}{more}",
        split=evaluated.split,
        measured="; ".join(
            f"class {class_display_name(context, number)}: 0 of {trained.targets.sum()} training targets, "
            f"{evaluated.targets[number]} of {evaluated.targets.sum()} here"
            for number in missing[:_MAX_LISTED]
        )
        + f"; {share:.2%} of these targets cannot be predicted",
        expected="each class that is evaluated among the training samples",
        action="split the data so that each part has every class (shuffled or stratified), or leave the class out",
        evidence={"missing": missing, "looked_at": evaluated.looked_at},
    )
