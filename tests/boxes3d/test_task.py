"""From predictions at anchors to boxes, and the kinds of their errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.areas.boxes3d.losses import AnchorBox, AnchorClass, AnchorDirection
from sightline.areas.boxes3d.metrics.boxes3d_errors import Boxes3dErrors
from sightline.areas.boxes3d.pointpillars import PointPillars
from sightline.areas.boxes3d.stages import BoxStages
from sightline.areas.boxes3d.task import Detect3d
from sightline.contract.binding import AvailableKeys
from sightline.contract.errors import ConfigError
from sightline.contract.types import DataInfo
from sightline.ops.boxes.codes import encode_deltas3d
from sightline.view.sample_predictor import SamplePredictor
from tests.boxes3d.golden import EXTENT, KITTI

NAMES = tuple(KITTI)
KEYS = frozenset("points features offsets boxes label is_ignored box_offsets sample_index".split())


def make_task(**arguments: Any) -> Detect3d:
    network = PointPillars(num_classes=3, in_channels=4, extent_m=EXTENT)
    losses: Any = {"class": AnchorClass(), "box": AnchorBox(), "direction": AnchorDirection()}
    outputs = AvailableKeys("the model", frozenset({"logits", "codes", "direction"}))
    given: dict[str, Any] = {"anchors": KITTI, "class_names": NAMES, **arguments}
    return Detect3d(
        model=network, losses=losses, batch_keys=AvailableKeys("the set", KEYS), output_keys=outputs, **given
    )


def test_boxes_are_shown_by_the_anchors_that_find_them() -> None:
    """Of two cars in one place an anchor has to find the first; the long box overlaps the best anchor too little.

    That one lies within its length, so that they share 3.9 m by what their widths share.
    """
    task = make_task()
    cars = torch.tensor(
        [[4.0, 3.0, -1, 3.9, 1.6, 1.5, 0], [4.0, 3.0, -1, 3.9, 1.6, 1.5, 0], [5.0, -2, -1, 9, 1.6, 1, 0]]
    )
    batch = make_batch(cars, torch.zeros(3, dtype=torch.long))
    batch |= {"points": cars[:, :3], "offsets": torch.tensor([0, 3])}
    [picture], report = task.show_targets(batch)["anchors"]
    row = report["anchors"]["Car"]
    assert (row["boxes"], row["without_anchor"], row["below_positive"]) == (3, 1, 1)
    assert int(task.context(torch.nn.Identity(), batch)["is_unmatched"].sum()) == 1
    lines = task.anchors.boxes[(task.anchors.label == 0) & (task.anchors.boxes[:, 6] == 0), 1]
    shared = 3.9 * float((1.6 - (lines + 2).abs()).max())
    assert row["least_overlap"] == pytest.approx(shared / (9 * 1.6 + 3.9 * 1.6 - shared), abs=1e-6)
    assert "1 without an anchor, 1 found by the best anchor alone" in picture.caption


def test_what_is_found_is_said_and_drawn() -> None:
    """A car and a reversed cyclist are found, a pedestrian is missed, and a second car scores too little."""
    task, batch = make_task(), make_batch()
    found = torch.cat([BOXES[[0, 0, 2]], torch.tensor([[0.9, 0], [0.2, 0], [0.8, 2]])], dim=1)
    found[2, 6] += math.pi
    truth = torch.cat([BOXES, LABELS[:, None], torch.zeros(3, 1)], dim=1)
    predictions = {"detections3d": found, "truth3d": truth}
    predictions |= {f"{name}_offsets": torch.tensor([0, 3]) for name in ("detections3d", "truth3d")}
    seen = {**batch, "points": BOXES[:, :3], "offsets": torch.tensor([0, 3])}
    [picture] = task.show(seen, predictions)
    assert picture.caption == (
        "2 of 3 labels found; errors: 1 reversed, 1 missed; 1 below the score 0.3 not drawn, up to 0.2"
    )
    stages = BoxStages(seen, DataInfo({}, {}, {}), {"class_names": NAMES, "up_axis": "z"})
    predictor = SamplePredictor(torch.nn.Identity(), task, None, None, torch.device("cpu"), 0.1)  # type: ignore[arg-type]
    stage, figures = stages.prediction_stages([stages.raw_stage(seen)], seen, predictions, predictor)
    assert (figures["found"], figures["double"], figures["not_drawn"]) == (2, 1, 0)
    assert {each.name: each.num_objects for each in stage.skeletons} == {
        "labels: Car": 1,
        "labels: Pedestrian": 1,
        "labels: Cyclist": 1,
        "predicted: Car": 2,
        "predicted: Cyclist": 1,
    }
    assert stage.panels[0].pixels.shape[2] == 3


BOXES = torch.tensor(
    [[3.0, 0, -1, 4, 1.7, 1.5, 2.5], [7.0, 2, -0.6, 0.8, 0.7, 1.7, -1.0], [9.0, -3, -0.6, 1.8, 0.6, 1.7, 0.1]]
)
LABELS = torch.tensor([0, 1, 2])


def make_batch(boxes: Tensor = BOXES, label: Tensor = LABELS) -> dict[str, Tensor]:
    offsets = torch.tensor([0, len(boxes)])
    return {
        "boxes": boxes,
        "label": label,
        "is_ignored": torch.zeros(len(boxes), dtype=torch.bool),
        "box_offsets": offsets,
    }


def predict_perfectly(task: Detect3d, context: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs that state what each anchor has to find."""
    target, boxes = context["target"], context["matched_boxes"]
    has_box = (target >= 0)[..., None]
    codes = encode_deltas3d(context["anchors"], torch.where(has_box, boxes, context["anchors"]))
    yaw = (boxes[..., 6] - 0.78539) % (2 * math.pi)
    direction = torch.nn.functional.one_hot((yaw // math.pi).long(), 2).float()
    logits = torch.where(torch.nn.functional.one_hot(target.clamp(min=0), 3).bool() & has_box, 4.0, -9.0)
    return {"logits": logits, "codes": codes, "direction": direction}


def test_what_anchors_have_to_find_comes_out_as_the_boxes() -> None:
    task, batch = make_task(), make_batch()
    context = task.context(torch.nn.Identity(), batch)
    counts = task.step_counts([context])
    assert int(counts["unmatched_gt"]) == 0
    assert int(counts["n_pos"]) >= 3
    predicted = task.postprocess(predict_perfectly(task, context), batch)
    found = predicted["detections3d"][predicted["detections3d"][:, 8].argsort()]
    torch.testing.assert_close(found[:, :7], BOXES, rtol=0, atol=1e-5)
    assert found[:, 8].tolist() == [0, 1, 2]
    assert predicted["detections3d_offsets"].tolist() == [0, 3]
    assert predicted["truth3d"][:, 7:].tolist() == [[0, 0], [1, 0], [2, 0]]
    assert float(task.hardness(batch, predicted)[0]) == 0
    nothing = {
        **predicted,
        "detections3d": found[:1] + torch.tensor([9.0, *[0] * 8]),
        "detections3d_offsets": torch.tensor([0, 1]),
    }
    assert float(task.hardness(batch, nothing)[0]) == 4  # three are missed, one is wrong


def test_a_box_outside_or_ignored_is_not_searched() -> None:
    task = make_task()
    moved = BOXES + torch.tensor([[20.0, *[0.0] * 6], [0.0] * 7, [0.0] * 7])
    batch = {**make_batch(moved), "is_ignored": torch.tensor([False, True, False])}
    context = task.context(torch.nn.Identity(), batch)
    assert set(context["target"][context["target"] >= 0].tolist()) == {2}
    assert int(context["is_unmatched"].sum()) == 0
    tiny = {**make_batch(BOXES[:1] * 0 + torch.tensor([5.0, 0, -1, 1e-6, 1e-6, 1, 0]), LABELS[:1])}
    assert int(task.context(torch.nn.Identity(), tiny)["target"].max()) == 0  # the anchor that overlaps it best


def test_suppression_is_of_all_classes_or_within_each() -> None:
    """A cyclist beside a car, of which the boxes overlap by a little."""
    near = BOXES.clone()
    near[2, :2] = near[0, :2] + torch.tensor([0.3, 0.9])
    for per_class, count in ((False, 2), (True, 3)):
        task, batch = make_task(per_class=per_class), make_batch(near)
        context = task.context(torch.nn.Identity(), batch)
        assert len(task.postprocess(predict_perfectly(task, context), batch)["detections3d"]) == count


def test_anchors_are_stated_for_each_class() -> None:
    with pytest.raises(ConfigError, match="without anchors: Cyclist"):
        make_task(anchors={name: KITTI[name] for name in NAMES[:2]})
    with pytest.raises(ConfigError, match="no such class: Tram"):
        make_task(anchors={**KITTI, "Tram": KITTI["Car"]})
    with pytest.raises(ConfigError, match=r"negative 0.9 is above positive 0.6"):
        make_task(anchors={**KITTI, "Car": {**KITTI["Car"], "negative": 0.9}})


# --- kinds of errors --------------------------------------------------------------------------------------------------


CAR = [10.0, 0, 0, 4, 2, 2, 0]
FAR = [40.0, 0, 0, 4, 2, 2, 0]
CASES = {
    "right": ([[*CAR, 0.9, 0]], {}),
    "reversed": ([[*CAR[:6], 3.0, 0.9, 0]], {"reversed": 1}),
    "class": ([[*CAR, 0.9, 1]], {"class": 1}),
    "place": ([[11.9, 0.5, 0, 4, 2, 2, 0, 0.9, 0]], {"place": 1}),
    "double": ([[*CAR, 0.9, 0], [*CAR, 0.8, 0]], {"double": 1}),
    "background": ([[*CAR, 0.9, 0], [20.0, 9, 0, 4, 2, 2, 0, 0.9, 0]], {"background": 1}),
    "missed": ([[*CAR, 0.29, 0]], {"missed": 1}),
    "missed and background": ([[20.0, 9, 0, 4, 2, 2, 0, 0.9, 0]], {"background": 1, "missed": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_error_is_counted(name: str) -> None:
    detections, kinds = CASES[name]
    metric = Boxes3dErrors(class_names=("car", "cyclist"))
    state = metric.new_state()
    metric.update(
        state,
        detections3d=torch.tensor([*detections, [*FAR, 0.9, 0]]),
        detections3d_offsets=torch.tensor([0, len(detections) + 1]),
        truth3d=torch.tensor([[*CAR, 0, 0], [*FAR, 0, 1]]),
        truth3d_offsets=torch.tensor([0, 2]),
        sample_index=torch.tensor([3]),
        num_points=torch.tensor([7, 2]),
    )
    tables = metric.tables(state)
    assert {kind: row["counted"] for kind, row in tables["box_errors"].items() if row["counted"]} == kinds
    counted, missed = sum(row[7] >= 0.3 for row in detections), kinds.get("missed", 0)
    # The far detection is about an ignored label.
    assert tables["missed_by"]["0 to 15 m"] == {"labels": 1, "missed": missed}
    assert tables["missed_by"]["5 to 20 points"] == {"labels": 1, "missed": missed}
    assert tables["missed_by"]["1 to 5 points"]["labels"] == 0
    figures = metric.compute(state)
    for kind, count in kinds.items():
        assert figures[f"error_{kind}"] == pytest.approx(count / (1 if kind == "missed" else counted))
    assert {kind: [*frames.items()] for kind, frames in metric.worst_samples(state).of_kind.items() if frames} == {
        kind: [(3, count)] for kind, count in kinds.items()
    }
