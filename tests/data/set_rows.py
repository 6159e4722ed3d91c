"""A row for each set that is prepared from files, but images: a small source in its layout, written by its tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.boxes3d.box_writers import write_streets
from tests.data.clouds import (
    cloud_writers,
    modelnet_writers,
    scanobjectnn_writers,
    shapenet_part_writers,
    shapenet_render_writers,
)
from tests.data.clouds.test_psb19 import arrays as psb19_arrays
from tests.data.depth.depth_trees import write_hands2017, write_icvl, write_itop, write_msra, write_nyu
from tests.data.depth.own_frames import write_own_frames
from tests.data.scans import lidar_writers, nuscenes_writers, test_scan_folder, test_squeezeseg_npy
from tests.data.scenes import scannet_writers, scene_writers, test_s3dis_integers, test_scene_folder
from tests.data.scenes.test_s3dis_one_room import arrays as room_arrays


@dataclass(frozen=True)
class SetRow:
    """Set `name`: what writes a source, options of its preparation, arguments of the set; `source` is in the folder."""

    name: str
    write: Callable[[Path], object]
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


def _save(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    path.mkdir()
    np.savez(path / "source.npz", **arrays)


def _hdf5(folder: Path) -> None:
    modelnet_writers.write_hdf5(folder, has_normals=True)


def _poss(folder: Path) -> None:
    """Its `dataset` has the folder `tag`, which no other set has; ids are its own."""
    lidar_writers.write_semantic_kitti(folder / "dataset", {"00": 3, "03": 2})
    for path in (folder / "dataset").rglob("*.label"):
        ids = np.array([4, 7, 9, 15, 22], dtype="<u4")
        path.write_bytes(np.resize(ids, path.stat().st_size // 4).tobytes())
        (path.parents[1] / "tag").mkdir(exist_ok=True)
        (path.parents[1] / "tag" / f"{path.stem}.tag").write_bytes(bytes(40 * 1800))


_PEOPLE = {"train": ["00_00000", "03_00000"], "test": ["01_00000"]}
_OWN_SCANS = {"columns": test_scan_folder.COLUMNS, "num_beams": 16}

ROWS = {
    "modelnet_npz": SetRow("modelnet40", partial(modelnet_writers.write_layout, "npz"), source="shapes.npz"),
    "modelnet_hdf5": SetRow("modelnet10", _hdf5, arguments={"normals": "file"}),
    "modelnet_text": SetRow("modelnet40", modelnet_writers.write_text, arguments={"normals": "file"}),
    "modelnet_off": SetRow("modelnet40", modelnet_writers.write_off),
    "psb19": SetRow("psb19", partial(_save, psb19_arrays()), arguments={"normals": "file"}, source="source.npz"),
    "scanobjectnn": SetRow(
        "scanobjectnn",
        lambda folder: scanobjectnn_writers.write_variant(folder, "obj_bg"),
        {"variant": "obj_bg"},
        {"variant": "obj_bg", "background": "tell"},
    ),
    "shapenet_part_text": SetRow("shapenet_part", shapenet_part_writers.write_text, arguments={"normals": "file"}),
    "shapenet_part_hdf5": SetRow("shapenet_part", shapenet_part_writers.write_hdf5),
    "shapenet_render": SetRow("shapenet_render", shapenet_render_writers.write_release),
    "cloud_folder": SetRow("cloud_folder", cloud_writers.write_folder, {"up_axis": "z"}),
    "s3dis": SetRow("s3dis", scene_writers.write_s3dis, arguments={"normalised_position": True}),
    "s3dis_npy": SetRow(
        "s3dis", lambda folder: test_s3dis_integers.write_npy(folder, test_s3dis_integers.table()), {"order": "B"}
    ),
    "s3dis_one_room": SetRow("s3dis_one_room", partial(_save, room_arrays()), source="source.npz"),
    "scannet_segments": SetRow("scannet", scannet_writers.write_segments),
    "scannet_labels": SetRow("scannet", scannet_writers.write_labels, arguments={"normals": True, "colours": False}),
    "scannet_converted": SetRow("scannet", scannet_writers.write_converted),
    "scannet200_segments": SetRow("scannet200", scannet_writers.write_segments, arguments={"normals": True}),
    "scannet200_converted": SetRow("scannet200", scannet_writers.write_converted),
    "boxes3d_folder": SetRow("boxes3d_folder", write_streets, {"columns": ("x", "y", "z", "intensity")}),
    "kitti_boxes3d": SetRow("kitti_boxes3d", lambda folder: lidar_writers.write_kitti_object(folder, 4)),
    "scene_folder": SetRow("scene_folder", test_scene_folder.write_folder, {"up_axis": "z", "unit": "m"}),
    "semantic_kitti": SetRow(
        "semantic_kitti", lambda folder: lidar_writers.write_semantic_kitti(folder, {"00": 2, "08": 1})
    ),
    "semantic_poss": SetRow("semantic_poss", _poss, arguments={"sensor": {"remission_max": 1.0}}),
    "kitti_object": SetRow("kitti_object", lambda folder: lidar_writers.write_kitti_object(folder, 3)),
    "squeezeseg_npy": SetRow("squeezeseg_npy", test_squeezeseg_npy.write_images),
    "scan_folder": SetRow(
        "scan_folder", lambda folder: lidar_writers.write_own(folder, 3), _OWN_SCANS, {"sensor": lidar_writers.OWN}
    ),
    "nuscenes_lidarseg": SetRow("nuscenes_lidarseg", nuscenes_writers.write_nuscenes),
    "icvl_hands": SetRow("icvl_hands", write_icvl),
    "nyu_hands": SetRow("nyu_hands", lambda folder: write_nyu(folder, {"train": 2, "test": 1})),
    "hands2017": SetRow("hands2017", lambda folder: write_hands2017(folder, with_test_labels=True)),
    "itop": SetRow("itop", lambda folder: write_itop(folder, _PEOPLE)),
    "msra_hands": SetRow("msra_hands", lambda folder: write_msra(folder, {"P0/1": 2, "P1/1": 2, "P2/MP": 1})),
    "depth_folder": SetRow("depth_folder", partial(write_own_frames, count=6)),
}
"""Row of each layout; a new set needs one."""
