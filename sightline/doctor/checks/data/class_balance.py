"""Shares of the classes in the targets of each part, and classes that occur nowhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sightline.doctor.checks.data.untrained_class import class_display_name
from sightline.doctor.context import Context, check
from sightline.doctor.core.class_counts import ClassCounts
from sightline.doctor.core.finding import Finding

__all__ = ["class_balance"]

_MOST_LISTED = 3


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
    """A note with the share of each class in each part: that classes are unequal is a fact, no fault."""
    counted = [census for census in context.class_counts if census is not None and census.targets.sum() > 0]
    trained = next((census for census in counted if census.split == "train"), None)
    if trained is None or len(trained.targets) == 1:
        return []
    shares = trained.targets / trained.targets.sum()
    present = [number for number in np.argsort(-shares, kind="stable").tolist() if shares[number] > 0]
    rare, frequent = shares[present[-1]], shares[present[0]]
    return [
        class_balance.finding(
            context,
            f"classes hold {rare:.2%} to {frequent:.2%} of the training {_unit(trained)}, "
            f"1 : {frequent / rare:.3g}" + _absences(context, counted),
            split="train",
            measured=_extremes(context, trained, present),
            expected="nothing; where rare classes matter, weigh the loss or look at their own figures",
            action="read evidence.classes for every class (--json), and the figures per class of `sightline evaluate`",
            evidence={
                "classes": _table(context, counted),
                "looked_at": "; ".join(census.looked_at for census in counted),
            },
        )
    ]


def _extremes(context: Context, trained: ClassCounts, present: Sequence[int]) -> str:
    """The most frequent and the rarest classes with their counts."""
    is_all = len(present) <= 2 * _MOST_LISTED
    chosen = present if is_all else [*present[:_MOST_LISTED], *present[-_MOST_LISTED:]]
    entries = []
    for number in chosen:
        among = "" if _unit(trained) == "samples" else f" in {trained.samples[number]} samples"
        entries.append(f"{class_display_name(context, number)}: {trained.targets[number]}{among}")
    if not is_all:
        entries.insert(_MOST_LISTED, "..")
    return ", ".join(entries)


def _unit(census: ClassCounts) -> str:
    """What has a class: samples, or their points."""
    return "samples" if (census.targets == census.samples).all() else "points"


def _absences(context: Context, counted: Sequence[ClassCounts]) -> str:
    """Classes that some part does not show, in words."""
    words = ""
    for census in counted:
        absent = np.flatnonzero(census.targets == 0).tolist()
        if absent:
            names = ", ".join(class_display_name(context, number) for number in absent[:_MOST_LISTED])
            more = f" and {len(absent) - _MOST_LISTED} more" if len(absent) > _MOST_LISTED else ""
            words += f"; {census.split} shows no {names}{more}"
        if census.num_single:
            words += f"; {census.num_single} of {census.num_labelled} samples of {census.split} show one class alone"
    return words


def _table(context: Context, counted: Sequence[ClassCounts]) -> dict[str, dict[str, list[int]]]:
    """Class -> part -> [targets, samples with it]."""
    num_classes = min(len(census.targets) for census in counted)
    return {
        class_display_name(context, number): {
            census.split: [int(census.targets[number]), int(census.samples[number])] for census in counted
        }
        for number in range(num_classes)
    }
