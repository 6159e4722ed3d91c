"""Draws docs/pictures/synthetic_shapes.png anew: .venv/bin/python docs/pictures/draw.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sightline.data.synthetic_shapes import SyntheticShapes
from sightline.pictures import colors_of, encode_png, render_clouds
from sightline.types import SampleKey

CHOSEN = (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
"""Which solid of each class."""


def draw(path: Path) -> None:
    """One solid of each class, its points coloured by part."""
    shapes = SyntheticShapes(split="train", num_points=16384, train_size=240)
    names = shapes.info.facts["class_names"]
    indices = [int(np.flatnonzero(shapes.strata == label)[place]) for label, place in enumerate(CHOSEN)]
    samples = [shapes[SampleKey(index, 0, 0)] for index in indices]
    pixels = render_clouds(
        [sample["points"].numpy() for sample in samples],
        captions=[name.replace("_", " ") for name in names],
        colors=[colors_of(sample["part"].numpy() % 10) for sample in samples],
        up_axis=shapes.info.facts["up_axis"],
        columns=6,
        tile_px=240,
    )
    path.write_bytes(encode_png(pixels))


if __name__ == "__main__":
    draw(Path(__file__).with_name("synthetic_shapes.png"))
