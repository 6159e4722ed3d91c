"""Class counts: those that the facts of a set state, and those of its samples; scans and clouds of a single class."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sightline.workbench.check.checks.data.classes import class_display_name
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import ClassCounts

_MIN_SHARE, _MAX_FACTOR = 0.05, 3.0
"""Share of the targets from which on a class is judged, and by how much its stated and its found share may differ."""
_MIN_SIGMA, _MIN_SAMPLES = 6.0, 8
_MAX_SINGLE, _MIN_CLASSES = 0.75, 3


@check("G38", "class-counts", "preflight", severity="warning", config_path="data")
def class_counts(context: Context) -> Iterator[Fault]:
    """Training samples have the classes that the facts count, and most samples with labels of points several.

    Finds: Classes that are ignored, merged or renumbered after they were counted, and crops that leave one class.

    The shares of a class may differ by a factor of 3. Unless all samples are read, six standard deviations are needed.
    """
    counts = context.class_counts[0]
    if counts is None or not counts.targets.sum():
        return
    is_single = counts.num_labelled >= _MIN_SAMPLES and counts.num_single > _MAX_SINGLE * counts.num_labelled
    if is_single and (counts.targets > 0).sum() >= _MIN_CLASSES and not context.statistics[0].boxed:
        yield Fault(
            f"{counts.num_single} of {counts.num_labelled} samples have points of a single class",
            causes=("data.sampling", "data.imbalance", "data.projection"),
            split="train",
            value=counts.num_single / counts.num_labelled,
            bound=_MAX_SINGLE,
            measured=f"one class in {counts.num_single} of {counts.num_labelled} samples, "
            f"{int((counts.targets > 0).sum())} classes in all of them; {counts.looked_at}",
            expected=f"several classes in at least {1 - _MAX_SINGLE:.0%} of the samples",
            action="look at what crops or selects the points; if most objects are of one class, add "
            "checks.skip=[class-counts]",
            evidence={"field": "label"},
        )
        return
    stated = np.asarray(context.built.data.facts.get("class_counts") or (), dtype=np.float64)
    if len(stated) == len(counts.targets):
        yield from _share_faults(context, counts, stated)


def _share_faults(context: Context, counts: ClassCounts, stated: np.ndarray) -> Iterator[Fault]:
    ignored = context.built.data.facts.get("ignore_index")
    if isinstance(ignored, int) and 0 <= ignored < len(stated):
        stated = np.where(np.arange(len(stated)) == ignored, 0.0, stated)
    if not stated.sum():
        return
    expected, found = stated / stated.sum(), counts.targets / counts.targets.sum()
    low, high = np.minimum(expected, found), np.maximum(expected, found)
    is_off = (high >= _MIN_SHARE) & (low * _MAX_FACTOR < high)
    for other in filter(None, context.class_counts[1:]):
        is_off &= (counts.targets > 0) | (other.targets == 0)  # a part has it: `untrained-class`
    if not counts.is_whole:
        is_off &= np.abs(found - expected) > _MIN_SIGMA * _compute_errors(context, expected)
    if not is_off.any():
        return
    worst = int(np.where(is_off, np.abs(found - expected), 0).argmax())
    name = class_display_name(context, worst)
    lost = float(expected[is_off & (found < expected)].sum())
    shares = _compute_ignored(context)
    is_ignored = found[worst] < expected[worst] and shares >= lost / 2 and _keeps_others(expected, found, is_off)
    yield Fault(
        f"class {name} has {found[worst]:.1%} of the training targets, the facts state {expected[worst]:.1%}"
        + (f"; {shares:.0%} of the targets are ignored" if is_ignored else ""),
        causes=("data.ignore_handling", "data.label_mapping", "data.sampling")
        if is_ignored
        else ("data.label_mapping", "data.sampling", "data.ignore_handling"),
        split="train",
        value=float(found[worst]),
        bound=float(expected[worst]),
        measured="; ".join(
            f"{class_display_name(context, int(c))}: {found[c]:.2%} instead of {expected[c]:.2%}"
            for c in np.flatnonzero(is_off)[:4]
        )
        + f"; {counts.looked_at}",
        expected="the shares of class_counts, from which losses and tables take the frequencies of classes",
        action="look at the map from ids of files to classes, at ignore_index, and at what edits labels after they "
        "are counted",
        evidence={"field": "label", "stated": expected.round(4).tolist(), "found": found.round(4).tolist()},
    )


def _compute_errors(context: Context, expected: np.ndarray) -> np.ndarray:
    """Compute the standard errors of shares from their differences between samples; a share itself for one of them."""
    survey = context.thorough_statistics(context.statistics[0])
    rows = np.zeros((len(survey.labellings), len(expected)))
    for row, labelling in zip(rows, survey.labellings, strict=True):
        is_class = (labelling.classes >= 0) & (labelling.classes < len(expected))
        row[labelling.classes[is_class]] = labelling.counts[is_class]
    totals = rows.sum(axis=1, keepdims=True)
    shares = rows / np.maximum(totals, 1)
    errors: np.ndarray = np.maximum(shares.std(axis=0), expected) / max(1, len(rows)) ** 0.5
    return errors


def _compute_ignored(context: Context) -> float:
    """Compute the share of targets that are ignored."""
    survey, ignored = context.statistics[0], context.built.data.facts.get("ignore_index")
    total = sum(int(labelling.counts.sum()) for labelling in survey.labellings)
    num_ignored = sum(int(labelling.counts[labelling.classes == ignored].sum()) for labelling in survey.labellings)
    return num_ignored / max(1, total)


def _keeps_others(expected: np.ndarray, found: np.ndarray, is_off: np.ndarray) -> bool:
    """Return True if the other classes have the shares of one another that they should have."""
    others = ~is_off & (expected >= _MIN_SHARE)
    ratios = found[others] / expected[others]
    return not len(ratios) or bool(ratios.max() < 2 * max(ratios.min(), 1e-9))
