"""Readers of whole sources, one file of which is damaged: public sets as they are prepared."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.long.fuzzed_readers import Reader

__all__ = ["set_readers"]

Prepare = Callable[[Path, Path], object]


def set_readers(folder: Path) -> Iterator[Reader]:
    """Of every public set that is prepared by reading its arrays: a file of each kind and folder of its source."""
    targets = itertools.count()
    for name, (write, prepare) in _sets().items():
        source = folder / name / "source"
        source.parent.mkdir(parents=True)
        write(source)
        for path in _of_each_kind(source):

            def read(source: Path = source, prepare: Prepare = prepare) -> None:
                target = folder / f"target{next(targets)}"
                try:
                    prepare(source, target)
                finally:
                    for made in folder.glob("target*"):
                        shutil.rmtree(made) if made.is_dir() else made.unlink()

            yield Reader(f"set {name} {path.relative_to(source)}", path, read)


def _of_each_kind(source: Path) -> list[Path]:
    """The first file of every suffix in each folder of a depth."""
    found: dict[tuple[int, str], Path] = {}
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.suffix:  # others are read by nobody
            found.setdefault((len(path.parts), path.suffix), path)
    return list(found.values())


def _sets() -> dict[str, tuple[Callable[[Path], object], Prepare]]:
    from tests.data.clouds import modelnet_writers, scanobjectnn_writers, shapenet_part_writers, shapenet_render_writers
    from tests.data.depth import test_depth_sets
    from tests.data.scenes import scene_writers, test_s3dis, test_s3dis_integers, test_scene_folder

    def frames(name: str) -> tuple[Callable[[Path], object], Prepare]:
        kind, write = test_depth_sets.SETS[name]
        return write, lambda source, target: _prepared(kind, source, target)

    part, modelnet = shapenet_part_writers.prepare, modelnet_writers.prepare
    rows = np.random.default_rng(0).integers(0, 9, (9, 7)).astype(np.float32)
    sets: dict[str, tuple[Callable[[Path], object], Prepare]] = {
        "modelnet_h5": (modelnet_writers.write_hdf5, lambda *places: modelnet(*places, progress=_quiet)),
        "modelnet_text": (modelnet_writers.write_text, lambda *places: modelnet(*places, progress=_quiet)),
        "scanobjectnn": (lambda root: scanobjectnn_writers.write_variant(root, "obj_bg"), scanobjectnn_writers.prepare),
        "shapenet_part_text": (shapenet_part_writers.write_text, lambda *places: part(*places, progress=_quiet)),
        "shapenet_part_h5": (shapenet_part_writers.write_hdf5, lambda *places: part(*places, progress=_quiet)),
        "shapenet_render": (shapenet_render_writers.write_release, shapenet_render_writers.prepare),
        "s3dis": (scene_writers.write_s3dis, test_s3dis.prepare),
        "s3dis_npy": (lambda root: test_s3dis_integers.write_npy(root, rows), _integers),
        "scene_folder": (test_scene_folder.write_folder, test_scene_folder.prepare),
        **{name: frames(name) for name in test_depth_sets.SETS},
        "depth_folder": _own_frames(),
        **_box_sets(),
        **_scan_sets(),
    }
    return sets


def _own_frames() -> tuple[Callable[[Path], object], Prepare]:
    from tests.data.depth.own_frames import write_own_frames
    from tests.data.preparing import prepare_set

    return partial(write_own_frames, count=2), lambda source, target: prepare_set(
        "depth_folder", source, target, _quiet
    )


def _box_sets() -> dict[str, tuple[Callable[[Path], object], Prepare]]:
    from tests.data.boxes import test_convert, test_crowdhuman, test_labelling_tools, test_people
    from tests.data.boxes.box_writers import pattern, write_coco, write_image

    common = {"image_id": 1, "category_id": 3, "bbox": [1.0, 2, 3, 3], "area": 9.0, "iscrowd": 0}
    masks = ({"size": [6, 8], "counts": [7, 3, 38]}, {"size": [6, 8], "counts": "73V1"}, [[1.0, 2, 4, 2, 4, 5]])

    def write_boxes(root: Path) -> None:
        write_image(root / "a.png", pattern(6, 8))
        boxes = [common, *({**common, "segmentation": each} for each in masks)]
        write_coco(root / "all.json", [(1, "a.png", 8, 6)], boxes)

    def write_texts(root: Path) -> None:
        for name in ("train", "val"):
            write_image(root / f"images/{name}/one.png", pattern(16, 32))
            (root / "labels" / name).mkdir(parents=True)
            (root / f"labels/{name}/one.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0.1 0.1 0.4 0.1 0.4 0.6\n")
        (root / "lists.txt").write_text("./images/val/one.png\n")
        lines = ("path: .", "train: images/train", "val: [lists.txt]", "nc: 2", "names:", "  0: person", "  1: car")
        (root / "data.yaml").write_text("\n".join(lines) + "\n")

    def write_crowd(root: Path) -> None:
        test_crowdhuman.write_set(root, train={"a,1": test_crowdhuman.CROWD}, val={"b,2": test_crowdhuman.CROWD[:1]})

    people = {
        name: (lambda root, name=name: test_people.written(name, root), _opened(name)) for name in test_people.PEOPLE
    }
    tools = {name: (write, _opened(name)) for name, write in test_labelling_tools.WRITERS.items()}
    return {
        "coco": (write_boxes, _opened("coco", ("train",))),
        "yolo_txt": (write_texts, _opened("yolo_txt")),
        "crowdhuman": (write_crowd, _opened("crowdhuman")),
        **people,
        **tools,
        **{f"converted {name}": _converted(name) for name in test_convert.FORMATS},
    }


def _converted(name: str) -> tuple[Callable[[Path], object], Prepare]:
    """A set that was converted to a format, and its conversion to COCO."""
    from tests.data.boxes.test_convert import convert, write_street

    def write(root: Path) -> None:
        convert("coco", write_street(root.with_name(f"{root.name} street")), name, root)

    return write, lambda source, target: convert(name, source, "coco", target, faulty="leave_out")


def _scan_sets() -> dict[str, tuple[Callable[[Path], object], Prepare]]:
    from sightline.store.label_maps import read_label_map
    from tests.data.scans import lidar_writers, test_scan_folder

    options = {"columns": test_scan_folder.COLUMNS, "num_beams": 16}
    prepare = _opened("scan_folder", ("train",), options, sensor=lidar_writers.OWN)
    maps = "labels: {0: none, 10: car, 30: person, 40: road}\nlearning_map: {0: 0, 10: 1, 30: 1, 40: 2}\n"
    maps += "learning_map_inv: {0: 0, 1: 10, 2: 40}\nlearning_ignore: {0: True, 1: False}\n"
    maps += "class_frequency:\n  0: 0.1\n  1: 0.4\n  2: 0.5\ncolor_map:\n  0: [0, 0, 0]\n"
    maps += "  10: [1, 2, 3]\n  40: [4, 5, 6]\n"

    def write_scans(root: Path) -> None:
        lidar_writers.write_own(root, 2)
        (root / "map.yaml").write_text(maps)

    def read_scans(source: Path, target: Path) -> None:
        prepare(source, target)
        read_label_map(str(source / "map.yaml"), {})

    sequences = _opened("semantic_kitti", ("train",), test_sequences=(1,), validation_share=0.0)
    return {
        "semantic_kitti": (lambda root: lidar_writers.write_semantic_kitti(root, {"00": 1, "01": 1}), sequences),
        "kitti_object": (lambda root: lidar_writers.write_kitti_object(root, 1), _opened("kitti_object", ("train",))),
        "scan_folder": (write_scans, read_scans),
    }


def _opened(name: str, parts: Sequence[str] = ("train", "test"), options: Any = None, **arguments: Any) -> Prepare:
    """A set surveyed and prepared with `options`, and the first samples of its `parts` read with `arguments`."""
    from sightline.contract import registry
    from sightline.contract.types import SampleKey

    builder: Any = registry.data.get_entry(name).builder

    def prepare(source: Path, target: Path) -> None:
        builder.survey(source, **options or {})
        builder.prepare(source=source, target=target, name=name, progress=_quiet, **options or {})
        for split in parts:
            part = builder(split=split, root=str(target), **arguments)
            if len(part):
                part[SampleKey(0, 0, 0)]

    return prepare


def _integers(source: Path, target: Path) -> object:
    from tests.data.scenes import test_s3dis_integers

    return test_s3dis_integers.prepare(source, target, order="A")


def _quiet(done: int, total: int, what: str) -> None:
    """Of a damaged source any number may be announced."""


def _prepared(kind: Any, source: Path, target: Path) -> None:
    """A set of depth frames prepared, and its first frame of each part read: the images stay where they are."""
    from sightline.contract.types import SampleKey

    kind.prepare(source=source, target=target, name=kind.set_name, progress=_quiet)
    for split in ("train", "test"):
        part = kind(split=split, root=str(target))
        if len(part):
            part[SampleKey(0, 0, 0)]
