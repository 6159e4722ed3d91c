"""Inputs of before_after.py, made once for both sides: a tiny source of each set, and weights of each layout.

The writers are those of the tests; weights are made by a rule from names and shapes alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["write_sources"]

Write = Callable[[Path], object]


def write_sources(folder: Path, names: Sequence[str]) -> None:
    """Make `folder/<name>/source` for sets and layouts of these names."""
    from sightline.published.rows import list_names

    sets, layouts = _sets(), list_names()
    for name in names:
        place = folder / name / "source"
        place.parent.mkdir(parents=True)
        if name in layouts:
            write_weights(place, name)
        else:
            sets[name](place)


# --- data sets --------------------------------------------------------------------------------------------------------


def _sets() -> Mapping[str, Write]:
    from tests.data.boxes import test_people, test_yolo_txt
    from tests.data.clouds import (
        cloud_writers,
        modelnet_writers,
        scanobjectnn_writers,
        shapenet_part_writers,
        shapenet_render_writers,
    )
    from tests.data.depth import figure_trees, test_depth_sets
    from tests.data.scans import lidar_writers
    from tests.data.scenes import scene_writers, test_scene_folder

    return {
        **{name: lambda root, name=name: test_people.written(name, root) for name in test_people.PEOPLE},
        **{name: test_depth_sets.SETS[name][1] for name in ("hands2017", "icvl_hands", "itop", "nyu_hands")},
        "cloud_folder": lambda root: cloud_writers.write_folder(root, per_class=3),
        "coco": _write_coco,
        "crowdhuman": _write_crowd,
        "kitti_object": lambda root: lidar_writers.write_kitti_object(root, 2),
        "modelnet40": modelnet_writers.write_hdf5,
        "msra_hands": lambda root: figure_trees.write_msra_hands(root, {"P0/1": 2, "P1/5": 2}),
        "psb19": _write_psb19,
        "room": _write_room,
        "s3dis": scene_writers.write_s3dis,
        "scan_folder": lambda root: lidar_writers.write_own(root, 2),
        "scanobjectnn": lambda root: scanobjectnn_writers.write_variant(root, "obj_bg"),
        "scene_folder": test_scene_folder.write_folder,
        "semantic_kitti": lambda root: lidar_writers.write_semantic_kitti(root, {"00": 2, "01": 1, "08": 1}),
        "shapenet_part": shapenet_part_writers.write_text,
        "shapenet_render": shapenet_render_writers.write_release,
        "squeezeseg_npy": _write_squeezeseg,
        "yolo_txt": lambda root: _write_yolo(root, test_yolo_txt.write_tree),
    }


def _write_coco(root: Path) -> None:
    from tests.data.boxes.box_writers import pattern, write_coco, write_image

    write_image(root / "a.png", pattern(6, 8))
    common = {"image_id": 1, "category_id": 3, "area": 9.0, "iscrowd": 0}
    masks = ({"size": [6, 8], "counts": [7, 3, 38]}, {"size": [6, 8], "counts": "73V1"}, [[1.0, 2, 4, 2, 4, 5]])
    boxes = [{**common, "bbox": [1.0, 2, 3, 3]}, *({**common, "segmentation": each} for each in masks)]
    write_coco(root / "all.json", [(1, "a.png", 8, 6)], boxes)


def _write_crowd(root: Path) -> None:
    from tests.data.boxes import test_crowdhuman

    test_crowdhuman.write_set(root, train={"a,1": test_crowdhuman.CROWD}, val={"b,2": test_crowdhuman.CROWD[:1]})


def _write_psb19(root: Path) -> None:
    from tests.data.clouds.test_psb19 import arrays

    root.mkdir()
    np.savez(root / "psb19_2048.npz", **arrays())


def _write_room(root: Path) -> None:
    """A cloud to predict: places of a room in metres, and colours."""
    root.mkdir()
    generator = np.random.default_rng(0)
    points = generator.uniform((0, 0, 0), (4, 3, 2.5), (300, 3)).round(3)
    np.savetxt(root / "room.txt", np.hstack([points, generator.integers(0, 256, (300, 3))]), fmt="%.3f")


def _write_squeezeseg(root: Path) -> None:
    from tests.data.scans.lidar_writers import street_scan, write_squeezeseg

    for number in range(3):
        _, scan = street_scan(number)
        name = f"2011_09_26_{number + 1:04d}_{0:010d}"
        write_squeezeseg(root / "lidar_2d" / f"{name}.npy", scan, scan.ids % 4, width=32)


def _write_yolo(root: Path, write_tree: Callable[[Path, str], None]) -> None:
    write_tree(root, "images first")
    (root / "data.yaml").write_text("names: {0: person, 4: dog, 1: rider}\n")


# --- published weights ------------------------------------------------------------------------------------------------


def write_weights(place: Path, layout: str) -> None:
    """The files of a layout: one, two where images have one of their own, and Darknet's form where it is its own."""
    from sightline.published.files import IMAGE_PREFIX, POINT_PREFIX
    from sightline.published.rows import read_layout

    place.mkdir()
    if read_layout(layout).is_darknet:
        _write_darknet(place / "weights.pth", layout)
        return
    state = _published_state(layout)
    if not read_layout(layout).has_image_file:
        torch.save({"model_state_dict": state}, place / "weights.pth")
        return
    for name, prefix in (("weights", POINT_PREFIX), ("images", IMAGE_PREFIX)):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        torch.save({"model_state_dict": part}, place / f"{name}.pth")


def _published_state(layout: str) -> dict[str, Tensor]:
    """A tensor for every name of the layout, of the sizes of our model for the layout's data set."""
    from sightline.published.rows import read_layout

    table, state = read_layout(layout).names, {}
    for name, value in _own_state(layout).items():
        module, _, leaf = name.rpartition(".")
        values = _rule_made(name, value)
        for theirs, ours in table.items():
            if ours == name:
                state[theirs] = values
            elif ours == module:
                state[f"{theirs}.{leaf}"] = values
    return state


def _own_state(layout: str) -> dict[str, Tensor]:
    from sightline.contract import registry
    from sightline.contract.members import DataMembers
    from sightline.published.files import make_meta_model
    from sightline.published.rows import read_layout

    published = read_layout(layout)
    promise = DataMembers.expected_info.get(registry.data.get_entry(published.protocol.data).builder)
    promised = dict(promise().facts) if promise is not None else {}
    facts = {"num_classes": 12, "in_channels": 3, "num_categories": 16, "num_joints": 21, **promised}
    if published.class_indices:
        facts["num_classes"] = max(published.class_indices) + 1
    if layout.endswith("_scenes") or published.protocol.data == "semantic_kitti":
        facts["in_channels"] = 9 if layout.endswith("_scenes") else 5
    return dict(make_meta_model(published, **facts).state_dict())


def _rule_made(name: str, like: Tensor) -> Tensor:
    """Values that only the name, the place and the shape decide; variances are positive, counts whole."""
    if not like.is_floating_point():
        return torch.full(like.shape, 7, dtype=like.dtype)
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")
    places = torch.arange(like.numel(), dtype=torch.int64)
    values = ((places * 2654435761 + start) % 1000003).double() / 1000003
    return (values + 0.5 if name.endswith("running_var") else (values - 0.5) * 0.1).float().reshape(like.shape)


def _write_darknet(path: Path, layout: str) -> None:
    from sightline.published.files import darknet_shapes

    shapes = dict(darknet_shapes(layout, 80))
    values = [_rule_made(f"{name}.running_var", torch.empty(shape)) for name, shape in shapes.items()]
    header = np.array([0, 2, 0, 0, 0], "<i4").tobytes()
    path.write_bytes(header + b"".join(each.numpy().astype("<f4").tobytes() for each in values))
