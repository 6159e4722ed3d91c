"""Object detection by a set of boxes: detections of networks that match their predictions to boxes themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sightline.areas.detect.assignment_pictures import ImageBoxes, show_labels, show_matching
from sightline.areas.detect.output import concatenate_detections, to_file_pixels
from sightline.areas.detect.pictures import MIN_DRAWN_SCORE, get_image_pixels, show_detections
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne
from sightline.contract.binding import AvailableKeys, select_arguments
from sightline.contract.errors import ConfigError
from sightline.contract.loss import Loss
from sightline.contract.types import Batch
from sightline.draw.pictures import Picture
from sightline.ops.dtypes import promote_to_float32
from sightline.ops.waits import fetch
from sightline.parts.tasks.supervised import Supervised


@registry.tasks.add("detect_set")
class DetectSet(Supervised):
    """Predicts `detections` as the task `detect`, of networks without priors: a set of boxes, matched by their losses.

    It takes models that return `logits` (B, Q, K), before the sigmoid, and `set_boxes` (B, Q, 4), centre and size in
    shares of the canvas. A box is a detection of every class with a probability above `score`; the `most`
    highest-scoring of an image are kept, and nothing is suppressed. `score`, `most` and `clip` change evaluation alone.
    Without `clip`, boxes may exceed the file's border.
    Source: Carion et al. 2020, End-to-End Object Detection with Transformers; scores of Zhu et al. 2021, Deformable
    DETR.
    """

    predicts = frozenset({"detections", "detection_offsets"})
    evaluation_arguments = frozenset({"score", "most", "clip"})

    def __init__(
        self,
        *,
        model: nn.Module,
        losses: Mapping[str, Loss],
        batch_keys: AvailableKeys,
        output_keys: AvailableKeys,
        score: FractionBelowOne = 0.001,
        most: Count = 300,
        clip: bool = True,
        class_names: tuple[str, ...] = (),
    ) -> None:
        if missing := {"logits", "set_boxes"} - {*output_keys.keys}:
            raise ConfigError(
                f"task: detect_set needs a model that returns {' and '.join(sorted(missing))}, such as "
                f"transformers_detector, found {type(model).__name__}; of a detector with priors, the task is detect"
            )
        super().__init__(model=model, losses=losses, batch_keys=batch_keys, output_keys=output_keys)
        self._model = model
        self._min_score, self._most, self._clip, self._class_names = score, most, clip, class_names

    def postprocess(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Convert outputs to detections (D, 6) in pixels of the files."""
        height, width = batch["image"].shape[2:]
        rows, counts = self._choose(outputs, height, width)
        rows, counts, to_canvas, file_px = fetch([rows, counts, batch["to_canvas"], batch["file_px"]])
        detections = [
            to_file_pixels(image, *maps, clip=self._clip)
            for image, *maps in zip(rows.split(counts.tolist()), to_canvas, file_px, strict=True)
        ]
        return {**outputs, **concatenate_detections(detections, outputs["logits"].device)}

    def _choose(self, outputs: Mapping[str, Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """Choose the detections (D, 6) of all images on the canvas, by falling score, and their number in each (B,)."""
        scores = promote_to_float32(outputs["logits"].detach()).sigmoid()
        num_classes = scores.shape[2]
        flat = scores.flatten(1)
        score, index = flat.nan_to_num(torch.inf, torch.inf, 0.0).topk(min(self._most, flat.shape[1]), dim=1)
        score = flat.gather(1, index)  # NaN comes first, so that metrics report it
        query, label = index // num_classes, index % num_classes
        corners = _to_corners(outputs["set_boxes"], height, width).gather(1, query[..., None].expand(-1, -1, 4))
        rows = torch.cat([corners, score[..., None].to(corners), label[..., None].to(corners)], dim=2)
        is_chosen = ~(score <= self._min_score)
        return rows[is_chosen], is_chosen.sum(dim=1)

    def show(
        self,
        batch: Batch,
        predictions: Mapping[str, Any],
        *,
        pixels: np.ndarray | None = None,
        score: float = MIN_DRAWN_SCORE,
    ) -> list[Picture]:
        """Draw the first images with true and false positives and missed labels; `pixels` (H, W, 3) of the first."""
        if "truth" not in batch:
            return []
        return show_detections(batch, predictions, class_names=self._class_names, least_score=score, pixels=pixels)

    def show_targets(
        self, batch: Batch, *, pixels: np.ndarray | None = None, is_trained: bool = False
    ) -> dict[str, tuple[list[Picture], dict[str, Any]]]:
        """Draw the boxes of the first image with the predictions that they are matched to.

        This takes a run (`is_trained`), because random weights predict boxes of no meaning, and a model with the method
        `match_boxes(outputs, ...)`, which names fields of the batch; of others, the boxes are drawn alone.
        """
        rows, pixels = slice(*batch["box_offsets"][:2].tolist()), get_image_pixels(batch, 0, pixels)
        image = ImageBoxes(batch["boxes"][rows], batch["is_ignored"][rows], batch["label"][rows], self._class_names)
        match = getattr(self._model, "match_boxes", None)
        if not is_trained or match is None:
            return {"assignment": ([show_labels(pixels, image, _NO_WEIGHTS if match else _NO_MATCHING)], {})}
        like = next(self._model.parameters())
        first = {name: value.to(like.device) for name, value in batch.items() if isinstance(value, Tensor)}
        with torch.no_grad():
            outputs = self.outputs(self._model, first)
        pairs = match(outputs, **select_arguments(match, first))[0]
        corners = _to_corners(outputs["set_boxes"][:1], *batch["image"].shape[2:])[0].cpu()
        picture, figures = show_matching(pixels, image, corners.to(image.boxes), tuple(each.cpu() for each in pairs))
        return {"assignment": ([picture], {"matching": figures})}


_NO_WEIGHTS = "labels alone, no weights; each box is matched to the prediction that fits it best, which a run shows"
_NO_MATCHING = "labels alone; the network matches boxes to its predictions itself, and has no method match_boxes to ask"


def _to_corners(set_boxes: Tensor, height: int, width: int) -> Tensor:
    """Convert centres and sizes (..., 4) in shares of a canvas to left, top, right, bottom in its pixels."""
    centred = promote_to_float32(set_boxes.detach())
    middle, half = centred[..., :2], centred[..., 2:] / 2
    return torch.cat([middle - half, middle + half], dim=-1) * centred.new_tensor([width, height] * 2)
