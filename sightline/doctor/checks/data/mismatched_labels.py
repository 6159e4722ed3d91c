"""Labels of another scan, or in another order than the points: they change where the range does not.

The range jumps at the edges of objects, and most changes of the label between neighbouring pixels are at such edges.
Labels of another scan change as often, but at other pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sightline.doctor.checks.data.range_images import PartImages, images_by_part
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding

__all__ = ["mismatched_labels"]

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
    "G2",
    "mismatched-labels",
    "preflight",
    severity="warning",
    causes=("data.pairing", "data.ordering"),
    config_path="data",
)
def mismatched_labels(context: Context) -> list[Finding]:
    """Labels of range images change at range jumps five times as often as by chance, or 15 % more of them.

    Finds: Labels of another scan, or in another order than the points: they change where the range does not.
    """
    ignored = context.built.data.facts.get("ignore_index")
    pairs_by_part = [(images, _count_pairs(images, ignored)) for images in images_by_part(context)]
    return [_finding_part(context, images, pairs) for images, pairs in pairs_by_part if _is_by_chance(pairs)]


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


def _finding_part(context: Context, images: PartImages, pairs: _Pairs) -> Finding:
    chance, share = pairs.num_jumps / pairs.num_pairs, pairs.num_both / pairs.num_changes
    return mismatched_labels.finding(
        context,
        "labels do not fit the points: the label does not change at the edges of objects",
        split=images.part.split,
        measured=f"the range jumps at {share:.1%} of {pairs.num_changes:.0f} changes of the label in "
        f"{images.num_scans} scans, and at {chance:.1%} of all neighbouring pixels",
        expected=f"at least {_MIN_CHANCE_RATIO:g} times as often at changes of the label, or at {_MIN_EXCESS:.0%} more",
        action="check that labels belong to the scan of the same name, one per point and in the order of the "
        "points: `sightline view`",
        evidence={"field": "label", **pairs._asdict()},
    )
