"""Scenes on disk for tests, byte by byte in the public layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ROOMS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "Area_1": {
        "office_1": ("ceiling_1", "floor_1", "wall_1", "wall_2", "chair_1"),
        "office_2": ("ceiling_1", "floor_1", "table_1"),
        "office_10": ("floor_1", "stairs_1", "clutter_1"),
        "hallway_1": ("floor_1", "wall_1"),
    },
    "Area_2": {"WC_1": ("floor_1", "door_1"), "storage_1": ("floor_1", "bookcase_1")},
    "Area_5": {"office_1": ("floor_1", "beam_1", "column_1"), "conferenceRoom_1": ("board_1", "sofa_1", "window_1")},
}


def no_progress(done: int, total: int, what: str) -> None:
    """Says nothing."""


def annotation(name: str, *, num_points: int = 6) -> list[str]:
    """The lines of an annotation file, as the release writes them; a function of the name alone."""
    generator = np.random.default_rng(sum(name.encode()))
    points = generator.uniform(-25, 40, (num_points, 3))
    colours = generator.integers(0, 256, (num_points, 3))
    return [
        f"{x:.3f} {y:.3f} {z:.3f} {r} {g} {b}"
        for (x, y, z), (r, g, b) in zip(points.tolist(), colours.tolist(), strict=True)
    ]


def write_s3dis(root: Path, rooms: Mapping[str, Mapping[str, Sequence[str]]] = ROOMS) -> Path:
    """The tree of `Stanford3dDataset_v1.2_Aligned_Version`, with what else lies in it."""
    for area, names in rooms.items():
        for room, files in names.items():
            folder = root / area / room / "Annotations"
            folder.mkdir(parents=True)
            everything = []
            for file in files:
                lines = annotation(f"{area}{room}{file}", num_points=4 + len(file))
                (folder / f"{file}.txt").write_bytes(b"".join(line.encode() + b"\n" for line in lines))
                everything += lines
            (folder.parent / f"{room}.txt").write_bytes("\n".join(everything).encode())
        (root / area / ".DS_Store").write_bytes(b"\x00\x01")
        (root / area / f"{area}_alignmentAngle.txt").write_text("## Global alignment angle per disjoint space\n")
    (root / "ReadMe.txt").write_text("as released")
    return root
