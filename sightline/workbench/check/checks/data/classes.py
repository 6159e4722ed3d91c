"""Counts of classes: those without training samples, their balance, counts that the facts state; single classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sightline.contract.errors import join_some
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import ClassCounts

_MAX_LISTED_UNTRAINED = 5
_MIN_CLASSES, _MIN_PER_CLASS = 3, 20
_BACKGROUND = frozenset({"background", "__background__", "_background_", "bg", "none"})


@check(
    "untrained-class",
    "preflight",
    severity="warning",
    causes=("data.split", "data.label_mapping", "data.sampling"),
    config_path="data",
)
def untrained_class(context: Context) -> Iterator[Fault]:
    """Every class of an evaluated part occurs in training; judged only if the training part is fully counted.

    Finds: Evaluated classes without training samples; classes of boxes that count from 1.

    The first class of boxes is not background, and is not the only one of several that never occurs.
    """
    trained, *evaluated = context.class_counts
    if trained is not None and context.statistics[0].boxed and _is_shifted(context, trained.targets):
        yield Fault(
            f"no box has the class {class_display_name(context, 0)}: labels count from 1?",
            causes=("data.label_mapping", "cfg.class_count"),
            split="train",
            measured=f"0 of {trained.targets.sum()} boxes, {trained.targets[-1]} of the last, {trained.looked_at}",
            expected=f"labels from 0 to {len(trained.targets) - 1}, and no class for background",
            action="subtract 1 from the labels, or map category ids to indices of class_names",
        )
    elif trained is not None and trained.is_whole:
        for counts in evaluated:
            if counts is not None:
                yield from _untrained_faults(context, trained, counts)


def _is_shifted(context: Context, targets: np.ndarray) -> bool:
    name = (context.built.data.facts.get("class_names") or ("",))[0]
    is_many = len(targets) >= _MIN_CLASSES and targets.sum() >= _MIN_PER_CLASS * len(targets)
    is_only = is_many and bool((targets[1:] > 0).all())
    return bool(targets[0] == 0 < targets.sum()) and (is_only or name.lower() in _BACKGROUND)


def class_display_name(context: Context, number: int) -> str:
    """Return the number and name of a class, or only its number if it has no name."""
    names = context.built.data.facts.get("class_names") or ()
    return f"{number} ({names[number]})" if number < len(names) else str(number)


def _untrained_faults(context: Context, trained: ClassCounts, evaluated: ClassCounts) -> Iterator[Fault]:
    if len(trained.targets) != len(evaluated.targets):
        return
    missing = np.flatnonzero((trained.targets == 0) & (evaluated.targets > 0)).tolist()
    if not missing:
        return
    listed = join_some([class_display_name(context, number) for number in missing], most=_MAX_LISTED_UNTRAINED)
    share = evaluated.targets[missing].sum() / evaluated.targets.sum()
    yield Fault(
        f"the {evaluated.split} part has {'a class' if len(missing) == 1 else f'{len(missing)} classes'} "
        f"without training samples: {listed}",
        split=evaluated.split,
        measured="; ".join(
            f"class {class_display_name(context, number)}: 0 of {trained.targets.sum()} training targets, "
            f"{evaluated.targets[number]} of {evaluated.targets.sum()} here"
            for number in missing[:_MAX_LISTED_UNTRAINED]
        )
        + f"; {share:.2%} of these targets cannot be predicted",
        expected="each class that is evaluated among the training samples",
        action="split the data so that each part has every class (shuffled or stratified), or leave the class out",
        evidence={"missing": missing, "looked_at": evaluated.looked_at},
    )


_MAX_LISTED = 3
_MIN_IMBALANCE = 1.1
"""Ratio of the most frequent class to the rarest one at which shares are reported."""


@check(
    "class-balance",
    "preflight",
    is_quick=False,
    severity="note",
    causes=("data.imbalance", "data.sampling", "data.split"),
    config_path="data",
)
def class_balance(context: Context) -> Fault | None:
    """Nothing must hold: a note lists each class's share in each part, as imbalance is a fact, not a fault.

    Finds: Classes with unequal shares of the targets, and classes without a target in a part.
    """
    censuses = [census for census in context.class_counts if census is not None and census.targets.sum() > 0]
    training = next((census for census in censuses if census.split == "train"), None)
    if training is None or len(training.targets) == 1:
        return None
    shares = training.targets / training.targets.sum()
    present = [number for number in np.argsort(-shares, kind="stable").tolist() if shares[number] > 0]
    rare, frequent = shares[present[-1]], shares[present[0]]
    absences = _describe_absences(context, censuses)
    if frequent < _MIN_IMBALANCE * rare and not absences:
        return None
    return Fault(
        f"classes have {rare:.2%} to {frequent:.2%} of the training {name_unit(context, training)}, "
        f"1 : {frequent / rare:.3g}{absences}",
        split="train",
        measured=_describe_extremes(context, training, present),
        expected="nothing; if rare classes matter, weight the loss or look at their metrics",
        action="read evidence.classes for every class (--json), and the metrics per class of `sightline evaluate`",
        evidence={
            "classes": _tabulate_classes(context, censuses),
            "looked_at": "; ".join(census.looked_at for census in censuses),
        },
    )


def _describe_extremes(context: Context, training: ClassCounts, present: Sequence[int]) -> str:
    """Describe the most frequent and the rarest classes with their counts."""
    is_all = len(present) <= 2 * _MAX_LISTED
    listed = present if is_all else [*present[:_MAX_LISTED], *present[-_MAX_LISTED:]]
    entries = []
    for number in listed:
        samples_text = "" if name_unit(context, training) == "samples" else f" in {training.samples[number]} samples"
        entries.append(f"{class_display_name(context, number)}: {training.targets[number]}{samples_text}")
    if not is_all:
        entries.insert(_MAX_LISTED, "..")
    return ", ".join(entries)


def name_unit(context: Context, census: ClassCounts) -> str:
    """Return the unit that targets count: "boxes", "samples" or "points"."""
    if any(survey.boxed for survey in context.statistics):
        return "boxes"
    return "samples" if (census.targets == census.samples).all() else "points"


def _describe_absences(context: Context, censuses: Sequence[ClassCounts]) -> str:
    """Describe the classes that a part lacks, and the samples with a single class."""
    text = ""
    for census in censuses:
        absent = np.flatnonzero(census.targets == 0).tolist()
        if absent:
            names = join_some([class_display_name(context, number) for number in absent], most=_MAX_LISTED)
            text += f"; {census.split} has no {names}"
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


_MIN_SHARE, _MAX_FACTOR = 0.05, 3.0
"""Share of the targets from which on a class is judged, and by how much its stated and its found share may differ."""
_MIN_SIGMA, _MIN_SAMPLES = 6.0, 8
_MAX_SINGLE = 0.75


@check("class-counts", "preflight", severity="warning", config_path="data")
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
