"""Class shares in the targets of each part, and classes without a target in a part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sightline.doctor.checks.data.untrained_class import class_display_name
from sightline.doctor.context import Context, check
from sightline.doctor.core.class_counts import ClassCounts
from sightline.doctor.core.finding import Finding

__all__ = ["class_balance"]

_MAX_LISTED = 3


@check(
    "G38",
    "class-balance",
    "preflight",
    is_quick=False,
    severity="note",
    causes=("data.imbalance", "data.sampling", "data.split"),
    config_path="data",
)
def class_balance(context: Context) -> list[Finding]:
    """Nothing must hold: a note lists each class's share in each part, as imbalance is a fact, not a fault.

    Finds: Class shares in the targets of each part, and classes without a target in a part.
    """
    censuses = [census for census in context.class_counts if census is not None and census.targets.sum() > 0]
    training = next((census for census in censuses if census.split == "train"), None)
    if training is None or len(training.targets) == 1:
        return []
    shares = training.targets / training.targets.sum()
    present = [number for number in np.argsort(-shares, kind="stable").tolist() if shares[number] > 0]
    rare, frequent = shares[present[-1]], shares[present[0]]
    return [
        class_balance.finding(
            context,
            f"classes have {rare:.2%} to {frequent:.2%} of the training {_name_unit(training)}, "
            f"1 : {frequent / rare:.3g}" + _describe_absences(context, censuses),
            split="train",
            measured=_describe_extremes(context, training, present),
            expected="nothing; if rare classes matter, weight the loss or look at their metrics",
            action="read evidence.classes for every class (--json), and the metrics per class of `sightline evaluate`",
            evidence={
                "classes": _tabulate_classes(context, censuses),
                "looked_at": "; ".join(census.looked_at for census in censuses),
            },
        )
    ]


def _describe_extremes(context: Context, training: ClassCounts, present: Sequence[int]) -> str:
    """Describe the most frequent and the rarest classes with their counts."""
    is_all = len(present) <= 2 * _MAX_LISTED
    listed = present if is_all else [*present[:_MAX_LISTED], *present[-_MAX_LISTED:]]
    entries = []
    for number in listed:
        samples_text = "" if _name_unit(training) == "samples" else f" in {training.samples[number]} samples"
        entries.append(f"{class_display_name(context, number)}: {training.targets[number]}{samples_text}")
    if not is_all:
        entries.insert(_MAX_LISTED, "..")
    return ", ".join(entries)


def _name_unit(census: ClassCounts) -> str:
    """Return the unit that targets count: "samples" or "points"."""
    return "samples" if (census.targets == census.samples).all() else "points"


def _describe_absences(context: Context, censuses: Sequence[ClassCounts]) -> str:
    """Describe the classes that a part lacks, and the samples with a single class."""
    text = ""
    for census in censuses:
        absent = np.flatnonzero(census.targets == 0).tolist()
        if absent:
            names = ", ".join(class_display_name(context, number) for number in absent[:_MAX_LISTED])
            more = f" and {len(absent) - _MAX_LISTED} more" if len(absent) > _MAX_LISTED else ""
            text += f"; {census.split} has no {names}{more}"
        if census.num_single:
            text += f"; {census.num_single} of {census.num_labelled} samples of {census.split} have a single class"
    return text


def _tabulate_classes(context: Context, censuses: Sequence[ClassCounts]) -> dict[str, dict[str, list[int]]]:
    """Build the table class -> part -> [number of targets, number of samples with the class]."""
    num_classes = min(len(census.targets) for census in censuses)
    return {
        class_display_name(context, number): {
            census.split: [int(census.targets[number]), int(census.samples[number])] for census in censuses
        }
        for number in range(num_classes)
    }
