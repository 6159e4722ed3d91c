"""Points and their labels: labels of other points or of another scan, and rows of padding that count as points.

The range jumps at the edges of objects, and most changes of the label between neighbouring pixels are at such edges.
Labels of another scan change as often, but at other pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.contract.types import Batch, SampleKey
from sightline.workbench.check.checks.data.batches import is_read
from sightline.workbench.check.checks.data.projection_coverage import PartImages, images_by_part
from sightline.workbench.check.context import Context, check, surveys
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import PartStatistics, describe_sample, read_samples

_MAX_QUERIES = 256
_MIN_CLOUDS, _MIN_PAIRS = 3, 128
_MIN_AGREEMENT = 0.2
"""Share above chance of nearest points with one label; parts of objects and of rooms have 0.6 or more, others 0."""
_MIN_PADDED, _MIN_PADDED_SHARE = 3, 0.02
"""Equal rows at the end of a cloud, and the share of clouds that must have them."""


@check(
    "scattered-labels",
    "preflight",
    severity="warning",
    causes=("data.pairing", "data.ordering", "data.augment_target_mismatch"),
    config_path="data",
)
def scattered_labels(context: Context) -> Fault | None:
    """Points next to one another have the same label more often than by chance, by 20 % of what is possible.

    Finds: Labels of points in another order than the points, or of another cloud.

    Labels that nothing reads may be left behind, as by views of clouds that are learnt from without labels.
    """
    batch = context.dry_run.batch
    if not batch or not is_read(context, "label"):
        return None
    clouds = list(_split_clouds(batch, context.built.data.facts.get("ignore_index")))
    pairs = [_count_agreement(points, label) for points, label in clouds]
    total = torch.tensor([pair for pair in pairs if pair[1] > 0], dtype=torch.float64)
    if len(total) < _MIN_CLOUDS or float(total[:, 2].sum()) < _MIN_PAIRS:
        return None
    agreement = float(total[:, 0].sum() / total[:, 1].sum())
    if agreement >= _MIN_AGREEMENT:
        return None
    return Fault(
        "labels are scattered over the points: nearest points have the same label about as often as by chance",
        split="train",
        sample=int(batch["sample_index"][0]),
        value=agreement,
        bound=_MIN_AGREEMENT,
        measured=f"{agreement:.0%} of the way from chance to always, for {int(total[:, 2].sum())} points of "
        f"{len(total)} clouds",
        expected=f"at least {_MIN_AGREEMENT:.0%}",
        action="check that labels are read and moved in the order of the points: a sort, a shuffle or a sample of one "
        "of them alone; `sightline view`",
        evidence={"field": "label"},
    )


def _split_clouds(batch: Batch, ignored: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the labelled points (N, 3) and labels (N,) of each cloud."""
    points, label, offsets = batch.get("points"), batch.get("label"), batch.get("offsets")
    if not isinstance(points, Tensor) or not isinstance(label, Tensor) or label.is_floating_point():
        return
    if points.shape[-1] != 3 or label.shape != points.shape[:-1] or not bool(points.isfinite().all()):
        return
    if points.ndim == 2 and isinstance(offsets, Tensor):
        sizes = offsets.diff().tolist()
        if offsets.is_floating_point() or int(offsets[0]) or min(sizes, default=-1) < 0 or sum(sizes) != len(points):
            return  # `broken-offsets`
        clouds = zip(points.split(sizes), label.split(sizes), strict=True)
    elif points.ndim == 3:
        clouds = zip(points, label, strict=True)
    else:
        return
    for cloud, labels in clouds:
        is_labelled = labels != (-1 if ignored is None else ignored)
        yield cloud[is_labelled].cpu().float(), labels[is_labelled].cpu()


def _count_agreement(points: Tensor, label: Tensor) -> tuple[float, float, int]:
    """Count points with the label of their nearest one: more than by chance, more at the most, and all of them."""
    shares = label.unique(return_counts=True)[1].double() / max(1, len(label))
    if len(shares) < 2:
        return 0.0, 0.0, 0
    is_equal = compare_nearest(points, label, max_distances=2**19)
    chance = float(shares.square().sum()) * len(is_equal)
    return float(is_equal.sum()) - chance, len(is_equal) - chance, len(is_equal)


def compare_nearest(points: Tensor, label: Tensor, *, max_distances: int) -> Tensor:
    """Compare the labels (N,) of some points, evenly spaced in their order, with those of their nearest ones."""
    count = min(_MAX_QUERIES, 1 + max_distances // len(points))
    some = torch.arange(0, len(points), max(1, len(points) // count))
    distances = torch.cdist(points[some], points)
    distances[torch.arange(len(some)), some] = torch.inf
    return label[some] == label[distances.argmin(dim=1)]


@check(
    "padded-points",
    "preflight",
    each=surveys,
    severity="warning",
    causes=("data.padding", "data.corrupt_sample"),
    config_path="data",
)
def padded_points(context: Context, survey: PartStatistics) -> Fault | None:
    """Clouds do not end with equal points, unless a mask or the ignored label leaves these out.

    Finds: Clouds filled up with zeros, or with one point, to one size: the rows are counted as points.
    """
    statistics = survey.fields.get("points")
    padded = {} if statistics is None else {i: n for i, n in statistics.padded.items() if n >= _MIN_PADDED}
    is_masked = any("mask" in name or "valid" in name for name in survey.fields)
    if len(padded) < max(2, _MIN_PADDED_SHARE * survey.num_sampled) or is_masked:
        return None
    index, count = max(padded.items(), key=lambda item: item[1])
    sample = read_samples(survey.part.dataset, [SampleKey(index, 0, context.config.seed)])[0]
    label, value = sample.get("label"), torch.as_tensor(sample["points"])[-1].tolist()
    ignored = survey.part.dataset.info.facts.get("ignore_index")
    if (
        isinstance(label, Tensor)
        and label.ndim == 1
        and bool(torch.isin(label[-count:], torch.tensor(-1 if ignored is None else ignored)).all())
    ):
        return None
    return Fault(
        f"clouds end with points that are all the same: {len(padded)} of {survey.num_sampled} looked at",
        sample=index,
        measured=f"the last {count} points of {describe_sample(survey.part.dataset, index)} are "
        f"({', '.join(f'{number:g}' for number in value)}), without a mask"
        + ("" if label is None or label.ndim == 0 else ", and have labels that the loss counts"),
        expected="points of the object alone; or a mask, or the label ignore_index, for rows that fill a cloud up",
        action="give clouds their own sizes (collate='concatenate'), or sample them to one size, or mask the rest",
        evidence={"field": "points"},
    )


_MIN_JUMP = 1.1
"""Ratio of neighbouring ranges; on flat ground neighbours in a row differ by some thousandths."""
_MIN_CHANGES = 60
"""Number of changes of the label; with fewer, as in scans of one class, nothing is reported."""
_MIN_CHANCE_RATIO, _MIN_EXCESS = 5.0, 0.15
"""Share of label changes that are at jumps: as a multiple of chance, and in excess of chance.

Real scans of KITTI have 14 to 57 and 0.23 to 0.67, with labels of another scan 0.6 to 6.7 and -0.01 to 0.14.
"""


class _Pairs(NamedTuple):
    """Counts of pairs of neighbouring pixels in a row that are both filled and labelled."""

    num_pairs: float
    num_jumps: float
    num_changes: float
    num_both: float


@check(
    "mismatched-labels",
    "preflight",
    each=images_by_part,
    severity="warning",
    causes=("data.pairing", "data.ordering"),
    config_path="data",
)
def mismatched_labels(context: Context, images: PartImages) -> Fault | None:
    """Labels of range images change at range jumps five times as often as by chance, or 15 % more of them.

    Finds: Labels of another scan, or in another order than the points: they change where the range does not.
    """
    pairs = _count_pairs(images, context.built.data.facts.get("ignore_index"))
    if not _is_by_chance(pairs):
        return None
    chance, share = pairs.num_jumps / pairs.num_pairs, pairs.num_both / pairs.num_changes
    return Fault(
        "labels do not fit the points: the label does not change at the edges of objects",
        measured=f"the range jumps at {share:.1%} of {pairs.num_changes:.0f} changes of the label in "
        f"{images.num_scans} scans, and at {chance:.1%} of all neighbouring pixels",
        expected=f"at least {_MIN_CHANCE_RATIO:g} times as often at changes of the label, or at {_MIN_EXCESS:.0%} more",
        action="check that labels belong to the scan of the same name, one per point and in the order of the "
        "points: `sightline view`",
        evidence={"field": "label", **pairs._asdict()},
    )


def _count_pairs(images: PartImages, ignored: int | None) -> _Pairs:
    ranges = images.range_image
    label: Tensor = torch.cat([batch["label"] for batch in images.batches if "label" in batch] or [ranges * 0]).cpu()
    is_labelled = (ranges > 0) & (label != (-1 if ignored is None else ignored))
    is_pair = is_labelled[..., 1:] & is_labelled[..., :-1]
    nearer, farther = (pick(ranges[..., 1:], ranges[..., :-1]) for pick in (torch.minimum, torch.maximum))
    is_jump = is_pair & (farther > _MIN_JUMP * nearer)
    is_change = is_pair & (label[..., 1:] != label[..., :-1])
    return _Pairs(*(float(mask.sum()) for mask in (is_pair, is_jump, is_change, is_jump & is_change)))


def _is_by_chance(pairs: _Pairs) -> bool:
    """Return True if too few label changes are at jumps, even with two standard deviations more of them."""
    if pairs.num_changes < _MIN_CHANGES or not pairs.num_jumps:
        return False
    max_share = (pairs.num_both + 2 * pairs.num_both**0.5 + 2) / pairs.num_changes
    chance = pairs.num_jumps / pairs.num_pairs
    return max_share < _MIN_CHANCE_RATIO * chance and (max_share - chance) / (1 - chance) < _MIN_EXCESS
