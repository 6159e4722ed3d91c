"""Prepares the sets that are kept beside this file: `python -m tests.old_prepared.make`.

It was run once, on 2026-11-24, before the names inside the package were changed. The archives and `samples.json` stand
for all folders that users have prepared: they are never made anew, and no script touches them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sightline.config import read_config
from sightline.engine.build import build_part
from sightline.types import SampleKey
from tests.command import run_here
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.data.boxes.people_writers import write_citypersons, write_ecp, write_widerperson
from tests.data.boxes.test_crowdhuman import CROWD
from tests.data.boxes.test_crowdhuman import write_set as write_crowdhuman
from tests.data.clouds import modelnet_writers, scanobjectnn_writers, shapenet_part_writers, shapenet_render_writers
from tests.data.clouds.cloud_writers import write_folder
from tests.data.clouds.test_psb19 import arrays as psb19_arrays
from tests.data.depth import depth_trees
from tests.data.scans.lidar_writers import (
    OWN,
    street_scan,
    write_kitti_object,
    write_own,
    write_semantic_kitti,
    write_squeezeseg,
)
from tests.data.scenes.scene_writers import write_s3dis
from tests.data.scenes.test_s3dis_one_room import arrays as room_arrays
from tests.data.scenes.test_scene_folder import write_folder as write_scenes

HERE = Path(__file__).parent
RECORD = HERE / "samples.json"
WORK = Path("/tmp/sightline_old_prepared")
"""Where they were made: manifests of files that are listed in place name it."""
CONFIG = """
data: {}
model: {name: pointnet_plain}
losses: [{name: cross_entropy}]
metrics: [{name: accuracy}]
optimizer: {name: sgd, lr: 0.1}
train: {epochs: 1, batch_size: 1}
evaluate: {metric: overall_accuracy}
"""
VIEWS = "modelnet40_views"
JPEG = ("widerperson",)
"""Sets whose pixels another decoder may round otherwise."""


class Kept(NamedTuple):
    """A set: what writes its files, words of `data prepare`, arguments under `data:`, its parts."""

    write: Callable[[Path], object]
    words: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = {}
    splits: tuple[str, ...] = ("train", "test")


def _write_images(root: Path) -> None:
    for number in range(4):
        write_image(root / "images" / f"{number}.png", pattern(16, 24, seed=number))


def _write_coco(root: Path) -> None:
    _write_images(root)
    boxes = [
        {"image_id": n, "category_id": 3 + 4 * (n % 2), "bbox": [2, 3, 8, 9], "area": 72, "iscrowd": 0}
        for n in range(4)
    ]
    write_coco(root / "annotations" / "instances.json", [(n, f"{n}.png", 24, 16) for n in range(4)], boxes)


def _write_yolo(root: Path) -> None:
    _write_images(root)
    (root / "labels").mkdir()
    for number in range(4):
        (root / "labels" / f"{number}.txt").write_text(f"{number % 2} 0.5 0.5 0.25 0.5\n")
    (root / "data.yaml").write_text("names: [cat, dog]\n")


def _write_squeezeseg(root: Path) -> None:
    for drive in range(3):
        _, scan = street_scan(drive, num_columns=16)
        labels = np.select([scan.ids == 10, scan.ids == 30], [1, 2], 0)
        write_squeezeseg(root / "lidar_2d" / f"2011_09_26_{drive:04d}_0000000003.npy", scan, labels, width=16)


def _write_pedestrians(time: str, identity: str = "pedestrian") -> list[dict[str, Any]]:
    return [{"identity": identity, "x0": 4, "y0": 5, "x1": 14, "y1": 40, "tags": [time], "children": []}]


SETS = {
    "cloud_folder": Kept(lambda root: write_folder(root, per_class=4), ("up_axis=z", "num_points=32")),
    "modelnet40": Kept(lambda root: modelnet_writers.write_npz(_make(root) / "modelnet40.npz")),
    VIEWS: Kept(lambda root: unpack("modelnet40", root)),
    "modelnet10": Kept(modelnet_writers.write_off),
    "psb19": Kept(lambda root: np.savez(_make(root) / "psb19.npz", **psb19_arrays())),
    "scanobjectnn": Kept(
        lambda root: scanobjectnn_writers.write_variant(root, "obj_bg"), ("variant=obj_bg",), {"variant": "obj_bg"}
    ),
    "shapenet_part": Kept(shapenet_part_writers.write_text),
    "shapenet_render": Kept(shapenet_render_writers.write_release, ("size_px=16",), {}, ("train",)),
    "s3dis": Kept(write_s3dis, (), {"test_area": 5}),
    "s3dis_one_room": Kept(lambda root: np.savez(_make(root) / "room.npz", **room_arrays())),
    "scene_folder": Kept(write_scenes, ("up_axis=z", "unit=m")),
    "semantic_kitti": Kept(lambda root: write_semantic_kitti(root, {"00": 1, "08": 1})),
    "kitti_object": Kept(lambda root: write_kitti_object(root, 2)),
    "squeezeseg_npy": Kept(_write_squeezeseg, (), {"tested": ["2011_09_26_0002"]}),
    "scan_folder": Kept(
        lambda root: write_own(_make(root), 4),
        ("columns=[x, y, z, intensity, ring]", "num_beams=16"),
        {"sensor": dict(OWN)},
    ),
    "coco": Kept(_write_coco),
    "yolo_txt": Kept(_write_yolo),
    "crowdhuman": Kept(lambda root: write_crowdhuman(root, train={"a,1": CROWD, "b,2": []}, val={"d,4": CROWD[:3]})),
    "widerperson": Kept(
        lambda root: write_widerperson(_make(root), train={"1": [[1, 2, 3, 20, 30]]}, val={"2": [[2, 4, 5, 9, 9]]})
    ),
    "citypersons": Kept(
        lambda root: write_citypersons(
            root,
            train={"aachen_000000_000019_leftImg8bit.png": [[1, 2, 3, 20, 30, 1, 2, 3, 20, 30]]},
            val={"lindau_000000_000019_leftImg8bit.png": [[1, 5, 5, 9, 30, 2, 5, 5, 9, 20]]},
        )
    ),
    "ecp": Kept(
        lambda root: write_ecp(
            root,
            {
                "day/train/amsterdam/amsterdam_00000": _write_pedestrians("occluded>10"),
                "day/val/berlin/berlin_00000": _write_pedestrians("truncated>10"),
            },
        )
    ),
    "msra_hands": Kept(lambda root: depth_trees.write_msra(root, {"P0/1": 2, "P1/1": 2})),
    "icvl_hands": Kept(depth_trees.write_icvl),
    "nyu_hands": Kept(lambda root: depth_trees.write_nyu(root, {"train": 2, "test": 1})),
    "hands2017": Kept(lambda root: depth_trees.write_hands2017(root, with_test_labels=True)),
    "itop": Kept(lambda root: depth_trees.write_itop(root, {"train": ["00_00000", "03_00000"], "test": ["01_00000"]})),
}


def _make(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    return root


def describe(name: str, root: Path, config: Path) -> dict[str, Any]:
    """What is read of a prepared folder, opened by a config: of each part its size, facts, and its first sample."""
    kept, found = SETS[name], {}
    block = {"name": name, "root": str(root), **kept.arguments}
    if name == VIEWS:
        block = {
            "name": "modelnet40",
            "root": str(unpack("modelnet40", config.parent / "modelnet40")),
            "views": str(root),
        }
    config.write_text(CONFIG.replace("{}", json.dumps(block)))
    read = read_config(config)
    for split in kept.splits:
        dataset = build_part(read, split).dataset
        sample = dataset[SampleKey(0, 0, 0)]
        fields = {key: _digest(value) for key, value in sample.items() if not (key == "image" and name in JPEG)}
        about = {"size": len(dataset), "sizes": dict(dataset.info.split_sizes), "fields": fields}
        about["promised"] = sorted(dataset.info.fields)
        about["facts"] = json.loads(json.dumps(dict(dataset.info.facts), default=str))
        about["fingerprint"] = getattr(dataset, "fingerprint", None)
        about["name"] = dataset.name_of(0) if hasattr(dataset, "name_of") else None
        found[split] = about
    return found


def _digest(value: Any) -> str:
    array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return f"{array.dtype} {array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]}"


def make(name: str, work: Path) -> dict[str, Any]:
    """The archive of a prepared folder, with its source beside it where the set lists files in place."""
    source, root = work / "source", work / "set"
    SETS[name].write(source)
    if name == VIEWS:
        done = run_here("data", "render", source / "set", "--to", root, "--views", 4, "--jobs", 1)
    else:
        files = list(source.iterdir())
        given = files[0] if len(files) == 1 and files[0].suffix == ".npz" else source
        done = run_here("data", "prepare", name, "--from", given, "--to", root, *SETS[name].words)
    assert done.code == 0, f"{name}: {done.err}"
    with tarfile.open(HERE / f"{name}.tar.xz", "w:xz", format=tarfile.PAX_FORMAT) as archive:
        archive.add(root, "set", filter=_forget_owner)
        if list(root.glob("*.listed.json")):
            archive.add(source, "source", filter=_forget_owner)
    return describe(name, root, work / "config.yaml")


def _forget_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def unpack(name: str, folder: Path) -> Path:
    """The prepared folder of an archive.

    A manifest that lists files in place names the folder that they were in: it gets the present one, and the digest of
    its new text. Archives keep times to some hundred nanoseconds, manifests to one.
    """
    with tarfile.open(HERE / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    root = folder / "set"
    if (folder / "source").exists():
        manifest = json.loads((root / "manifest.json").read_text())
        moved = json.loads(json.dumps(manifest).replace(str(WORK / "source"), str(folder / "source")))
        body = {key: value for key, value in moved.items() if key != "digest"}
        digest = hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()
        (root / "manifest.json").write_text(json.dumps({**body, "digest": digest}))
        _restore_times(root, folder / "source")
    return root


def _restore_times(root: Path, source: Path) -> None:
    for listed in root.glob("*.listed.json"):
        for path, _, mtime_ns, _ in (entry for row in json.loads(listed.read_text()) for entry in row):
            os.utime(source / path, ns=(mtime_ns, mtime_ns))


if __name__ == "__main__":
    record = {}
    for name in SETS:
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir()
        record[name] = make(name, WORK)
    shutil.rmtree(WORK)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
