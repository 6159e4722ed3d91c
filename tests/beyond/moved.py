"""B3.20: an assigner and a suppression of one's own take boxes of seven numbers."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from sightline.contract import registry
from sightline.contract.plugins import load_plugin
from sightline.ops.boxes.codes import decode_boxes
from sightline.ops.boxes.priors import IGNORED, Priors
from sightline.parts.boxes.padded import PaddedBoxes
from sightline.parts.boxes.suppression import suppress_batch
from tests.mission.rows import row
from tests.mission.trial import Edit

PLUGIN = '''
import sightline
import torch


@sightline.register.assigner("nearest_of_class_3d")
class NearestOfClass3d(sightline.Assigner):
    """Gives an anchor the nearest box of its class within 2 m. Source: made up."""

    prior_kinds = frozenset({"anchors"})
    num_sides = 7
    needs_labels = True

    def match(self, priors, boxes, labels):
        distance = torch.cdist(priors.centres, boxes[:, :2])
        kind = torch.arange(len(priors)) % priors.priors_per_cell[0]
        distance, box = distance.masked_fill(kind[:, None] != labels, torch.inf).min(dim=1)
        matched = torch.where(distance <= 2, box, -1)
        return sightline.Assignment(matched, (matched >= 0).long())


@sightline.register.suppression("circles_3d")
class Circles3d(sightline.Suppression):
    """Drops a detection within 1 m of a better one. Source: made up."""

    num_sides = 7

    def __init__(self) -> None:
        super().__init__(per_class=False)

    def keep(self, boxes, scores, labels):
        kept = []
        for row in scores.argsort(descending=True, stable=True).tolist():
            if all((boxes[row, :2] - boxes[other, :2]).norm() > 1 for other in kept):
                kept.append(row)
        return sightline.SuppressionResult(torch.tensor(kept, dtype=torch.int64), scores[kept])
'''
NO_BOX = [math.nan] * 7


def place(x: float, y: float, *, length: float = 4.0, yaw: float = 0.0) -> list[float]:
    return [x, y, -1.0, length, 2.0, 1.5, yaw]


@row(
    "B3.20",
    "assign and suppress boxes of seven numbers by parts of one's own",
    "`sightline.Assigner` and `sightline.Suppression` with `num_sides = 7`, `assign_batch` and `suppress_batch`",
)
def assign_and_suppress_boxes_in_space(work: Path) -> None:
    """Four cells, 5 m apart, with an anchor of each of two classes; two frames, the first with one box less."""
    plugin = work / "mine_3d.py"
    plugin.write_text(PLUGIN)
    load_plugin(plugin)
    assigner = registry.assigners.get_entry("nearest_of_class_3d").builder()
    anchors = torch.tensor([place(x, 0.0) for x in (0, 5, 10, 15) for _ in range(2)])
    priors = Priors("anchors", anchors, (5,), ((1, 4),), (2,))
    # A region of 6 x 2 m at (11, 1.5), turned by 60 degrees: (10, 0) is 1.8 m back along its axis and 0.12 m beside it,
    # (5, 0) is 4.4 m beside it, (15, 0) 4.2 m on the other side.
    region = place(11, 1.5, length=6.0, yaw=math.pi / 3)
    frames = torch.tensor([[place(1, 0), NO_BOX, NO_BOX], [place(14, 1), place(0, 1), region]])
    is_box = torch.tensor([[True, False, False], [True, True, True]])
    is_ignored = torch.tensor([[False, True, True], [False, False, True]])
    labels = torch.tensor([[1, 0, 0], [0, 1, 0]])
    first, second = assigner.assign_batch(priors, PaddedBoxes(frames, is_box, is_ignored, labels))
    assert first.matched.tolist() == [-1, 0, -1, -1, -1, -1, -1, -1]
    assert second.matched.tolist() == [-1, 1, -1, -1, IGNORED, IGNORED, 0, -1]

    codes = torch.zeros(8, 7)
    codes[0] = torch.tensor([0.5, 0, 1, 0, 0, 0, 0.25])  # half a diagonal, which is the root of 20 m2, and a height up
    boxes = decode_boxes(anchors, codes)
    assert torch.allclose(boxes[0], torch.tensor([5**0.5, 0, 0.5, 4, 2, 1.5, 0.25]))

    suppression = registry.suppressions.get_entry("circles_3d").builder()
    detected = torch.tensor([[place(0, 0), place(0.5, 0), place(3, 0)], [place(3, 0), NO_BOX, place(3.5, 0)]])
    is_detected = torch.tensor([[True, True, True], [True, False, True]])
    scores = torch.tensor([[0.5, 0.75, 0.25], [0.25, 1.0, 0.125]])
    found = suppress_batch(suppression, detected, scores, torch.zeros(2, 3, dtype=torch.int64), is_detected)
    assert found.indices.tolist() == [[1, 2, -1], [0, -1, -1]]
    assert found.scores.tolist() == [[0.75, 0.25, 0.0], [0.25, 0.0, 0.0]]


MUTANTS: dict[str, Edit] = {
    "B3.20": Edit(
        "parts/boxes/assigner.py",
        "(cos * y - sin * x).abs() <= boxes[:, 4] / 2",
        "(cos * y + sin * x).abs() <= boxes[:, 4] / 2",
    ),
}
