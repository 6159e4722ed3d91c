"""Small ShapeNetParts in both public layouts, written byte by byte; `shape_of` says what must be read back."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from tests.data.preparing import prepare_set

CATEGORIES = {
    "Airplane": ("02691156", 0, 3),
    "Bag": ("02773838", 4, 5),
    "Cap": ("02954340", 6, 7),
    "Car": ("02958343", 8, 11),
    "Chair": ("03001627", 12, 15),
    "Earphone": ("03261776", 16, 18),
    "Guitar": ("03467517", 19, 21),
    "Knife": ("03624134", 22, 23),
    "Lamp": ("03636649", 24, 27),
    "Laptop": ("03642806", 28, 29),
    "Motorbike": ("03790512", 30, 35),
    "Mug": ("03797390", 36, 37),
    "Pistol": ("03948459", 38, 40),
    "Rocket": ("04099429", 41, 43),
    "Skateboard": ("04225987", 44, 46),
    "Table": ("04379243", 47, 49),
}
"""Synset, first and last part of each, typed here a second time on purpose, from the publications."""

NAMES = list(CATEGORIES)
SPLITS = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
"""Which shapes of every category are in which split."""
LAYOUTS = ["text", "hdf5"]
NUM_POINTS = 24
"""Of a shape in the HDF5 layout; in the text layout shapes have 20 to 26."""


class Shape(NamedTuple):
    points: np.ndarray
    normals: np.ndarray
    parts: np.ndarray


def size_of(name: str, key: str) -> int:
    """How many points the text layout has of a shape."""
    return 20 + (NAMES.index(name) + ord(key)) % 7


def shape_of(name: str, key: str, num_points: int | None = None) -> Shape:
    """A shape about its mean with radius 1, unit normals, and parts of its category, not each of which need occur.

    Parts are layers of height, so that a small network can learn them.
    """
    _, first, last = CATEGORIES[name]
    generator = np.random.default_rng(list(f"{name}{key}".encode()))
    points = generator.normal(size=(num_points or size_of(name, key), 3))
    points -= points.mean(axis=0)
    points /= np.linalg.norm(points, axis=1).max()
    normals = generator.normal(size=points.shape)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    layer = np.floor((points[:, 1] + 1) / 2 * (last - first + 1)).astype(int)
    return Shape(points, normals, np.clip(first + layer, first, last))


def write_text(root: Path) -> Path:
    """The text benchmark: shapes shifted and scaled, normals of any length, since preparing is to normalise them."""
    root.mkdir(parents=True)
    lines = [f"{name}\t{synset}\n" for name, (synset, _, _) in CATEGORIES.items()]
    (root / "synsetoffset2category.txt").write_text("".join(lines))
    (root / "train_test_split").mkdir()
    for split, keys in SPLITS.items():
        listed = []
        for name, (synset, _, _) in CATEGORIES.items():
            (root / synset).mkdir(exist_ok=True)
            for key in keys:
                shape = shape_of(name, key)
                table = np.column_stack([shape.points * 0.3 + [1, -2, 3], shape.normals * 1.5, shape.parts])
                rows = [" ".join(f"{value:.9f}" for value in row) for row in table]
                (root / synset / f"{key}.txt").write_text("\n".join(rows) + "\n")
                listed.append(f"shape_data/{synset}/{key}")
        shuffled = np.random.default_rng(5).permutation(listed).tolist()
        (root / f"train_test_split/shuffled_{split}_file_list.json").write_text(json.dumps(shuffled))
    return root


def write_hdf5(root: Path) -> Path:
    """The HDF5 release: train in eleven files, so that 10 stands before 2 in any listing by letters."""
    root.mkdir(parents=True)
    for split, keys in SPLITS.items():
        shapes = [(name, key) for key in keys for name in NAMES]
        files = np.array_split(np.arange(len(shapes)), 11 if split == "train" else 1)
        for number, rows in enumerate(files):
            held = [shape_of(*shapes[row], NUM_POINTS) for row in rows]
            with h5py.File(root / f"ply_data_{split}{number}.h5", "w") as file:
                file["data"] = np.stack([shape.points * 2 + 1 for shape in held]).astype(np.float32)
                file["label"] = np.array([[NAMES.index(shapes[row][0])] for row in rows], dtype=np.uint8)
                file["pid"] = np.stack([shape.parts for shape in held]).astype(np.uint8)
    return root


def write_layout(layout: str, root: Path) -> Path:
    return {"text": write_text, "hdf5": write_hdf5}[layout](root)


prepare = functools.partial(prepare_set, "shapenet_part")
