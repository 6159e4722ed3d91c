"""Log-average miss rates of CityPersons and EuroCity Persons, each with its subsets of labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from sightline import registry
from sightline.arguments import Count
from sightline.metrics.base import State
from sightline.metrics.box_groups import BoxGroups, BoxRows, group_boxes
from sightline.metrics.box_header import nan_mean, protocol_header
from sightline.metrics.detection_curves import MISS_RATE_RULES, DetectionCurve, detection_curve

__all__ = ["MissRate"]

_LEVEL = np.array([0.5])
_WIDER = 1.25
"""Factor of a set-up's height range beyond which detections are left out."""


class _SetUp(NamedTuple):
    """Labels from `low` to `high` pixels of height with a visible share of `least` to `most`, all inclusive."""

    low: float
    high: float
    least: float
    most: float


_ABOVE_60, _ABOVE_20 = math.nextafter(0.6, 1), math.nextafter(0.2, 1)
_CITYPERSONS = {
    "reasonable": _SetUp(50, 1e10, 0.65, 1e10),
    "small": _SetUp(50, 75, 0.65, 1e10),
    "heavy": _SetUp(50, 1e10, 0.2, 0.65),
    "all": _SetUp(20, 1e10, 0.2, 1e10),
}
_SET_UPS: Mapping[str, Mapping[str, _SetUp]] = {
    "citypersons": _CITYPERSONS,
    "citypersons_script": _CITYPERSONS,
    "ecp": {
        "reasonable": _SetUp(40, math.inf, _ABOVE_60, math.inf),
        "small": _SetUp(30, 60, _ABOVE_60, math.inf),
        "occluded": _SetUp(40, math.inf, _ABOVE_20, 0.6),
        "all": _SetUp(20, math.inf, _ABOVE_20, math.inf),
    },
}
"""Set-ups of labels by protocol.

In EuroCity Persons the tags occluded or truncated by more than 10, 40, 80 % are shares of 0.9, 0.6, 0.2.
"""
_TITLES = {
    "citypersons": "CityPersons, recall 0 below the first detection",
    "citypersons_script": "CityPersons as its script computes it",
    "ecp": "EuroCity Persons",
}


@registry.metrics.add("miss_rate")
class MissRate(BoxRows):
    """Log-average miss rate (MR^-2): `mr_reasonable`, `mr_small`, `mr_all`, and `mr_heavy` or `mr_occluded`.

    `mr_heavy` is of CityPersons, `mr_occluded` of EuroCity Persons. Each set-up is of labels of certain heights and
    visible shares. An IoU of 0.5 matches one of them; an unmatched detection of which half is inside any other label
    does not count. The `most` highest-scoring detections of an image and class are used; then those outside the
    set-up's heights by a factor of 1.25 are left out. `citypersons_script` reads the final recall if the curve begins
    above a point, as that script does by mistake. Labels of EuroCity Persons are cut at the image's border. Where its
    rules are silent: of labels outside a set-up the IoU decides here, and the share of a detection only for those that
    the data set ignores; `most` holds as above. NaN if no label fits, or the set does not state the visible shares.
    Source: Zhang et al. 2017, CityPersons; Braun et al. 2019, EuroCity Persons; their published evaluations.
    """

    higher_is_better = False

    def __init__(
        self,
        *,
        class_names: tuple[str, ...],
        protocol: Literal["citypersons", "citypersons_script", "ecp"] = "citypersons",
        most: Count = 1000,
    ) -> None:
        self.class_names = tuple(class_names)
        self.protocol = protocol
        self.most = most

    def compute(self, state: State) -> dict[str, float]:
        """Compute the miss rate of each set-up, a mean over classes that have labels in it."""
        rates = {name: [self._rate(curve) for curve in curves] for name, curves in self._curves(state)}
        return {f"mr_{name}": nan_mean(class_rates) for name, class_rates in rates.items()}

    def tables(self, state: State) -> dict[str, Any]:
        """Return `scored_boxes_miss_rate`, with the number of labels in each set-up."""
        about = protocol_header(f"{_TITLES[self.protocol]}, IoU 0.5, at most {self.most} an image and class", state)
        counts = {name: sum(curve.num_labels for curve in curves) for name, curves in self._curves(state)}
        has_visible = bool(state["labels"][:, 8].isfinite().any())
        reason = "no label is in this set-up" if has_visible else "the set does not state what is visible"
        about["undefined"] |= {f"mr_{name}": reason for name, count in counts.items() if not count}
        return {"scored_boxes_miss_rate": {**about, "set_ups": counts}}

    def _rate(self, curve: DetectionCurve) -> float:
        return curve.miss_rate(MISS_RATE_RULES[self.protocol], is_clamped=self.protocol == "ecp")

    def _curves(self, state: State) -> list[tuple[str, list[DetectionCurve]]]:
        """Compute the curve of each class, by set-up."""
        rows = self._cut(state) if self.protocol == "ecp" else state
        all_groups = group_boxes(rows["detections"], rows["labels"], len(self.class_names))
        detections = torch.from_numpy(all_groups.boxes[all_groups.rank < self.most])
        height = detections[:, 4] - detections[:, 2]
        result = []
        for name, set_up in _SET_UPS[self.protocol].items():
            is_kept = (height >= set_up.low / _WIDER) & (height < set_up.high * _WIDER)
            if self.protocol == "ecp":
                is_kept &= height > set_up.low / _WIDER
            groups = group_boxes(detections[is_kept], rows["labels"], len(self.class_names))
            label_ignored = groups.is_ignored | ~_is_in(groups, set_up)
            is_crowd = groups.is_ignored if self.protocol == "ecp" else label_ignored
            is_matched, ignored, _ = groups.match(label_ignored[None], is_crowd=is_crowd, levels=_LEVEL, reuses=True)
            curves = []
            for number in range(len(self.class_names)):
                detection_rows, label_rows = groups.class_slices(number)
                curves.append(
                    detection_curve(
                        groups.boxes[detection_rows, 5],
                        is_matched[0, 0, detection_rows],
                        ignored[0, 0, detection_rows],
                        num_labels=int((~label_ignored[label_rows]).sum()),
                        num_images=len(state["images"]),
                    )
                )
            result.append((name, curves))
        return result

    def _cut(self, state: State) -> State:
        """Cut labels at the border of their images."""
        images = state["images"]
        row = torch.searchsorted(images[:, 0].contiguous(), state["labels"][:, 0].contiguous())
        far = images[row][:, [2, 1, 2, 1]]
        labels = state["labels"].clone()
        labels[:, 1:5] = torch.minimum(labels[:, 1:5].clamp(min=0), far)
        return {**state, "labels": labels}


def _is_in(groups: BoxGroups, set_up: _SetUp) -> np.ndarray:
    height, visible = groups.labels[:, 4] - groups.labels[:, 2], groups.labels[:, 8]
    is_in: np.ndarray = (
        (height >= set_up.low) & (height <= set_up.high) & (visible >= set_up.least) & (visible <= set_up.most)
    )
    return is_in
