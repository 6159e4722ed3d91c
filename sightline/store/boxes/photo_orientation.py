"""Orientation of labelled photos: labels count the pixels as they are stored, or as EXIF's orientation turns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from sightline.store.boxes.label_table import AnnotationFaults, BoxCorners, LabelledBox, LabelledImage
from sightline.store.files.image_files import ImageHeader

OrientationRule = Literal["sizes", "apply", "ignore"]
"""What labels are about: the pixels of which they state the size, turned photos (`apply`), stored pixels (`ignore`)."""
_MARGIN_PX = 1.0
"""How far a box may reach beyond its photo: annotation tools round, and some count the last pixel otherwise."""
_BEYOND = {
    True: "boxes beyond photos as EXIF turns them that fit into the stored pixels (orientation=ignore, if labels are "
    "about these)",
    False: "boxes beyond the stored pixels of photos that fit into the turned photos (orientation=apply, if labels are "
    "about these)",
}
"""Kind of fault by whether the photo was assumed to be turned."""


def assume_turned(headers: Sequence[tuple[LabelledImage, ImageHeader]], rule: OrientationRule) -> list[bool]:
    """Return for each image whether its labels are about the photo as EXIF turns it.

    By the sizes, images whose size shows nothing are taken as the others are, and all as turned if no size shows it.
    """
    if rule != "sizes":
        return [header.orientation > 1 and rule == "apply" for _, header in headers]
    shown = [(_has_size(*pair, turned=True), _has_size(*pair, turned=False)) for pair in headers]
    otherwise = (False, True) not in shown
    return [
        header.orientation > 1 and (is_turned if is_turned != is_stored else otherwise)
        for (_, header), (is_turned, is_stored) in zip(headers, shown, strict=True)
    ]


def _has_size(image: LabelledImage, header: ImageHeader, *, turned: bool) -> bool:
    return header.size_px(upright=turned) == image.size_px


def agrees_with_size(image: LabelledImage, header: ImageHeader, rule: OrientationRule, *, is_turned: bool) -> bool:
    """Return True unless labels state another size; a rule overrules which of the two sizes of a photo they state."""
    is_other_allowed = rule != "sizes" and _has_size(image, header, turned=not is_turned)
    return image.size_px is None or _has_size(image, header, turned=is_turned) or is_other_allowed


def leave_out_beyond(
    image: LabelledImage, header: ImageHeader, faults: AnnotationFaults, *, is_turned: bool
) -> LabelledImage:
    """Return an image without boxes that reach beyond it but fit into its other orientation, which are faults."""
    size_px, other_px = (header.size_px(upright=upright) for upright in (is_turned, not is_turned))
    if size_px == other_px:
        return image
    boxes: list[LabelledBox] = []
    for row in image.boxes:
        box = row.visible or row.box or row.head
        if box is None or _fits(box, size_px) or not _fits(box, other_px):
            boxes.append(row)
            continue
        (height, width), corners = size_px, ", ".join(f"{corner:g}" for corner in box)
        faults.add(_BEYOND[is_turned], f"{image.name}: {row.class_name} {corners} in {width} x {height}")
    return image if len(boxes) == len(image.boxes) else replace(image, boxes=boxes)


def _fits(box: BoxCorners, size_px: tuple[int, int]) -> bool:
    height, width = size_px
    left, top, right, bottom = box
    return min(left, top) >= -_MARGIN_PX and right <= width + _MARGIN_PX and bottom <= height + _MARGIN_PX
