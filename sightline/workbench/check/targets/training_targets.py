"""Rules of what reaches the losses of a run: targets are those that evaluation, or the data set, has of the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sightline.contract.errors import join_some
from sightline.doctor.attempts import LeftOutError
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.workbench.check.targets.reaching import Reaching, Target

_FEWEST, _MIN_SHARE = 4, 0.1
"""Samples for a judgement; share of them with other targets from which a training does not begin."""
_MIN_OF_CLASS, _MAX_LISTED = 4, 5
_RTOL = 1e-5
_MIN_APART, _MAX_LEFT = 0.5, 0.25
"""Share of the targets that have changed their class, by the sizes of the classes, and what is left of it once classes
are numbered anew."""


@rule(
    "training-targets",
    "error",
    "data.label_mapping data.augment_target_mismatch data.target_encoding data.pairing",
    holds="targets that reach the loss are those that the data set has of the same samples",
    do="look at what the transforms of training do to them, and at their order; transforms.evaluate keeps them. "
    "If it is meant, as labels of noise are: checks.skip=[training-targets]",
)
def training_targets(reaching: Reaching) -> Iterator[Fault]:
    """Compare the targets of the first samples of training with those of the same samples in evaluation."""
    if len(reaching.samples) < _FEWEST or not reaching.targets:
        raise LeftOutError("fewer than four samples with targets")
    found = [fault for target in reaching.targets for fault in _judge(target, reaching)]
    yield from found


def _judge(target: Target, reaching: Reaching) -> Iterator[Fault]:
    """Judge the targets of one key; the gravest that holds. Masks may change, and so may classes that are drawn."""
    if target.values[0].dtype.kind == "b" or target.is_drawn:
        return
    faults = _judge_classes(target, reaching) if target.are_classes else _judge_numbers(target, reaching)
    yield from list(faults)[:1]


def _fault(target: Target, reaching: Reaching, where: Sequence[int], summary: str, measured: str, cause: str) -> Fault:
    """Make the fault of the samples in some places; an error, unless they are few."""
    first = where[0]
    share = len(where) / len(reaching.samples)
    place = FindingLocation(
        dataset="train", sample=reaching.samples[first], step=reaching.steps[first], config_path="transforms.train"
    )
    by = f"; the transform {join_some(target.changed_by, most=_MAX_LISTED)} changes it" if target.changed_by else ""
    return Fault(
        summary,
        measured=measured + by,
        causes=[cause, *_CAUSES],
        severity=None if len(where) > 1 and share >= _MIN_SHARE else "note",
        where=place,
        evidence={"field": target.name, "samples": [reaching.samples[each] for each in where[:_MAX_LISTED]]},
    )


_CAUSES = ("data.augment_target_mismatch", "data.label_mapping", "data.target_encoding", "data.pairing")


# --- classes ----------------------------------------------------------------------------------------------------------


def _judge_classes(target: Target, reaching: Reaching) -> Iterator[Fault]:
    """Compare classes: their counts, those of each sample, and their numbers."""
    stated, name, size = target.stated, target.name, len(target.values)
    if stated is None:
        return
    counts, own = target.count(target.values), target.count(stated)
    is_varied = len(own) > 1 and sorted(own.values())[-2] >= _MIN_OF_CLASS
    if (own and not counts) or (is_varied and len(counts) < 2):
        summary = f"all of '{name}' that reaches the loss is of one class" if counts else f"all of '{name}' is ignored"
        measured = f"{_list_counts(counts)} in {size} samples, which have {_list_counts(own)}"
        yield _fault(target, reaching, range(size), summary, measured, "data.label_mapping")
        return
    if not reaching.are_mixed:
        yield from _judge_samples(target, stated, reaching)
    absent = [label for label, count in _count_samples(target, stated).items() if count >= _MIN_OF_CLASS]
    absent = sorted(set(absent) - counts.keys())
    if absent:
        yield Fault(
            f"classes of '{name}' do not reach the loss: {join_some(list(map(str, absent)), most=_MAX_LISTED)}",
            measured=f"class {absent[0]}: 0 in the first {size} samples of training, {own[absent[0]]} in evaluation",
            severity="note",  # a crop may lose what is small
            where=FindingLocation(dataset="train", step=reaching.steps[0], config_path="transforms.train"),
            evidence={"field": name},
        )


def _judge_samples(target: Target, stated: list[np.ndarray], reaching: Reaching) -> Iterator[Fault]:
    """Compare the classes of each sample, and how they are numbered."""
    size = len(target.values)
    allowed = target.list_classes(stated)
    if target.raw is not None:
        allowed = [one | other for one, other in zip(allowed, target.list_classes(target.raw), strict=True)]
    found = target.list_classes(target.values)
    others = [place for place, (one, known) in enumerate(zip(found, allowed, strict=True)) if one - known]
    # Samples that have all of their own classes, and some of others, are mixed with these: by a bank of objects, say.
    stated_sets = target.list_classes(stated)
    added = [place for place in others if target.values[place].size > 1 and stated_sets[place] <= found[place]]
    if others and added == others:
        words = join_some(
            sorted(map(str, set().union(*(found[each] - allowed[each] for each in others)))), most=_MAX_LISTED
        )
        yield Fault(
            f"'{target.name}' reaches the loss with further classes, beside those of its samples: {words}",
            measured=f"{len(others)} of {size} samples",
            severity="note",
            where=FindingLocation(dataset="train", step=reaching.steps[others[0]], config_path="transforms.train"),
            evidence={"field": target.name},
        )
        return
    merged = _find_merged(target, stated)
    if others and merged:
        yield Fault(
            f"classes of '{target.name}' reach the loss as another one: {join_some(merged, most=_MAX_LISTED)}",
            measured=f"in {len(others)} of {size} samples; the other classes keep their number",
            severity="note",  # a coarser task may be meant, of which evaluation knows nothing
            where=FindingLocation(dataset="train", step=reaching.steps[others[0]], config_path="transforms.train"),
            evidence={"field": target.name},
        )
    elif others:
        first = others[0]
        yield _fault(
            target,
            reaching,
            others,
            f"'{target.name}' reaches the loss with classes that its samples do not have",
            f"{len(others)} of {size} samples; sample {reaching.samples[first]} has "
            f"{join_some(sorted(map(str, allowed[first])), most=_MAX_LISTED) or 'none'}, "
            f"{join_some(sorted(map(str, found[first] - allowed[first])), most=_MAX_LISTED)} reaches the loss",
            "data.label_mapping",
        )
    elif (table := _find_numbering(target, stated)) is not None:
        pairs = [f"{one} as {other}" for one, other in table.items() if one != other]
        summary = f"'{target.name}' reaches the loss with classes in each other's place"
        measured = f"{join_some(pairs, most=_MAX_LISTED)}, by the sizes of the classes in {size} samples"
        yield _fault(target, reaching, range(size), summary, measured, "data.label_mapping")


def _find_merged(target: Target, stated: list[np.ndarray]) -> list[str]:
    """Find a few classes that always reach the loss as one other, which samples have too; none where others change."""
    if any(each.size != 1 for each in (*target.values, *stated)):
        return []
    pairs = {(int(own.flat[0]), int(given.flat[0])) for own, given in zip(stated, target.values, strict=True)}
    known, changed = {own for own, _ in pairs}, {own: given for own, given in pairs if own != given}
    is_map, is_into_known = (
        len(pairs) == len(known),
        changed.keys().isdisjoint(changed.values()) and known >= {*changed.values()},
    )
    is_few = 3 * len(changed) < len(known)
    return (
        [f"{own} as {given}" for own, given in sorted(changed.items())] if is_map and is_into_known and is_few else []
    )


def _find_numbering(target: Target, stated: list[np.ndarray]) -> dict[int, int] | None:
    """Find the numbers that classes have got, by their shares sample by sample; None where they kept their own."""
    classes = sorted({*target.count(target.values), *target.count(stated)})
    given, own = (_measure_shares(each, classes) for each in (target.values, stated))
    if len(classes) < 2:
        return None
    # How far the shares of class a of the set are from those of class b at the loss, over all samples: (C, C).
    apart = np.abs(own[:, :, None] - given[:, None, :]).sum(0) / len(given)
    is_seen: np.ndarray = np.any(own > 0, axis=0)
    best = apart.argmin(axis=1)
    kept, moved = np.trace(apart) / 2, apart.min(axis=1).sum() / 2
    is_one_to_one = len(set(best[is_seen].tolist())) == int(is_seen.sum())
    if not is_one_to_one or kept < _MIN_APART or moved > _MAX_LEFT * kept:
        return None
    return {classes[a]: classes[int(b)] for a, b in enumerate(best) if is_seen[a]}


def _measure_shares(values: list[np.ndarray], classes: list[int]) -> np.ndarray:
    """Compute the share (S, C) of each class among those of a sample."""
    counts = np.array([[int((each == label).sum()) for label in classes] for each in values], dtype=np.float64)
    shares: np.ndarray = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def _count_samples(target: Target, values: list[np.ndarray]) -> dict[int, int]:
    """Count the samples that contain each class."""
    sets = target.list_classes(values)
    return {label: sum(label in each for each in sets) for label in set().union(*sets)}


def _list_counts(counts: dict[int, int]) -> str:
    pairs = [f"{count} of class {label}" for label, count in sorted(counts.items(), key=lambda pair: -pair[1])]
    return join_some(pairs, most=_MAX_LISTED) or "none of a class"


# --- numbers ----------------------------------------------------------------------------------------------------------


def _judge_numbers(target: Target, reaching: Reaching) -> Iterator[Fault]:
    """Compare numbers: zeros, equal ones, and those of other samples."""
    stated, name, size = target.stated, target.name, len(target.values)
    is_zero = [place for place, each in enumerate(target.values) if each.size and not each.any()]
    are_flat = [place for place, each in enumerate(target.values) if _is_flat(each)]
    if stated is not None:
        is_zero = [place for place in is_zero if stated[place].any()]
        are_flat = [place for place in are_flat if not _is_flat(stated[place])]
    elif len(are_flat) < size:  # maps of a joint that is not seen are 0
        is_zero, are_flat = [], []
    if is_zero:
        summary, of = (
            f"'{name}' reaches the loss as zeros",
            "" if stated is None else ", which are others in evaluation",
        )
        yield _fault(
            target, reaching, is_zero, summary, f"{len(is_zero)} of {size} samples{of}", "data.target_encoding"
        )
    if are_flat:
        summary = f"'{name}' reaches the loss with all numbers, or all rows, of a sample equal"
        value = target.values[are_flat[0]].ravel()[0]
        measured = f"{len(are_flat)} of {size} samples; {value:.4g} in sample {reaching.samples[are_flat[0]]}"
        yield _fault(target, reaching, are_flat, summary, measured, "data.target_encoding")
    others = target.raw if target.raw is not None else stated
    if _are_alike(target.values) and others is not None and not _are_alike(others):
        summary = f"'{name}' reaches the loss alike for all samples"
        measured = f"the same {target.values[0].size} numbers for {size} samples, which have others"
        yield _fault(target, reaching, range(size), summary, measured, "data.pairing")
    if others is not None and not reaching.are_mixed:
        yield from _judge_pairing(target, [each for each in (target.own, target.raw) if each is not None], reaching)


def _is_flat(values: np.ndarray) -> bool:
    """Return True for several numbers, or rows, that are all equal."""
    is_one = values.size > 1 and bool((values == values.flat[0]).all())
    return is_one or (values.ndim > 1 and len(values) > 1 and bool((values == values[:1]).all()))


def _are_alike(values: list[np.ndarray]) -> bool:
    return values[0].size > 1 and all(np.array_equal(each, values[0]) for each in values)


def _judge_pairing(target: Target, known: list[list[np.ndarray]], reaching: Reaching) -> Iterator[Fault]:
    """Look for targets that are, to the digit, those of the sample before or after, and not those of their own."""
    size = len(target.values)
    for words, by in (("before", -1), ("after", 1)):
        moved = [
            place
            for place, each in enumerate(target.values)
            if each.size > 1
            and any(_is_same(each, one[(place + by) % size]) for one in known)
            and not any(_is_same(each, one[place]) for one in known)
        ]
        if len(moved) > 1:
            summary = (
                f"'{target.name}' of a sample reaches the loss with the sample {'after' if by < 0 else 'before'} it"
            )
            measured = f"{len(moved)} of {size} samples have the numbers of the one {words} them, and not their own"
            yield _fault(target, reaching, moved, summary, measured, "data.pairing")
            return


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=_RTOL, atol=0))
