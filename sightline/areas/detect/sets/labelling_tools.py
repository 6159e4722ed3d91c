"""The user's own images with boxes from labelling tools: Pascal VOC, LabelMe, and CVAT for images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from sightline.areas.detect.sets.annotations import LabelledImage, LabelledSet
from sightline.areas.detect.sets.coco import COLUMNS
from sightline.areas.detect.sets.image_listing import (
    AnnotationFaults,
    CategoryIds,
    ListedImage,
    ListedImageSet,
    Values,
    xywh_to_xyxy,
)
from sightline.areas.detect.sets.labelled_images import ListedLabels
from sightline.areas.detect.sets.labelling_tool_files import read_cvat, read_labelme, read_voc
from sightline.contract import registry
from sightline.store.prepared.prepared_data import SetSpec


class _ToolImages(ListedLabels):
    """Base of the sets of labelling tools: a reader, whose boxes are stored as those of COCO."""

    read_labels: ClassVar[staticmethod[[Path], LabelledSet]]

    @classmethod
    def list_images(cls, source: Path) -> ListedImageSet:
        labelled = cls.read_labels(source)
        assert labelled.classes is not None
        images = []
        for each in labelled.images:
            if each.path is None:
                fault = f"{each.files[0]}: there is no image '{each.name}' below {labelled.root}"
                labelled.faults.add("images that are missing or damaged", fault)
                continue
            read = partial(_make_columns, each, labelled.classes)
            images.append(ListedImage(each.split, each.name, each.path, read, each.image_id, each.size_px, each.files))
        return ListedImageSet(
            *(labelled.root, cls.set_name, labelled.classes, images, COLUMNS, "boxes", labelled.faults, labelled.notes),
            form="two corners",
        )


def _make_columns(
    image: LabelledImage, classes: CategoryIds, size_px: tuple[int, int], faults: AnnotationFaults
) -> Values:
    corners = np.array([xywh_to_xyxy(box.boxes["full"]) for box in image.boxes], dtype=np.float64).reshape(-1, 4)
    label_by_name = {name: label for label, name in enumerate(classes.names)}
    return {
        "boxes": corners,
        "label": np.array([label_by_name[box.label] for box in image.boxes], dtype=np.int64),
        "area": (corners[:, 2:] - corners[:, :2]).prod(axis=1),
        "is_ignored": np.array([box.is_ignored for box in image.boxes], dtype=bool),
    }


@registry.data.add("voc")
class Voc(_ToolImages):
    """Images with boxes in Pascal VOC's XML, prepared by `sightline data prepare voc`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Difficult objects are
    ignored, and boxes narrower or lower than `ignore_below_px` pixels of the file. Where neither ImageSets/Main nor
    folders state a test part, `tested` are beginnings of names, or `test_share` is tested. Source: Everingham et al.
    2010, The PASCAL Visual Object Classes (VOC) Challenge.
    """

    spec, read_labels = SetSpec(name="voc"), staticmethod(read_voc)


@registry.data.add("labelme")
class LabelMe(_ToolImages):
    """Images with boxes in LabelMe's JSON, prepared by `sightline data prepare labelme`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Polygons, circles and
    masks become the boxes about them. Boxes narrower or lower than `ignore_below_px` pixels of the file are ignored.
    Where folders state no test part, `tested` are beginnings of names, or `test_share` is tested. Source: the user's
    files; the format is that of LabelMe (Wada).
    """

    spec, read_labels = SetSpec(name="labelme"), staticmethod(read_labelme)


@registry.data.add("cvat")
class Cvat(_ToolImages):
    """Images with boxes in the XML of 'CVAT for images', prepared by `sightline data prepare cvat`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Polygons, masks and
    ellipses become the boxes about them. Boxes narrower or lower than `ignore_below_px` pixels of the file are ignored.
    Where neither subsets nor folders state a test part, `tested` are beginnings of names, or `test_share` is tested.
    Source: the user's files; the format is CVAT for images 1.1.
    """

    spec, read_labels = SetSpec(name="cvat"), staticmethod(read_cvat)
