"""Assigners that read predictions, and the losses on what they assign, against the numbers of the published code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sightline.assigners.base import BACKGROUND, Predicted
from sightline.assigners.simota import SimOTA
from sightline.geometry.boxes.priors import make_points
from tests.assigners.test_golden import case_of
from tests.golden_parity import load_golden

SIMOTA_POINTS = make_points(((16, 20), (8, 10), (4, 5)), (8, 16, 32), dtype=torch.float64)


def corners(middles: torch.Tensor) -> torch.Tensor:
    return torch.cat([middles[:, :2] - middles[:, 2:] / 2, middles[:, :2] + middles[:, 2:] / 2], dim=1)


@pytest.mark.parametrize("case", range(16))
def test_simota_is_the_published_one(shared: Path, case: int) -> None:
    """In case 13 all boxes are out of reach: theirs raises an error."""
    golden = load_golden(shared, "assign_simota", area="detect")
    stored, priors = case_of(golden, case), SIMOTA_POINTS
    centres = torch.stack([golden.tensor("grid_x"), golden.tensor("grid_y")], dim=1) + 0.5
    assert torch.equal(centres * golden.tensor("stride")[:, None], priors.rows)
    rows = stored["pred_cxcywh_obj_cls"]
    predicted = Predicted(rows[:, 5:], corners(rows[:, :4]), rows[:, 4])
    boxes, labels = corners(stored["gt_cxcywh"]), stored["classes"].long()
    none = torch.zeros(len(boxes), dtype=torch.bool)
    found = SimOTA(guarantee=False)(priors, boxes, none, labels, predicted)
    expected = stored["gt_index"].long() if "gt_index" in stored else torch.full((len(priors),), BACKGROUND)
    assert torch.equal(found.matched, expected)
    sure = SimOTA()(priors, boxes, none, labels, predicted).matched
    assert {*sure.tolist()} == ({BACKGROUND} if case == 13 else {BACKGROUND, *range(len(boxes))})
    assert torch.equal(sure[expected >= 0], expected[expected >= 0])
