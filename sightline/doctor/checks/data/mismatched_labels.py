"""Labels of another scan, or in another order than the points: they change where nothing else does.

Beside the edge of a thing the range jumps, and most labels that change from one pixel to the next do so there. Labels
of another scan change as often, and at other places.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sightline.doctor.checks.data.range_images import PartImages, images_by_part
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding

__all__ = ["mismatched_labels"]

_JUMP = 1.1
"""Ratio of neighbouring ranges; on flat ground neighbours in a row differ by some thousandths."""
_FEWEST = 60
"""Changes of the label; of fewer, as in scans of one class, nothing follows."""
_LEAST_OFTEN, _LEAST_SHARE = 5.0, 0.15
"""Changes of the label at a jump: as a multiple of what chance gives, and the share of all beyond chance.

Real scans of KITTI have 14 to 57 and 0.23 to 0.67, scans given the labels of another one 0.6 to 6.7 and -0.01 to 0.14.
"""


class _Pairs(NamedTuple):
    """Pairs of filled and labelled pixels that are neighbours in a row."""

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
    """In range images labels change where the range jumps, five times as often as by chance or 15 % of them more."""
    ignored = context.built.data.facts.get("ignore_index")
    found = [(each, _pairs(each, ignored)) for each in images_by_part(context)]
    return [_of_part(context, each, pairs) for each, pairs in found if _is_by_chance(pairs)]


def _pairs(images: PartImages, ignored: int | None) -> _Pairs:
    ranges = images.range_image
    label: Tensor = torch.cat([batch["label"] for batch in images.batches if "label" in batch] or [ranges * 0]).cpu()
    is_labelled = (ranges > 0) & (label != (-1 if ignored is None else ignored))
    is_pair = is_labelled[..., 1:] & is_labelled[..., :-1]
    nearer, farther = (pick(ranges[..., 1:], ranges[..., :-1]) for pick in (torch.minimum, torch.maximum))
    is_jump = is_pair & (farther > _JUMP * nearer)
    is_change = is_pair & (label[..., 1:] != label[..., :-1])
    return _Pairs(*(float(each.sum()) for each in (is_pair, is_jump, is_change, is_jump & is_change)))


def _is_by_chance(pairs: _Pairs) -> bool:
    """Whether, even at two deviations more than were counted, too few changes are at jumps."""
    if pairs.num_changes < _FEWEST or not pairs.num_jumps:
        return False
    most = (pairs.num_both + 2 * pairs.num_both**0.5 + 2) / pairs.num_changes
    chance = pairs.num_jumps / pairs.num_pairs
    return most < _LEAST_OFTEN * chance and (most - chance) / (1 - chance) < _LEAST_SHARE


def _of_part(context: Context, images: PartImages, pairs: _Pairs) -> Finding:
    chance, share = pairs.num_jumps / pairs.num_pairs, pairs.num_both / pairs.num_changes
    return mismatched_labels.finding(
        context,
        "labels do not fit the points: their edges are not those of the things",
        split=images.part.split,
        measured=f"the range jumps at {share:.1%} of {pairs.num_changes:.0f} changes of the label in "
        f"{images.num_scans} scans, and at {chance:.1%} of all neighbouring pixels",
        expected=f"at least {_LEAST_OFTEN:g} times as often at changes of the label, or at {_LEAST_SHARE:.0%} more",
        action="look whether labels are those of the scan of the same name, one per point and in the order of the "
        "points: `sightline view`",
        evidence={"field": "label", **pairs._asdict()},
    )
