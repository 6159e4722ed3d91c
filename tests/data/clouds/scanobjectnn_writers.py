"""A small ScanObjectNN, written byte by byte in the layout of its release; `object_of` says what must be read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from tests.data.preparing import prepare_set

# fmt: off
CLASSES = [
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink",
    "sofa", "toilet",
]
# fmt: on
"""In the order of their labels, typed here a second time on purpose, from the publication."""

FILES = {
    "obj_bg": ("main_split", "objectdataset"),
    "obj_only": ("main_split_nobg", "objectdataset"),
    "pb_t25": ("main_split", "objectdataset_augmented25_norot"),
    "pb_t25_r": ("main_split", "objectdataset_augmented25rot"),
    "pb_t50_r": ("main_split", "objectdataset_augmentedrot"),
    "pb_t50_rs": ("main_split", "objectdataset_augmentedrot_scale75"),
    "pb_t25_nobg": ("main_split_nobg", "objectdataset_augmented25_norot"),
    "pb_t25_r_nobg": ("main_split_nobg", "objectdataset_augmented25rot"),
    "pb_t50_r_nobg": ("main_split_nobg", "objectdataset_augmentedrot"),
    "pb_t50_rs_nobg": ("main_split_nobg", "objectdataset_augmentedrot_scale75"),
}
"""Folder and stem of each variant."""
SIZES = {"training": 30, "test": 16}
NUM_POINTS = 20


class Scanned(NamedTuple):
    points: np.ndarray
    mask: np.ndarray
    label: int


def object_of(variant: str, word: str, index: int) -> Scanned:
    """An object in metres, away from the origin; a third of its points is background where the variant has any."""
    generator = np.random.default_rng(list(f"{variant}/{word}/{index}".encode()))
    points = (generator.normal(size=(NUM_POINTS, 3)) * 0.4 + [2, 0.5, -1]).astype(np.float32)
    mask = np.full(NUM_POINTS, 7, dtype=np.int32)
    if "nobg" not in FILES[variant][0]:
        mask[generator.permutation(NUM_POINTS)[: NUM_POINTS // 3]] = -1
    return Scanned(points, mask, index % len(CLASSES))


def write_variant(root: Path, variant: str, *, is_column: bool = False) -> Path:
    """Both files of a variant under `root`, which is `h5_files`; `is_column` writes labels as (n, 1)."""
    folder, stem = FILES[variant]
    (root / folder).mkdir(parents=True, exist_ok=True)
    for word, size in SIZES.items():
        objects = [object_of(variant, word, index) for index in range(size)]
        with h5py.File(root / folder / f"{word}_{stem}.h5", "w") as file:
            file["data"] = np.stack([each.points for each in objects])
            labels = np.array([each.label for each in objects], dtype=np.int32)
            file["label"] = labels[:, None] if is_column else labels
            file["mask"] = np.stack([each.mask for each in objects])
    return root


def prepare(source: Path, target: Path, variant: str = "obj_bg", **options: object) -> dict[str, Any]:
    """Prepare as the command line does, by the name of the set."""
    return prepare_set("scanobjectnn", source, target, variant=variant, **options)
