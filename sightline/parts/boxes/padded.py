"""Boxes of a batch as one tensor: every image, or frame, is padded to as many boxes as the largest has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sightline.ops.waits import read_list, send_list

ImageBoxes = tuple[Tensor, Tensor, Tensor | None]
"""Boxes (M, D) of an image, `is_ignored` (M,), and labels (M,), or None."""


class PaddedBoxes(NamedTuple):
    """Boxes (B, M, D) of a batch, and which rows are boxes: `is_box` (B, M) bool; what the other rows hold is not read.

    D is 4 in images: left, top, right, bottom in pixels; or 7 in space: x, y, z of the middle, the sides dx, dy, dz in
    metres, and the yaw in radians. `is_ignored` (B, M) bool marks boxes that are ignore regions; `labels` (B, M) int64
    are their classes, or None.
    """

    boxes: Tensor
    is_box: Tensor
    is_ignored: Tensor
    labels: Tensor | None = None

    @classmethod
    def from_rows(cls, boxes: Tensor, offsets: Tensor, is_ignored: Tensor, labels: Tensor | None = None) -> PaddedBoxes:
        """Pad the boxes (G, D) of a batch, of which those of image b are `offsets[b]` to `offsets[b + 1]`; (B + 1,).

        The padding are zeros. Does not wait for a device whose offsets and marks the host has sent.
        """
        ends = read_list(offsets)
        slices = [slice(*bounds) for bounds in pairwise(ends)]
        counts = [rows.stop - rows.start for rows in slices]
        most = max(counts, default=0)
        marks = read_list(is_ignored)
        is_box = [[column < count for column in range(most)] for count in counts]
        is_padded_ignored = [[*marks[rows], *[False] * (most - rows.stop + rows.start)] for rows in slices]
        if not slices:
            no_box = torch.zeros(0, 0, dtype=torch.bool, device=boxes.device)
            no_labels = None if labels is None else labels.new_zeros(0, 0)
            return cls(boxes.new_zeros(0, 0, boxes.shape[1]), no_box, no_box, no_labels)
        return cls(
            pad_sequence([boxes[rows] for rows in slices], batch_first=True),
            send_list(is_box, boxes.device, torch.bool),
            send_list(is_padded_ignored, boxes.device, torch.bool),
            None if labels is None else pad_sequence([labels[rows] for rows in slices], batch_first=True),
        )

    def split_images(self) -> list[ImageBoxes]:
        """Return the boxes (M_b, D) of each image, their marks (M_b,), and their labels (M_b,) or None.

        Raises ValueError for tensors whose shapes do not fit one another, and for masks that are not bool.
        """
        self._assert_shapes()
        images: list[ImageBoxes] = []
        masks: tuple[Sequence[Sequence[bool]], ...] = (read_list(self.is_box), read_list(self.is_ignored))
        for image, (flags, marks) in enumerate(zip(*masks, strict=True)):
            rows: slice | Tensor = slice(0, sum(flags))
            if not all(flags[: sum(flags)]):  # boxes that stand behind padding
                rows = send_list([row for row, flag in enumerate(flags) if flag], self.boxes.device)
            of_boxes = [mark for flag, mark in zip(flags, marks, strict=True) if flag]
            is_ignored = send_list(of_boxes, self.boxes.device, torch.bool)
            labels = None if self.labels is None else self.labels[image, rows]
            images.append((self.boxes[image, rows], is_ignored, labels))
        return images

    def _assert_shapes(self) -> None:
        shape = self.boxes.shape[:2]
        masks = {"is_box": self.is_box, "is_ignored": self.is_ignored}
        if self.boxes.ndim != 3 or any(mask.shape != shape for mask in masks.values()):
            found = ", ".join(f"{name} {tuple(mask.shape)}" for name, mask in masks.items())
            raise ValueError(f"boxes {tuple(self.boxes.shape)}, {found}: expected (B, M, D), and (B, M) of both masks")
        if self.labels is not None and self.labels.shape != shape:
            raise ValueError(f"labels {tuple(self.labels.shape)}: expected {tuple(shape)}, one for each box")
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise ValueError(f"{name} is {mask.dtype}, expected torch.bool")
