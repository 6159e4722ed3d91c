"""Darknet's `.weights` files: a header, then the numbers of every convolution in the order of its config."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sightline import registry
from sightline.errors import CheckpointError
from sightline.models.published.published_files import PublishedFile
from sightline.models.published.published_yolo import units_of_yolov3
from sightline.regular_files import check_regular_file
from sightline.types import ComponentConfig

__all__ = ["DARKNET_FILES", "read_darknet"]

_MAX_CLASSES = 10_000
_NORM = ("bias", "weight", "running_mean", "running_var")
DARKNET_FILES = {"darknet_darknet53": "backbone.", "darknet_yolov3": ""}
"""Per published layout, the prefix of YOLOv3's convolutions that its files contain."""


def read_darknet(path: Path, layout: str) -> PublishedFile:
    """Read the tensors of a file by the indices of their convolutions: `0.conv.weight`, `0.norm.bias` and so on.

    For YOLOv3 the number of classes follows from the file's size. Raises CheckpointError for a file that is
    missing, or of another size than any such network. Source: pjreddie/darknet, src/parser.c.
    """
    try:
        num_bytes = check_regular_file(path)
        with path.open("rb") as file:
            major, minor = struct.unpack("<2i", file.read(8).ljust(8, b"\0"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    start = 12 + (8 if 10 * major + minor >= 2 else 4)  # images seen: eight bytes since version 0.2
    count, odd = divmod(max(0, num_bytes - start), 4)
    one, two = (sum(shape.numel() for _, shape in _tensors(layout, classes)) for classes in (1, 2))
    more, remainder = divmod(count - one, two - one) if two > one else (0, count - one)
    if remainder or odd or not 0 <= more < _MAX_CLASSES:
        raise CheckpointError(
            f"{path}: holds {count} numbers{f' and {odd} bytes' if odd else ''} after its header; the layout "
            f"'{layout}' has {one}"
            + (f", and {two - one} for each class more than one" if two > one else "")
            + "; get the whole file of that network"
        )
    numbers = torch.from_numpy(np.fromfile(path, "<f4", offset=start))
    tensors = list(_tensors(layout, 1 + more))
    parts = numbers.split([shape.numel() for _, shape in tensors])
    state: dict[str, Tensor] = {name: part.view(shape) for (name, shape), part in zip(tensors, parts, strict=True)}
    return PublishedFile(state, (), ("header",))


def _tensors(layout: str, num_classes: int) -> Iterator[tuple[str, torch.Size]]:
    """Iterate over names and shapes in the order of a file."""
    parts = {
        "backbone": ComponentConfig("darknet53"),
        "neck": ComponentConfig("yolov3"),
        "head": ComponentConfig("yolov3"),
    }
    with torch.device("meta"):
        reference_state = registry.models.build(
            ComponentConfig("detector", parts), facts={"num_classes": num_classes}
        ).state_dict()
    for index, unit in enumerate(units_of_yolov3()):
        if unit.startswith(DARKNET_FILES[layout]):
            leaves = [f"norm.{leaf}" for leaf in _NORM] if f"{unit}.norm.weight" in reference_state else ["conv.bias"]
            yield from (
                (f"{index}.{leaf}", reference_state[f"{unit}.{leaf}"].shape) for leaf in (*leaves, "conv.weight")
            )
