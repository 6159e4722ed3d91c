"""Small ModelNets in each public layout, written byte by byte; `clouds` says what must be read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.data.preparing import expect_progress, prepare_set

# fmt: off
CLASS_NAMES = [
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car",
    "chair", "cone", "cup", "curtain", "desk", "door", "dresser", "flower_pot",
    "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor", "night_stand",
    "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs",
    "stool", "table", "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
]
# fmt: on
"""The 40 classes in the order of their labels, typed here a second time on purpose."""

SHAPES = {
    "train": ["airplane_0001", "airplane_0002", "airplane_0010", "bed_0001", "night_stand_0001", "night_stand_0002"],
    "test": ["airplane_0627", "night_stand_0201"],
}
LAYOUTS = ["npz", "hdf5", "text", "off"]
NUM_POINTS = 6
CUBE = "8 12 0\n" + "".join(f"{x} {y} {z}\n" for x in (0, 2) for y in (0, 2) for z in (0, 2))
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def label_of(name: str) -> int:
    return CLASS_NAMES.index(name.rpartition("_")[0])


def cloud(name: str, num_points: int = NUM_POINTS) -> np.ndarray:
    """Six columns for a shape, from its name: xyz in the unit sphere about the origin, and unit normals; float32."""
    generator = np.random.default_rng(list(name.encode()))
    values = generator.normal(size=(num_points, 6))
    points = values[:, :3] - values[:, :3].mean(axis=0)
    points /= np.linalg.norm(points, axis=1).max()
    normals = values[:, 3:] / np.linalg.norm(values[:, 3:], axis=1, keepdims=True)
    return np.hstack([points, normals]).astype(np.float32)


def write_npz(path: Path, **replaced: np.ndarray | None) -> Path:
    """The archive; `replaced` gives other entries, or None to leave one out."""
    entries: dict[str, np.ndarray | None] = {"classes": np.array(CLASS_NAMES)}
    for split, names in SHAPES.items():
        entries[f"X_{split}"] = np.stack([cloud(name)[:, :3] for name in names]).astype(np.float16)
        entries[f"y_{split}"] = np.array([label_of(name) for name in names])
        entries[f"name_{split}"] = np.array(names)
    np.savez_compressed(path, **{key: value for key, value in (entries | replaced).items() if value is not None})
    return path


def write_hdf5(root: Path, *, has_normals: bool = False, has_lists: bool = True) -> Path:
    """Train in twelve files, so that 10 and 11 stand before 2 in any listing by letters; test in one."""
    root.mkdir()
    (root / "shape_names.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    names = [SHAPES["train"][place % len(SHAPES["train"])] for place in range(24)]
    files = {f"ply_data_train{i}.h5": names[2 * i : 2 * i + 2] for i in range(12)} | {
        "ply_data_test0.h5": SHAPES["test"]
    }
    for place, (file_name, held) in enumerate(files.items()):
        with h5py.File(root / file_name, "w") as file:
            values = np.stack([cloud(f"{name}{place}") for name in held])
            file["data"] = values[:, :, :3]
            file["label"] = np.array([[label_of(name)] for name in held], dtype=np.uint8)
            file["faceId"] = np.zeros((len(held), NUM_POINTS), dtype=np.int32)
            if has_normals:
                file["normal"] = values[:, :, 3:]
    for split in SHAPES if has_lists else ():
        listed = [f"data/modelnet40_ply_hdf5_2048/{name}\n" for name in files if split in name]
        (root / f"{split}_files.txt").write_text("".join(reversed(listed)))
    return root


def write_text(root: Path) -> Path:
    """The resampled release: shifted and scaled clouds, since preparing is to normalise them."""
    root.mkdir()
    (root / "modelnet40_shape_names.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    for split, names in SHAPES.items():
        (root / f"modelnet40_{split}.txt").write_text("\r\n".join(reversed(names)) + "\r\n")
        for name in names:
            folder = root / name.rpartition("_")[0]
            folder.mkdir(exist_ok=True)
            values = cloud(name).astype(np.float64)
            values[:, :3] = values[:, :3] * 3 + [1, 2, 3]
            rows = [",".join(repr(float(value)) for value in row) for row in values]
            (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return root


def write_off(root: Path) -> Path:
    """Cubes of side 2 in every hand that the collections write."""
    root.mkdir()
    triangles = "".join(f"3 {a} {b} {c}\n3 {a} {c} {d}\n" for a, b, c, d in QUADS)
    quads = "".join(f"4 {a} {b} {c} {d}\n" for a, b, c, d in QUADS)
    hands = [
        "OFF\n" + CUBE + triangles,
        "OFF" + CUBE + triangles,
        "# a cube\nOFF\n\n" + CUBE.replace("\n", " # here\n\n") + triangles,
        "OFF\n" + CUBE.replace("8 12", "8 6") + quads,
        ("OFF\n" + CUBE + triangles).replace("\n", "\r\n"),
        "OFF\n" + CUBE.replace("8 12", "8 13") + triangles + "3 0 0 1\n",
    ]
    for split, names in SHAPES.items():
        for place, name in enumerate(names):
            folder = root / name.rpartition("_")[0] / split
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.off").write_text(hands[place], newline="")
    return root


def write_layout(layout: str, root: Path) -> Path:
    """The small set in the layout of this name, in a new folder."""
    root.mkdir(exist_ok=True)
    if layout == "npz":
        return write_npz(root / "shapes.npz")
    return {"hdf5": write_hdf5, "text": write_text, "off": write_off}[layout](root / layout)


def prepare(
    source: Path, target: Path, name: str = "modelnet40", progress: Callable[[int, int, str], None] = expect_progress
) -> dict[str, Any]:
    """Prepare as the command line does, by the name of the set."""
    return prepare_set(name, source, target, progress)
