"""One size of images for a whole config: `imgsz=640` on the command line is written as the sizes of its transforms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from sightline.contract import registry
from sightline.contract.errors import ConfigError

WORD = "imgsz"
"""The word of the command line; a config has no such key."""
_SIZE = re.compile(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?")


class ImageSize(NamedTuple):
    """Height and width of the images that a network gets, in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}" if self.height == self.width else f"{self.width}x{self.height}"


def parse_size(text: str) -> ImageSize:
    """Parse `640`, a square, or `640x480`, width x height. Raises ConfigError for another text."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"found '{text.strip()}', allowed is a side in pixels, 640, or width x height, 640x480")
    width, height = int(match[1]), int(match[2] or match[1])
    return ImageSize(height, width)


def list_sizes(config: object, size: ImageSize) -> Iterator[tuple[str, int | list[int]]]:
    """Yield the dotted path and the value of each size of a config's transforms, as `size` makes them.

    A transform states in `size_arguments` which of its arguments are sizes. Raises ConfigError for a config without
    sizes, for one of a transform that one size does not state, and for a side that the model does not take.
    """
    sections = config if isinstance(config, dict) else {}
    transforms = sections.get("transforms")
    num_sizes = 0
    for part, blocks in transforms.items() if isinstance(transforms, dict) else ():
        for place, block in enumerate(blocks if isinstance(blocks, list) else ()):
            name = block.get("name") if isinstance(block, dict) else None
            if name not in registry.transforms.names():
                continue  # a fault that is noted where the block is read
            path = f"transforms.{part}.{place}"
            try:
                arguments = registry.transforms.get_class(name).size_arguments(
                    block, height=size.height, width=size.width
                )
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
            for key, value in arguments.items():
                num_sizes += 1
                yield f"{path}.{key}", value
    if not num_sizes:
        raise ConfigError("no transform of this config states a size of images")
    _assert_multiple(sections.get("model"), size)


def _assert_multiple(model: object, size: ImageSize) -> None:
    """Raise ConfigError for sides that a model does not take, with the nearest size that it does."""
    name = model.get("name") if isinstance(model, dict) else None
    if name not in registry.models.names():
        return
    multiple = registry.models.get_class(name).image_multiple
    fitting = ImageSize(*(max(1, round(side / multiple)) * multiple for side in size))
    if fitting != size:
        raise ConfigError(f"{name} takes sides that are multiples of {multiple}; write {WORD}={fitting}")
