"""Small trees of ScanNet in each of its layouts, written byte by byte, and classes by rules of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

ROOMS = {"scene0000_00": "train", "scene0000_01": "train", "scene0011_00": "test"}
NUM_VERTICES = 41
VERTEX = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), *((name, "u1") for name in ("red", "green", "blue", "alpha"))]
CLASS_IDS = [3 * number + 2 for number in range(200)]
"""Ids of 200 made-up classes `thing 0` and so on, in the order of the classes."""
GROUPS = ["head" if number < 66 else "common" if number < 134 else "tail" for number in range(200)]


def write_ply(path: Path, rows: np.ndarray, faces: np.ndarray | None = None) -> None:
    """A binary PLY with columns of every kind that the release has, and triangles."""
    kinds = {"<f4": "float", "|u1": "uchar", "<u2": "ushort"}
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    head += [f"property {kinds[rows.dtype[name].str]} {name}" for name in rows.dtype.names or ()]
    body = rows.tobytes()
    if faces is not None:
        head += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        table = np.zeros(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
        table["count"], table["corners"] = 3, faces
        body += table.tobytes()
    path.write_bytes("\n".join([*head, "end_header", ""]).encode() + body)


def make_mesh(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices of a room, of which the last is in no face, and faces around the first."""
    generator = np.random.default_rng(number)
    rows = np.zeros(NUM_VERTICES, VERTEX)
    for axis in "xyz":
        rows[axis] = generator.uniform(-3, 3, NUM_VERTICES)
    rows["red"], rows["alpha"] = range(NUM_VERTICES), 255
    steps = np.arange(1, NUM_VERTICES - 2)
    return rows, np.stack([np.zeros_like(steps), steps, steps + 1], axis=1)


def segments_of(number: int) -> np.ndarray:
    """Segment of every vertex: each has four vertices that are not neighbours, and a large number."""
    return (np.arange(NUM_VERTICES) + number) % 11 * 100 + 7


GROUP_ROWS: list[tuple[str, list[int]]] = [
    ("a wall", [7, 107]),
    ("chair", [107, 207]),  # takes segment 107 from the wall
    ("mystery", [307]),  # is not in the table
    ("void", [407]),  # is of no class
    ("sofa", [507, 999_999]),  # is at no vertex, in part
    ("lamp", []),
]
"""Label and segments of each group; the segments 607 to 1007 are in none."""
TABLE_ROWS = [
    ("a wall", 1, CLASS_IDS[0]),
    ("chair", 5, CLASS_IDS[199]),
    ("chair", 7, CLASS_IDS[3]),  # counts no more
    ("void", 40, 1),
    ("sofa", 6, CLASS_IDS[70]),
    ("lamp", 39, ""),
]
"""Text, number in NYU40 and id of each row of the table."""
EXPECTED = {20: {7: 0, 107: 4, 207: 4, 507: 5}, 200: {7: 0, 107: 199, 207: 199, 507: 70}}
"""Class of each segment that has one, of 20 and of 200 classes."""


def write_constants(root: Path) -> None:
    """Both files of ScanNet's code: one line would write a file if it were run."""
    names = [f"thing {number}" for number in range(200)]
    trap = f"open({str(root / 'was_run')!r}, 'w').close()\n"
    constants = f"import nowhere\n{trap}VALID_CLASS_IDS_20 = (1, 2)\nVALID_CLASS_IDS_200 = (\n"
    constants += "".join(f"{number}, " for number in CLASS_IDS) + ")\n\n"
    (root / "scannet200_constants.py").write_text(f"{constants}CLASS_LABELS_200 = {tuple(names)!r}\n")
    lists = {group: [name for name, of in zip(names, GROUPS, strict=True) if of == group] for group in set(GROUPS)}
    lines = "".join(f"{group.upper()}_CATS_SCANNET_200 = {lists[group][::-1]!r}\n" for group in sorted(lists))
    (root / "scannet200_splits.py").write_text(f"### groups\n{trap}{lines}")


def write_lists(root: Path) -> None:
    """Both lists of rooms."""
    for split, file in (("train", "scannetv2_train.txt"), ("test", "scannetv2_val.txt")):
        (root / file).write_text("".join(f"{name}\n" for name, of in ROOMS.items() if of == split))


def write_segments(root: Path) -> None:
    """Rooms whose labels are those of groups of segments, the table of labels, and the 200 classes."""
    for number, name in enumerate(ROOMS):
        folder = root / "scans" / name
        folder.mkdir(parents=True)
        write_ply(folder / f"{name}_vh_clean_2.ply", *make_mesh(number))
        segments = {"sceneId": name, "segIndices": segments_of(number).tolist()}
        (folder / f"{name}_vh_clean_2.0.010000.segs.json").write_text(json.dumps(segments))
        groups = [{"id": at, "label": label, "segments": listed} for at, (label, listed) in enumerate(GROUP_ROWS)]
        (folder / f"{name}.aggregation.json").write_text(json.dumps({"sceneId": name, "segGroups": groups}))
    rows = [("id", "raw_category", "category", "nyu40id"), *((i, text, "x", n) for text, n, i in TABLE_ROWS)]
    table = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    (root / "scannetv2-labels.combined.tsv").write_text(table)
    write_constants(root)


def write_labels(root: Path) -> None:
    """Rooms with a second mesh, whose labels begin at the number of the room."""
    for number, name in enumerate(ROOMS):
        folder = root / "scans" / name
        folder.mkdir(parents=True)
        rows, faces = make_mesh(number)
        labelled = np.zeros(NUM_VERTICES, [*VERTEX, ("label", "<u2")])
        for column in rows.dtype.names or ():
            labelled[column] = rows[column]
        labelled["label"] = (np.arange(NUM_VERTICES) + number) % 41
        write_ply(folder / f"{name}_vh_clean_2.ply", rows, faces)
        write_ply(folder / f"{name}_vh_clean_2.labels.ply", labelled)
    write_lists(root)


def write_converted(root: Path) -> None:
    """Rooms as arrays, in folders of their parts, with one of the benchmark's test part."""
    for number, (name, split) in enumerate([*ROOMS.items(), ("scene0707_00", "benchmark")]):
        folder = root / {"train": "train", "test": "val", "benchmark": "test"}[split] / name
        folder.mkdir(parents=True)
        rows, _ = make_mesh(number)
        coord = np.stack([rows[axis] for axis in "xyz"], axis=1)
        arrays = {"coord": coord, "color": np.stack([rows[name] for name in ("red", "green", "blue")], axis=1)}
        arrays["normal"] = coord / np.linalg.norm(coord, axis=1, keepdims=True)
        if split != "benchmark":
            arrays["segment20"] = (np.arange(NUM_VERTICES) + number) % 21 - 1
            arrays["segment200"] = ((5 * np.arange(NUM_VERTICES) + number) % 201 - 1)[:, None]
            arrays["instance"] = np.zeros(NUM_VERTICES, dtype=np.int64)
        for key, array in arrays.items():
            np.save(folder / f"{key}.npy", array)
    write_constants(root)
