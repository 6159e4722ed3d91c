"""Small folders of a user's own data, as the pages of the manual have them: rooms, scans, photos, depth frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests.data.depth.own_frames import write_own_frames
from tests.data.scans.lidar_writers import own_scan, write_bin, write_labels

__all__ = ["WRITERS", "write_room"]


def write_room(path: Path, generator: np.random.Generator, *, is_labelled: bool, has_names: bool = False) -> None:
    """Write a floor, a wall and a box in metres, with colours of 0 to 255; labels are the last column, if asked for."""
    sizes, width = (500, 300, 200), generator.uniform(3, 5)
    floor = generator.uniform(0, width, (sizes[0], 3)) * [1, 1, 0]
    wall = generator.uniform(0, width, (sizes[1], 3)) * [0, 1, 0.5]
    box = generator.uniform(1, 2, (sizes[2], 3)) * [1, 1, 0.4]
    colours = np.repeat([[120, 90, 60], [220, 220, 220], [30, 60, 200]], sizes, axis=0)
    colours = (colours + generator.integers(-30, 30, colours.shape)).clip(0, 255)  # one a class would tell the class
    table = np.column_stack([np.concatenate([floor, wall, box]), colours, np.repeat([0, 1, 2], sizes)])
    num_columns = 7 if is_labelled else 6
    header = " ".join("x y z red green blue label".split()[:num_columns]) if has_names else ""
    np.savetxt(path, table[:, :num_columns], fmt="%.4f", header=header, comments="")


def write_rooms(folder: Path) -> None:
    """Write five labelled rooms in two parts, and one without labels."""
    generator = np.random.default_rng(0)
    for name in ("rooms/train/a", "rooms/train/b", "rooms/train/c", "rooms/test/d", "rooms/test/e", "more_rooms/f"):
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_room(path, generator, is_labelled=name.startswith("rooms"), has_names=True)
    (folder / "rooms/classes.txt").write_text("floor\nwall\nbox\n")


def write_scans(folder: Path) -> None:
    """Write twelve scans of 16 beams with labels 1 to 8, and one without."""
    ids = np.zeros(256, dtype=np.int64)
    ids[[10, 30, 40, 48, 50, 71, 72, 80]] = range(1, 9)  # of SemanticKITTI
    for number in range(13):
        scan = own_scan(number, num_columns=200)
        name = f"lidar/{number:06}" if number < 12 else "more_scans/000000"
        write_bin(folder / f"{name}.bin", scan)
        if number < 12:
            write_labels(folder / f"{name}.label", ids[scan.ids], scan.thing + 1)


def write_photos(folder: Path) -> None:
    """Write 24 photos of crates and balls, labelled as trainers of YOLO have them."""
    generator = np.random.default_rng(0)
    width, height = 160, 120
    for number in range(24):
        part = "train" if number < 18 else "val"
        pixels = generator.integers(90, 150, (height // 8, width // 8, 3)).astype(np.uint8)
        photo = Image.fromarray(pixels).resize((width, height))
        draw, rows = ImageDraw.Draw(photo), []
        for kind in generator.permutation(2):
            side = int(generator.integers(24, 60))
            left, top = int(generator.integers(0, width - side)), int(generator.integers(0, height - side))
            shape = draw.ellipse if kind else draw.rectangle
            shape([left, top, left + side - 1, top + side - 1], fill=(200, 60, 40) if kind else (40, 90, 210))
            centre = (left + side / 2) / width, (top + side / 2) / height
            rows.append(f"{kind} {centre[0]:.6f} {centre[1]:.6f} {side / width:.6f} {side / height:.6f}")
        for name in ("images", "labels"):
            (folder / f"photos/{name}/{part}").mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"photos/images/{part}/{number:03}.jpg")
        (folder / f"photos/labels/{part}/{number:03}.txt").write_text("\n".join(rows) + "\n")
    (folder / "photos/data.yaml").write_text("train: images/train\nval: images/val\nnames: [crate, ball]\n")


def write_frames(folder: Path) -> None:
    """Write 60 depth frames of hands in six recordings."""
    write_own_frames(folder / "frames", 60, folders=6)


WRITERS = {
    "data_rooms": write_rooms,
    "data_scans": write_scans,
    "data_photos": write_photos,
    "data_depth": write_frames,
}
"""For the name of a page, what writes the folders that its reader has."""
