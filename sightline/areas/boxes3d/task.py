"""3D detection at anchors: which box each anchor has to find before the forward pass, boxes of a frame after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sightline.areas.boxes3d.anchor_pictures import show_anchors
from sightline.areas.boxes3d.anchors import (
    DIRECTION_OFFSET,
    AnchorAssigner,
    Anchors,
    ClassAnchors,
    make_anchors,
    read_anchors,
    turn_by_direction,
)
from sightline.areas.boxes3d.grid import PillarGrid
from sightline.areas.boxes3d.pictures import draw_from_above
from sightline.areas.boxes3d.predicted_frames import SHOWN_SCORE, read_frame
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne, Probability
from sightline.contract.binding import AvailableKeys
from sightline.contract.errors import ConfigError
from sightline.contract.loss import Loss
from sightline.contract.types import Batch
from sightline.draw.pictures import Picture
from sightline.ops.boxes.codes import MAX_LOG_RATIO, decode_deltas3d
from sightline.ops.boxes.priors import IGNORED
from sightline.ops.boxes.rotated_suppression import box3d_nms
from sightline.ops.dtypes import promote_to_float32, widen_labels
from sightline.ops.waits import fetch, read_list, send, send_list
from sightline.parts.boxes.padded import PaddedBoxes
from sightline.parts.tasks.supervised import Supervised
from sightline.parts.transforms.moved_boxes import wrap_yaw
from sightline.store.boxes3d.box_sample import CAMERA_FIELDS, list_calibrations
from sightline.store.boxes3d.box_table import make_box_table
from sightline.store.boxes3d.image_boxes import project_boxes

_NUM_SHOWN, _NEAR_M = 3, 2.0


@registry.tasks.add("detect3d")
class Detect3d(Supervised):
    """Predicts `detections3d` (D, 9) in the sensor's frame: x, y, z, dx, dy, dz, yaw, score, class.

    Those of frame b are the rows `detections3d_offsets[b]` to `detections3d_offsets[b + 1]`, by falling score. Boxes
    are given to anchors once a step, before the forward pass; losses read `anchors` (A, 7), `target` (B, A), the class
    of the anchor's box, -1 for background, -2 for anchors that no loss counts, and `matched_boxes` (B, A, 7). A box
    whose centre lies outside of the network's extent is not searched. `anchors` state for each class `size`, `bottom`,
    `positive` and `negative`; `sightline data info` proposes those of a set of one's own. `overlap` is what decides: of
    boxes made parallel to the nearer axis (`nearest`), or of volumes. Each step logs the anchors with a box (`n_pos`),
    the ignored ones (`n_ignore`) and the boxes without an anchor (`unmatched_gt`).

    `score` is the least score of a detection; of the `before` highest-scoring, boxes that overlap a kept one from above
    by more than `iou_threshold` are dropped, of any class unless `per_class`, and the `most` highest-scoring are left.
    Where frames have a camera, it predicts `detections3d_image` (D, 5), too: left, top, right and bottom in pixels, and
    the angle of observation (`store/boxes3d/image_boxes.py`).
    Source: Lang et al. 2019, PointPillars, sections 2.3 and 3.3.
    """

    predicts = frozenset({"detections3d", "detections3d_offsets", "truth3d", "truth3d_offsets"})
    context_keys = frozenset({"anchors", "target", "matched_boxes", "is_unmatched"})
    evaluation_arguments = frozenset({"score", "before", "most", "iou_threshold", "per_class"})

    def __init__(
        self,
        *,
        model: nn.Module,
        losses: Mapping[str, Loss],
        batch_keys: AvailableKeys,
        output_keys: AvailableKeys,
        anchors: Mapping[str, ClassAnchors],
        class_names: tuple[str, ...],
        places: Literal["ends", "middles"] = "ends",
        overlap: Literal["nearest", "volume"] = "nearest",
        score: FractionBelowOne = 0.1,
        before: Count = 4096,
        most: Count = 500,
        iou_threshold: Probability = 0.01,
        per_class: bool = False,
    ) -> None:
        grid = getattr(model, "grid", None)
        if not isinstance(grid, PillarGrid):
            raise ConfigError(
                f"task: detect3d needs a model on a grid of pillars, such as pointpillars, found {type(model).__name__}"
            )
        super().__init__(model=model, losses=losses, batch_keys=batch_keys, output_keys=output_keys)
        if CAMERA_FIELDS.keys() <= {*batch_keys.keys}:
            self.predicts = self.predicts | {"detections3d_image"}  # type: ignore[misc]
        self.class_names, self.grid = tuple(class_names), grid
        self.anchors = make_anchors(grid, read_anchors(anchors, self.class_names), places=places)
        self._overlap: Literal["nearest", "volume"] = overlap
        self._score, self._before, self._most = score, before, most
        self._iou_threshold, self._per_class = iou_threshold, per_class
        self._made: dict[torch.device, tuple[Anchors, AnchorAssigner]] = {}

    def get_anchors(self, device: torch.device) -> tuple[Anchors, AnchorAssigner]:
        """Return the anchors, in float64, and their assigner on a device, cached."""
        if device not in self._made:
            anchors = self.anchors.to(device)
            self._made = {device: (anchors, AnchorAssigner(anchors, overlap=self._overlap))}
        return self._made[device]

    def context(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Give each anchor what it has to find: the `context_keys`."""
        boxes, offsets, is_ignored = batch["boxes"], batch["box_offsets"], batch["is_ignored"]
        anchors, assigner = self.get_anchors(boxes.device)
        label = torch.where(self.is_within(boxes), widen_labels(batch["label"]), -1)
        assignments = assigner.assign_batch(anchors.priors, PaddedBoxes.from_rows(boxes, offsets, is_ignored, label))
        targets, matched, has_anchor = [], [], []
        for rows, assignment in zip(_slices(offsets), assignments, strict=True):
            # Row -1 is of anchors without a box: a row of zeros behind the boxes, and the last flag.
            row = assignment.matched
            place, num_boxes = row.clamp(min=-1), rows.stop - rows.start
            targets.append(torch.where(row >= 0, functional.pad(label[rows], (0, 1))[place], row))
            matched.append(functional.pad(boxes[rows], (0, 0, 0, 1))[place])
            flags = torch.zeros(num_boxes + 1, dtype=torch.bool, device=boxes.device)
            has_anchor.append(flags.scatter(0, place % (num_boxes + 1), True)[:-1])
        return {
            "anchors": anchors.boxes.to(torch.promote_types(boxes.dtype, torch.float32)),
            "target": torch.stack(targets),
            "matched_boxes": torch.stack(matched),
            "is_unmatched": ~(torch.cat(has_anchor) | is_ignored | (label < 0)),
        }

    def is_within(self, boxes: Tensor) -> Tensor:
        """Return whether the centres of boxes (M, 7) lie inside of the extent, its faces included."""
        extent_m = self.grid.extent_m
        low, high = (send_list(corner, boxes.device, boxes.dtype) for corner in (extent_m[:3], extent_m[3:]))
        return ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(dim=1)

    def step_counts(self, contexts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Count anchors with a box, ignored anchors, and boxes without an anchor over a step's micro-batches."""
        target = torch.cat([context["target"].flatten() for context in contexts])
        unmatched = torch.cat([context["is_unmatched"] for context in contexts]).sum()
        return {"n_pos": (target >= 0).sum(), "n_ignore": (target == IGNORED).sum(), "unmatched_gt": unmatched}

    def decode(self, outputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the boxes (B, A, 7) and scores (B, A, K) of all anchors."""
        codes = promote_to_float32(outputs["codes"])
        anchors = self.get_anchors(codes.device)[0].boxes.to(codes)
        boxes = decode_deltas3d(anchors, codes)
        yaw = turn_by_direction(boxes[..., 6:], outputs["direction"].argmax(dim=2, keepdim=True))
        return torch.cat([boxes[..., :6], wrap_yaw(yaw)], dim=2), promote_to_float32(outputs["logits"]).sigmoid()

    def postprocess(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Convert outputs to detections (D, 9), with the labels that they are compared with."""
        detections = [self._select(*frame) for frame in zip(*self.decode(outputs), strict=True)]
        device = outputs["codes"].device
        counts = [0, *torch.tensor([len(rows) for rows in detections]).cumsum(0).tolist()]
        predicted = {
            "detections3d": send(torch.cat(detections), device),
            "detections3d_offsets": send_list(counts, device),
        }
        if calibrations := list_calibrations(batch):
            images = [project_boxes(rows[:, :7].numpy(), c) for rows, c in zip(detections, calibrations, strict=True)]
            rows = torch.from_numpy(np.concatenate([np.column_stack(image) for image in images]))
            predicted["detections3d_image"] = send(rows, device)
        if "boxes" not in batch:
            return {**outputs, **predicted}
        columns = [batch["label"][:, None], batch["is_ignored"][:, None]]
        truth = torch.cat([batch["boxes"], *(column.to(batch["boxes"]) for column in columns)], dim=1)
        return {**outputs, **predicted, "truth3d": truth, "truth3d_offsets": batch["box_offsets"]}

    def _select(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Select the detections (D, 9) of a frame from boxes (A, 7) and scores (A, K) of all anchors."""
        highest, label = scores.max(dim=1)
        rows = (~(highest < self._score)).nonzero().flatten()  # NaN, too: metrics report it
        boxes, highest, label = fetch([boxes[rows], highest[rows], label[rows]])
        if (is_nan := highest.isnan()).any():
            chosen = is_nan.nonzero().flatten()[: self._most]
        else:
            labels = label if self._per_class else None
            chosen = box3d_nms(boxes, highest, self._iou_threshold, labels, max_candidates=self._before)[: self._most]
        return torch.cat([boxes[chosen], highest[chosen, None].to(boxes), label[chosen, None].to(boxes)], dim=1)

    def show(self, batch: Batch, predictions: Mapping[str, Any], *, score: float = SHOWN_SCORE) -> list[Picture]:
        """Draw the first frames of a batch from above, with their labels and the boxes from a `score` on."""
        if "boxes" not in batch:
            return []
        pictures = []
        for index, rows in enumerate(_slices(batch["offsets"])[:_NUM_SHOWN]):
            frame = read_frame(predictions, self.class_names, index=index, score=score)
            drawn = draw_from_above(batch["points"][rows].float().cpu().numpy(), frame.labels, frame.found)
            pictures.append(Picture(f"predictions_{index}", drawn, frame.description))
        return pictures

    def show_targets(self, batch: Batch) -> dict[str, tuple[list[Picture], dict[str, Any]]]:
        """Draw the boxes of the first frame by the anchors that have to find them, and count those without any."""
        rows, seen = _slices(batch["box_offsets"])[0], _slices(batch["offsets"])[0]
        boxes, is_ignored = batch["boxes"][rows], batch["is_ignored"][rows]
        label = torch.where(self._is_within(boxes), widen_labels(batch["label"][rows]), -1)
        anchors, assigner = self.get_anchors(boxes.device)
        one = PaddedBoxes.from_rows(boxes, boxes.new_tensor([0, len(boxes)], dtype=torch.int64), is_ignored, label)
        [assignment] = assigner.assign_batch(anchors.priors, one)
        table = make_box_table(
            boxes.double().cpu().numpy(), label.cpu().numpy(), self.class_names, is_ignored=is_ignored.cpu().numpy()
        )
        on_cpu = self.get_anchors(torch.device("cpu"))
        picture, report = show_anchors(
            batch["points"][seen].float().cpu().numpy(), table, *on_cpu, assignment.matched.cpu()
        )
        return {"anchors": ([picture], {"anchors": report})}

    def hardness(self, batch: Batch, predictions: Mapping[str, Any]) -> Tensor:
        """Count for each frame (B,) the labels without a detection of their class within 2 m, and detections without.

        Detections count from a score of 0.3 on.
        """
        counts = []
        detections, truth = predictions["detections3d"].double().cpu(), predictions["truth3d"].double().cpu()
        spans = (_slices(predictions[f"{name}_offsets"]) for name in ("detections3d", "truth3d"))
        for of_found, of_truth in zip(*spans, strict=True):
            found, own = detections[of_found], truth[of_truth]
            found, own = found[found[:, 7] >= SHOWN_SCORE], own[own[:, 8] == 0]
            is_near = (torch.cdist(found[:, :2], own[:, :2]) < _NEAR_M) & (found[:, 8, None] == own[:, 7])
            counts.append((~is_near.any(dim=0)).sum() + (~is_near.any(dim=1)).sum())
        return torch.stack(counts).double()

    @property
    def left_to_caller(self) -> tuple[str, ...]:  # type: ignore[override]
        """Steps that follow the network here and are not in a file of it."""
        of = "their class" if self._per_class else "any class"
        offset = f"{DIRECTION_OFFSET:g}"
        return (
            "boxes are decoded at the anchors, whose diagonal from above is d: x + d code 0, y + d code 1, "
            f"z + dz code 2, dx, dy, dz times exp of codes 3, 4, 5 of at most {MAX_LOG_RATIO:.5g}, yaw + code 6",
            f"their yaw lies in the half of the circle of the larger `direction`, 0 or 1: (yaw - {offset}) modulo pi + "
            f"{offset} + pi times it",
            f"scores are the sigmoid of `logits`; a box is of its highest class, from a score of {self._score:g} on",
            f"of the {self._before:,} highest-scoring boxes, those that a kept one of {of} overlaps from above by an "
            f"IoU of more than {self._iou_threshold:g} are dropped, and {self._most:,} are left",
        )

    @property
    def numbers_for_caller(self) -> dict[str, Any]:  # type: ignore[override]
        """The anchors, in the order y, x, class, rotation, and the limits of what follows."""
        rows, columns = self.grid.head_cells
        boxes = self.anchors.boxes.view(rows, columns, len(self.class_names), -1, 7)
        sizes, heights = boxes[0, 0, :, 0, 3:6].tolist(), boxes[0, 0, :, 0, 2].tolist()
        named = zip(self.class_names, sizes, heights, strict=True)
        return {
            "anchors": {
                "y_m": boxes[:, 0, 0, 0, 1].tolist(),
                "x_m": boxes[0, :, 0, 0, 0].tolist(),
                "classes": [{"name": name, "size_m": size, "z_m": height} for name, size, height in named],
                "yaw_rad": boxes[0, 0, 0, :, 6].tolist(),
            },
            "direction_offset_rad": DIRECTION_OFFSET,
            "score": self._score,
            "before": self._before,
            "iou_threshold": self._iou_threshold,
            "per_class": self._per_class,
            "most": self._most,
        }


def _slices(offsets: Tensor) -> list[slice]:
    bounds = read_list(offsets)
    return [slice(*pair) for pair in pairwise(bounds)]
