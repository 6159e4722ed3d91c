"""Rules of geometry: targets move with inputs that reads of a sample mirror."""

from __future__ import annotations

from collections.abc import Iterator

from sightline.doctor.evidence.boxes import OnBands
from sightline.doctor.evidence.data.mirrored_reads import Carrier, InsideOut, Unfollowed
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule

_MIN_SHARE, _MAX_LEFT = 0.25, 0.05


@rule(
    "augmentation-mismatch",
    "error",
    "data.augment_target_mismatch data.pairing",
    holds="the mask mirrored with its image",
    do="flip both, by one random number",
)
def mirrored_maps(left_maps: dict[Carrier, int]) -> Iterator[Fault]:
    """Expect maps that move with images which are mirrored, and changed in other ways or of channels last."""
    for carrier, num_left in left_maps.items():
        if num_left >= 2:
            yield Fault(
                "images are mirrored, their masks are not",
                measured=f"in {num_left} pairs of reads of a sample {carrier}, and the mask is the same",
            )


@rule(
    "augmentation-mismatch",
    "error",
    "data.augment_target_mismatch data.target_encoding assign.box_format",
    holds="boxes (left, top, right, bottom) that are mirrored with their image have their left before their right",
    do="exchange both ends where you mirror them: x0, x1 = size - x1, size - x0",
)
def mirrored_boxes(boxes_inside_out: list[InsideOut]) -> Iterator[Fault]:
    """Expect boxes of which no read of a sample is inside out: left before right, top before bottom."""
    for carrier, leaf, num_boxes in boxes_inside_out:
        low, name, (start, end) = (0, "x", ("left", "right")) if carrier.axis == -1 else (1, "y", ("top", "bottom"))
        yield Fault(
            f"mirrored boxes are inside out: their {start} lies beyond their {end}",
            measured=f"{carrier}, and of two reads one has {leaf}[{low}] < {leaf}[{low + 2}], and the "
            f"other the reverse, with the same gap, in {num_boxes} of {num_boxes} boxes",
            expected=f"{leaf}[{low}] < {leaf}[{low + 2}] in both reads",
            action=f"exchange both ends where you mirror them: {name}0, {name}1 = size - {name}1, size - {name}0",
        )


@rule(
    "augmentation-mismatch",
    "error",
    "data.augment_target_mismatch assign.box_format data.target_encoding",
    holds="boxes (left, top, width, height) that keep their sizes where they are mirrored with their image",
    do="mirror left and width as what they are: left = size - left - width; or convert to corners first",
)
def mirrored_sizes(sizes_as_corners: list[InsideOut]) -> Iterator[Fault]:
    """Expect a start and an end where two numbers of a box are mirrored as such: the end lies beyond the start."""
    for carrier, leaf, num_boxes in sizes_as_corners:
        start, end = (0, 2) if carrier.axis == -1 else (1, 3)
        yield Fault(
            "mirrored boxes are taken for corners, and are not",
            measured=f"{carrier}, and {leaf}[{start}] = c - {leaf}[{end}] and back in {num_boxes} of {num_boxes} pairs "
            f"of boxes; but neither of the two is always the larger",
        )


@rule(
    "augmentation-mismatch",
    "warning",
    "data.augment_target_mismatch data.target_encoding data.pairing",
    holds="targets that follow from mirrored inputs as they do from plain ones",
    do="mirror or exchange these numbers where the inputs are mirrored, or do not mirror them",
    is_statistical=True,
)
def mirrored_numbers(unfollowed_numbers: list[Unfollowed]) -> Iterator[Fault]:
    """Expect numbers of the target, that a fit to plain reads explains, to follow mirrored inputs, too."""
    for carrier, exchanged, mirrored, shares, num_pairs in unfollowed_numbers:
        words = [f"exchange {', '.join(exchanged)}"] if exchanged else []
        words += [f"mirror {', '.join(mirrored)}"] if mirrored else []
        what = "a target does not follow" if mirrored else "its two sides are not exchanged in the target"
        yield Fault(
            f"{carrier}, and {what}: {' and '.join(words)}",
            measured=f"a linear fit to plain reads has an R2 of {shares.plain:.2f} in other plain reads and of "
            f"{shares.given:.2f} in mirrored ones, {shares.corrected:.2f} with the correction ({num_pairs} samples; "
            "the mirrored inputs look like plain ones)",
            action=f"where the inputs are mirrored, {' and '.join(words)}, or do not mirror them",
        )


@rule(
    "augmentation-mismatch",
    "error",
    "data.augment_target_mismatch data.pairing",
    holds="boxes within what is not padding",
    do="add the left and the top band to the boxes after they are scaled",
    is_statistical=True,
)
def boxes_within_content(boxes_on_bands: OnBands) -> Fault | None:
    """Expect boxes off the bands of padded images, unless they would lie there when they are moved by these, too."""
    num_images, given, moved = boxes_on_bands
    if given <= _MIN_SHARE or moved >= _MAX_LEFT:
        return None
    return Fault(
        "boxes are not moved with their padded images: they lie on the bands",
        measured=f"in {num_images} padded images {given:.0%} of the boxes reach into a band; if they are moved by its "
        f"width, {moved:.0%}",
    )
