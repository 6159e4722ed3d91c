"""Every reader of the product with a sound file of its kind, for tests that damage the file."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

__all__ = ["Reader", "file_readers", "prepared_readers", "run_readers"]


@dataclass(frozen=True)
class Reader:
    """A sound file, what reads it, and what a forger does to the file's seals after changing it."""

    name: str
    path: Path
    read: Callable[[], object]
    reseal: Callable[[], None] | None = None


def file_readers(folder: Path) -> Iterator[Reader]:
    """Readers of one file: clouds, depth frames, scans, images, results, policies, published weights."""
    yield from _clouds(folder)
    yield from _depth(folder)
    yield from _scans(folder)
    yield from _images(folder)
    yield from _documents(folder)
    yield from _weights(folder)


def _clouds(folder: Path) -> Iterator[Reader]:
    from scipy.io import savemat

    from sightline.store.files.cloud_files import read_cloud
    from sightline.store.files.mat_files import read_mat
    from tests.data.files.test_broken_clouds import write_one_of_each_kind

    for path in write_one_of_each_kind(folder):
        yield Reader(f"cloud{path.suffix} {path.stem}", path, lambda path=path: read_cloud(path))
    for name, is_packed in (("plain", False), ("packed", True)):
        path = folder / f"{name}.mat"
        savemat(path, {"points": np.ones((12, 3))}, do_compression=is_packed)
        yield Reader(f"mat {name}", path, lambda path=path: read_mat(path, "points"))


def _depth(folder: Path) -> Iterator[Reader]:
    from sightline.areas.pose.depth_files import read_colour_png, read_depth, read_windowed_depth

    depth = np.random.default_rng(1).integers(300, 900, (12, 16)).astype(np.uint16)
    Image.fromarray(depth).save(folder / "depth.png")
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(folder / "colour.png")
    np.save(folder / "depth.npy", depth)
    window = depth[2:6, 3:9].astype("<f4")
    (folder / "window.bin").write_bytes(np.array([16, 12, 3, 2, 9, 6], "<i4").tobytes() + window.tobytes())
    for name in ("depth.png", "depth.npy", "window.bin"):
        yield Reader(f"depth {name}", folder / name, lambda name=name: read_depth(folder / name))
    yield Reader("depth window", folder / "window.bin", lambda: read_windowed_depth(folder / "window.bin"))
    yield Reader("depth colour.png", folder / "colour.png", lambda: read_colour_png(folder / "colour.png"))


def _scans(folder: Path) -> Iterator[Reader]:
    from sightline.store.boxes3d.kitti_objects import image_size_px, read_calibration, read_objects
    from sightline.store.files.scan_files import read_bin, read_label_ids
    from sightline.store.files.scan_reading import read_range_image, read_scan
    from tests.data.scans.lidar_writers import street_scan, write_kitti_object, write_semantic_kitti, write_squeezeseg

    write_semantic_kitti(folder, {"00": 1})
    tree = folder / "sequences/00"
    scan, labels = tree / "velodyne/000000.bin", tree / "labels/000000.label"
    count = labels.stat().st_size // 4
    yield Reader("scan .bin", scan, lambda: read_bin(scan, num_columns=4))
    yield Reader("scan of one's own", scan, lambda: read_scan(scan, columns=["x", "y", "z", "remission"]))
    yield Reader("scan .label", labels, lambda: read_label_ids(labels, num_points=count, points_path=scan))
    write_kitti_object(folder / "kitti", 1)
    training = folder / "kitti/training"
    yield Reader("kitti label", training / "label_2/000000.txt", lambda: read_objects(training / "label_2/000000.txt"))
    yield Reader("kitti calib", training / "calib/000000.txt", lambda: read_calibration(training / "calib/000000.txt"))
    yield Reader("kitti image", training / "image_2/000000.png", lambda: image_size_px(training / "image_2/000000.png"))
    yield from _labels3d(folder / "labels3d")
    _, street = street_scan(0)
    image = folder / "range.npy"
    write_squeezeseg(image, street, np.zeros(len(street.points)), width=64)
    yield Reader("squeezeseg", image, lambda: read_range_image(image, height=64, width=64))


def _labels3d(folder: Path) -> Iterator[Reader]:
    from sightline.store.boxes3d.label_formats import read_labels
    from tests.data.boxes3d.box_writers import format_txt, make_boxes, make_names
    from tests.data.boxes3d.test_label_files import KITTI, SUPERVISELY, TRACKLETS, labelcloud, make_sustech

    folder.mkdir()
    texts = {
        "rows.txt": format_txt(make_boxes(0), make_names()),
        "kitti.txt": f"{KITTI}\n",
        "sustech.json": make_sustech(),
        "labelcloud.json": labelcloud(0.5, -0.5),
        "supervisely.json": json.dumps(SUPERVISELY),
        "tracklets.xml": TRACKLETS,
    }
    for name, text in texts.items():
        path = folder / name
        path.write_text(text)
        yield Reader(f"labels of 3D boxes, {name}", path, lambda path=path: read_labels(path))


def _images(folder: Path) -> Iterator[Reader]:
    from sightline.store.files.image_files import check_image, read_header, read_image, read_view

    pixels = np.random.default_rng(2).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    for kind in ("bmp", "gif", "jpg", "png", "tif", "webp"):
        path = folder / f"image.{kind}"
        Image.fromarray(pixels).save(path, **({} if kind in ("bmp", "gif") else {"exif": exif}))

        def read(path: Path = path) -> None:
            header = read_header(path)
            check_image(path)
            read_image(path, orientation=header.orientation)

        yield Reader(f"image {kind}", path, read)
    view = folder / "view.png"
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(view)
    yield Reader("view png", view, lambda: read_view(view, size_px=8, background="white"))


def _documents(folder: Path) -> Iterator[Reader]:
    from sightline.areas.detect.sets.detections import read_results
    from sightline.areas.detect.sets.label_table import CategoryIds
    from sightline.compression.policy import WeightFormat, policy_to_dict, read_policy
    from sightline.config import read_config
    from tests.runs.broken_off import CONFIG

    images = [_Ref(f"{each}.jpg", each, 9, 9) for each in (1, 2)]
    part = _Images(CategoryIds.from_ids({1: "person", 3: "car"}, where="the test"), images)
    rows = [{"image_id": each, "category_id": 1, "bbox": [1.0, 2, 3, 4], "score": 0.5} for each in (1, 2)]
    coco, odgt = folder / "results.json", folder / "results.odgt"
    coco.write_text(json.dumps(rows))
    boxes = [{"box": [1.0, 2, 3, 4], "score": 0.5, "tag": 1}]
    odgt.write_text("".join(json.dumps({"ID": f"{each}.jpg", "dtboxes": boxes}) + "\n" for each in (1, 2)))
    yield Reader("results coco", coco, lambda: read_results(coco, part))
    yield Reader("results odgt", odgt, lambda: read_results(odgt, part))
    policy = folder / "policy.json"
    names = ["a.weight", "b.weight"]
    policy.write_text(json.dumps(policy_to_dict({name: WeightFormat("codebook", 4) for name in names})))
    yield Reader("policy", policy, lambda: read_policy(policy, names))
    config = folder / "config.yaml"
    config.write_text(CONFIG.replace("transforms: {train: [{name: jitter}, {name: slowed}]}\n", ""))
    yield Reader("config yaml", config, lambda: read_config(config))


@dataclass(frozen=True)
class _Ref:
    name: str
    image_id: int
    height: int
    width: int

    def __iter__(self) -> Iterator[Any]:
        return iter((self.name, self.image_id))

    def __getitem__(self, place: int) -> Any:
        return (self.name, self.image_id)[place]


class _Images:
    def __init__(self, classes: Any, images: list[_Ref]) -> None:
        self.classes, self._images = classes, images

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> _Ref:
        return self._images[index]

    def set_index(self) -> Any:
        return SimpleNamespace(images=frozenset(), category_ids=frozenset())


def _weights(folder: Path) -> Iterator[Reader]:
    from sightline.compression.packed_file import read_packed, write_packed
    from sightline.published.files import read_published

    path = folder / "published.pth"
    torch.save({"state_dict": {"weight": torch.arange(6.0).reshape(2, 3)}}, path)
    yield Reader("published pth", path, lambda: read_published(path))
    old = folder / "old.pth"
    torch.save({"weight": torch.arange(6.0)}, old, _use_new_zipfile_serialization=False)
    yield Reader("published pth, old", old, lambda: read_published(old))
    packed = folder / "model.slq"
    write_packed(packed, torch.nn.Linear(3, 2), {"model": {"name": "net"}})

    def reseal() -> None:
        data = packed.read_bytes()[:-4]
        packed.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))

    yield Reader("packed", packed, lambda: read_packed(packed))
    yield Reader("packed, resealed", packed, lambda: read_packed(packed), reseal)


def prepared_readers(folder: Path) -> Iterator[Reader]:
    """Readers of a prepared set, one file of which is damaged, also under new seals."""
    from sightline.areas.clouds.sets.modelnet import ModelNet40
    from sightline.contract.types import SampleKey
    from sightline.store.prepared.prepared_set import PreparedSet, add_digest, read_manifest, verify
    from tests.data.clouds.modelnet_writers import prepare, write_text

    prepare(write_text(folder / "release"), folder / "set")
    root = folder / "set"
    manifest = root / "manifest.json"

    def read() -> None:
        verify(root)
        dataset = ModelNet40(root=str(root), split="train")
        prepared = PreparedSet(root, read_manifest(root))
        for split in prepared.splits:
            prepared.names(split)
        for index in range(min(2, len(dataset))):
            dataset[SampleKey(index, epoch=0, seed=0)]

    def reseal() -> None:
        try:
            document = json.loads(manifest.read_bytes())
            manifest.write_text(json.dumps(add_digest(document)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return

    def reseal_file(path: Path) -> Callable[[], None]:
        def change() -> None:
            document = json.loads(manifest.read_bytes())
            content = path.read_bytes()
            document["files"][path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest.write_text(json.dumps(add_digest(document)))

        return change

    yield Reader("manifest", manifest, read)
    yield Reader("manifest, resealed", manifest, read, reseal)
    for path in sorted(root.iterdir()):
        if path != manifest and path.name.startswith("train"):
            yield Reader(f"prepared {path.name}, resealed", path, read, reseal_file(path))


def run_readers(folder: Path) -> Iterator[Reader]:
    """Readers of a run's folder and checkpoints, one file of which is damaged; of checkpoints also with new seals."""
    from sightline.api import load_run
    from sightline.runs.checkpoint import load
    from sightline.runs.lineage import describe_lineage, read_lineage
    from tests.runs.broken_off import Bench, run_forked

    bench = Bench(folder)
    code, text = run_forked(bench.words("first", "train.epochs=1", "train.ema_decay=0.9"), folder / "log")
    assert code == 0, text
    init = f"init={{from: {folder / 'first'}}}"
    code, text = run_forked(bench.words("run", "train.epochs=1", init), folder / "log")
    assert code == 0, text
    run = folder / "run"

    def read() -> None:
        load_run(run, plugins=[bench.plugin])
        if (lineage := read_lineage(run)) is not None:
            describe_lineage(lineage)

    for path in sorted(run.iterdir()):
        if path.suffix in (".json", ".yaml", ".jsonl"):
            yield Reader(f"run {path.name}", path, read)
    place = run / "checkpoints" / os.readlink(run / "checkpoints/last")
    for path in sorted(place.iterdir()):
        for name, read_one in (("checkpoint", lambda: load(place)), ("weights", read)):
            yield Reader(f"{name} {path.name}, resealed", path, read_one, seal_of_checkpoint(place))


def seal_of_checkpoint(place: Path) -> Callable[[], None]:
    from sightline.runs import snapshots

    def reseal() -> None:
        try:
            entries = json.loads((place / "manifest.json").read_bytes())
            entries.pop("sha256", None)
            for name in entries["files"]:
                content = (place / name).read_bytes()
                entries["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (place / "manifest.json").write_bytes(snapshots._render_manifest(entries))
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
            return

    return reseal
