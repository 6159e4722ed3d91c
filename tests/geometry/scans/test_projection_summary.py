"""What a projection shows, and the figures of a perfect network: worked by hand."""

from __future__ import annotations

import pytest
import torch

from sightline.geometry.scans.lift import ProjectionSummary
from sightline.geometry.scans.projection import RangeView

AHEAD = RangeView(height=1, width=4, fov_deg=(10.0, -10.0), azimuth_deg=(90.0, -90.0))
# Columns of 45 degrees: two points in the first, the nearer of class 1; one in the third; one above the image in it.
POINTS = torch.tensor([[0.1, 5.0, 0.0], [0.2, 9.0, 0.0], [3.0, -0.5, 0.0], [4.0, -0.5, 4.0]])
LABEL = torch.tensor([1, 2, 2, 2])


def summary(label: torch.Tensor | None, *, ignored: int | None = 0) -> dict[str, float]:
    made = ProjectionSummary(AHEAD, 3, ignored)
    for points in (POINTS, POINTS * 2):  # the same pixels twice
        made.add(points, label=label, offsets=torch.tensor([0, len(points)]))
    return made.figures()


def test_by_hand() -> None:
    """Point 1 gets class 1 of the nearer one, so class 1 has IoU 1/2 and class 2 has 2/3; the vote repairs nothing."""
    found = summary(LABEL)
    assert found["points_shown"] == 0.5
    assert found["points_clamped"] == 0.25
    assert found["pixels_filled"] == 0.5
    assert found["ceiling_nearest"] == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-4)


def test_ignored_points_count_nowhere_whatever_index_they_have() -> None:
    for ignored, index in ((0, 0), (255, 255), (None, 255)):
        label = torch.tensor([1, index, 2, 2])
        assert summary(label, ignored=ignored)["ceiling_nearest"] == 1.0


def test_without_labels_there_is_no_ceiling() -> None:
    assert set(summary(None)) == {"points_shown", "points_clamped", "pixels_filled"}
    assert set(summary(torch.zeros(4, dtype=torch.int64))) == set(summary(None))
