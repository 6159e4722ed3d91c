"""Boxes that were found in images, in pixels of their files, and the files of results that hold them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sightline.errors import DataError

__all__ = ["Detections", "ImageRef", "detections_of_coco", "detections_of_odgt"]


class ImageRef(NamedTuple):
    """What names an image in files of results, and its height and width in pixels, turned as its boxes are."""

    name: str
    image_id: int
    height: int
    width: int


@dataclass(frozen=True)
class Detections:
    """The boxes found in one image, in its file's pixels: (D, 4) left, top, right, bottom, float32, not clipped.

    `scores` (D,) float32, `label` (D,) int64 from 0. Arrays are read-only; files of results give back the same bits.
    Raises ValueError for arrays that do not belong together.
    """

    image: ImageRef
    boxes: np.ndarray
    scores: np.ndarray
    label: np.ndarray

    def __post_init__(self) -> None:
        for name, dtype, shape in (
            ("boxes", np.float32, (-1, 4)),
            ("scores", np.float32, (-1,)),
            ("label", np.int64, (-1,)),
        ):
            array = np.array(getattr(self, name), dtype=dtype).reshape(shape)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if not len(self.boxes) == len(self.scores) == len(self.label):
            raise ValueError(
                f"{self.image.name}: {len(self.boxes)} boxes, {len(self.scores)} scores and {len(self.label)} classes"
            )

    def to_coco(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of a COCO file of results; `category_ids` are those of the classes, in their order."""
        return [
            {"image_id": self.image.image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for box, score, label in self._rows()
        ]

    def to_odgt(self) -> dict[str, Any]:
        """A line of a CrowdHuman file of results, for `json.dumps`; class k has the tag k + 1."""
        found = [{"box": box, "score": score, "tag": label + 1} for box, score, label in self._rows()]
        return {"ID": self.image.name, "width": self.image.width, "height": self.image.height, "dtboxes": found}

    def _rows(self) -> Iterable[tuple[list[float], float, int]]:
        """Boxes as left, top, width, height: from float32 in float64, so that adding them up gives back the bits."""
        corners = self.boxes.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return zip(boxes.tolist(), self.scores.tolist(), self.label.tolist(), strict=True)


def detections_of_coco(
    rows: Iterable[Mapping[str, Any]], *, images: Sequence[ImageRef], category_ids: Sequence[int], where: str
) -> list[Detections]:
    """What a COCO file of results holds of each of these images, in their order; of some perhaps nothing.

    Raises DataError, led by `where`, for a row of an image or a category that is not among them, or without a number.
    """
    label_of = {number: label for label, number in enumerate(category_ids)}
    found: defaultdict[int, list[tuple[Any, Any, int]]] = defaultdict(list)
    known = {image.image_id for image in images}
    for place, row in enumerate(rows):
        try:
            if row["image_id"] not in known:
                raise DataError(f"{where}: row {place} is of image {row['image_id']}, which is not among these images")
            found[row["image_id"]].append((row["bbox"], row["score"], label_of[row["category_id"]]))
        except KeyError as error:
            raise DataError(
                f"{where}: row {place} has no {error} or an unknown one; write the results again"
            ) from error
    return [_of_rows(image, found[image.image_id], where) for image in images]


def detections_of_odgt(
    lines: Iterable[Mapping[str, Any]], *, images: Sequence[ImageRef], where: str
) -> list[Detections]:
    """What a CrowdHuman file of results holds of each of these images, in their order; of some perhaps nothing.

    Raises DataError, led by `where`, for a line of an image that is not among them or was there, or without a number.
    """
    known = {image.name for image in images}
    found: dict[str, list[tuple[Any, Any, int]]] = {}
    for place, line in enumerate(lines):
        try:
            if line["ID"] not in known or line["ID"] in found:
                what = "there twice" if line["ID"] in found else "not among these images"
                raise DataError(f"{where}: line {place + 1}: the image '{line['ID']}' is {what}")
            found[line["ID"]] = [(row["box"], row["score"], row.get("tag", 1) - 1) for row in line["dtboxes"]]
        except KeyError as error:
            raise DataError(f"{where}: line {place + 1} has no {error}; write the results again") from error
    return [_of_rows(image, found.get(image.name, []), where) for image in images]


def _of_rows(image: ImageRef, rows: Sequence[tuple[Any, Any, int]], where: str) -> Detections:
    try:
        boxes = np.array([box for box, _, _ in rows], dtype=np.float64).reshape(len(rows), 4)
        scores = np.array([score for _, score, _ in rows], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: image '{image.name}': a box of four numbers and a score are needed ({error})"
        ) from error
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise DataError(f"{where}: image '{image.name}': a box or score is not finite")
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return Detections(image, corners, scores, np.array([label for _, _, label in rows], dtype=np.int64))
