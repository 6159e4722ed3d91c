"""ScanNet: a small folder of its layout, prepared, read and verified, and what of it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sightline.areas.scenes.sets.scannet import CLASSES, ScanNet
from sightline.contract.types import SampleKey
from tests.command import refuse, succeed

ROOMS = {"scene0000_00": "train", "scene0000_01": "train", "scene0011_00": "test"}
VERTEX = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), *((name, "u1") for name in ("red", "green", "blue", "alpha"))]


def write_ply(path: Path, rows: np.ndarray) -> None:
    kinds = {"<f4": "float", "|u1": "uchar", "<u2": "ushort"}
    properties = "".join(f"property {kinds[rows.dtype[name].str]} {name}\n" for name in rows.dtype.names or ())
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n{properties}end_header\n"
    path.write_bytes(head.encode() + rows.tobytes())


def write_scannet(root: Path) -> None:
    """A small folder in the layout of the release; the labels of a room begin at its number."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(ROOMS):
        folder = root / "scans" / name
        folder.mkdir(parents=True)
        rows = np.zeros(41, VERTEX)
        for axis in "xyz":
            rows[axis] = generator.uniform(-3, 3, 41)
        rows["red"] = range(41)
        labelled = np.zeros(41, [*VERTEX, ("label", "<u2")])
        for column in rows.dtype.names or ():
            labelled[column] = rows[column]
        labelled["label"] = (np.arange(41) + number) % 41
        write_ply(folder / f"{name}_vh_clean_2.ply", rows)
        write_ply(folder / f"{name}_vh_clean_2.labels.ply", labelled)
    for split, file in (("train", "scannetv2_train.txt"), ("test", "scannetv2_val.txt")):
        (root / file).write_text("".join(f"{name}\n" for name, of in ROOMS.items() if of == split))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_scannet(tmp_path / "scannet")
    return tmp_path / "scannet"


def test_rooms_are_prepared_read_and_verified(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "prepared"
    succeed("data", "prepare", "scannet", "--from", source, "--to", target)
    succeed("data", "verify", target)
    train, test = (ScanNet(split=split, root=str(target)) for split in ("train", "test"))
    assert [len(train), len(test)] == [2, 1]
    assert train.class_names == tuple(CLASSES.values())
    sample = train[SampleKey(1, 0, 0)]
    assert train.sample_name(1) == "scene0000_01"
    assert sample["points"].min(0).values.tolist() == [0, 0, 0]
    assert np.array_equal(np.rint(255 * sample["colours"][:, 0].numpy()), np.arange(41))
    ordered = [*CLASSES]
    for vertex, label in enumerate(sample["label"].tolist()):  # the room's labels begin at 1
        number = (vertex + 1) % 41
        assert label == (ordered.index(number) if number in CLASSES else 255)
    assert train.info.facts["ignore_index"] == 255
    assert train.info.facts["in_channels"] == 6


def test_labels_beyond_those_of_the_classes_are_without_a_class(source: Path, tmp_path: Path) -> None:
    """As the release has them in three rooms, where ScanNet's own evaluation leaves them out."""
    path = source / "scans" / "scene0000_01" / "scene0000_01_vh_clean_2.labels.ply"
    head, _, body = path.read_bytes().partition(b"end_header\n")
    rows = np.frombuffer(body, [*VERTEX, ("label", "<u2")]).copy()
    rows["label"][[0, 7]] = 50, 149
    path.write_bytes(head + b"end_header\n" + rows.tobytes())
    said = succeed("data", "prepare", "scannet", "--from", source, "--to", tmp_path / "set").err
    assert "labels outside of 0 to 40 at 2 vertices: without a class" in said
    label = ScanNet(split="train", root=str(tmp_path / "set"))[SampleKey(1, 0, 0)]["label"]
    assert label[[0, 7]].tolist() == [255, 255]
    assert int((label == 255).sum()) == 41 - 20 + sum(number in CLASSES for number in (1, 8))
    rows["label"] += 100
    path.write_bytes(head + b"end_header\n" + rows.tobytes())
    assert "with 0 to 40" in refuse("data", "prepare", "scannet", "--from", source, "--to", tmp_path / "other")


def test_a_missing_room_and_labels_of_another_mesh_are_refused(source: Path, tmp_path: Path) -> None:
    words = ("data", "prepare", "scannet", "--from", source, "--to", tmp_path / "prepared")
    labels = source / "scans" / "scene0011_00" / "scene0011_00_vh_clean_2.labels.ply"
    whole = labels.read_bytes()
    labels.write_bytes((source / "scans" / "scene0000_00" / "scene0000_00_vh_clean_2.labels.ply").read_bytes())
    assert f"{labels}: does not label the vertices of scene0011_00_vh_clean_2.ply" in refuse(*words)
    labels.write_bytes(whole[:-3])
    assert str(labels) in refuse(*words)
    labels.unlink()
    assert f"{source / 'scannetv2_val.txt'}:1: 'scene0011_00' has no labels below scans" in refuse(*words)
    (source / "scannetv2_val.txt").unlink()
    assert "scannetv2_val.txt" in refuse(*words)
