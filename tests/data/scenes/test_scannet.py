"""ScanNet: a small folder of each layout, prepared, read and verified, and what of it is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.areas.scenes.sets.scannet import ScanNet, ScanNet200
from sightline.areas.scenes.sets.scannet_files import CLASSES
from sightline.areas.scenes.sets.scannet_rooms import official_validation
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.ops.points.meshes import vertex_normals
from sightline.parts.metrics import IoU, Meter
from sightline.workbench.predict.file_samples import read_sample
from tests.cases import run_each
from tests.command import refuse, succeed
from tests.data.scenes import scannet_writers as writers

SETS = {20: ScanNet, 200: ScanNet200}
NAMES = {20: "scannet", 200: "scannet200"}


def prepare(source: Path, target: Path, count: int = 20) -> list[str]:
    """Prepare the set of 20 or 200 classes, verify it, and return the lines of notes."""
    said = succeed("data", "prepare", NAMES[count], "--from", source, "--to", target).err
    succeed("data", "verify", target)
    return [line.partition("look at this: ")[2] for line in said.splitlines() if "look at this" in line]


def open_parts(target: Path, count: int = 20, **arguments: bool) -> dict[str, ScanNet]:
    return {split: SETS[count](split=split, root=str(target), **arguments) for split in ("train", "test")}


# --- labels of groups of segments ---


@run_each("count", [20, 200])
def test_classes_are_those_of_the_last_group_by_the_first_row_of_a_text(
    tmp_path_factory: pytest.TempPathFactory, count: int
) -> None:
    """Of every vertex, as a plain rule has them; with normals of faces, and without what the table lacks."""
    root = tmp_path_factory.mktemp("scannet")
    writers.write_segments(root)
    notes = prepare(root, root / "prepared", count)
    parts = open_parts(root / "prepared", count, normals=True)
    numbers = {name: number for number, name in enumerate(writers.ROOMS)}
    assert [part.sample_name(at) for part in parts.values() for at in range(len(part))] == [*writers.ROOMS]
    for part in parts.values():
        for at in range(len(part)):
            number = numbers[part.sample_name(at)]
            sample = part[SampleKey(at, 0, 0)]
            segments = writers.segments_of(number)
            assert sample["label"].tolist() == [writers.EXPECTED[count].get(n, 255) for n in segments.tolist()]
            rows, faces = writers.make_mesh(number)
            points = np.stack([rows[axis] for axis in "xyz"], axis=1).astype(np.float64)
            assert np.array_equal(sample["normals"], vertex_normals(points, faces).astype(np.float32))
            assert not sample["normals"][-1].any()
            assert sample["points"].min(0).values.tolist() == [0, 0, 0]
            assert np.array_equal(np.rint(255 * sample["colours"][:, 0].numpy()), np.arange(41))
    facts = parts["train"].info.facts
    assert (facts["num_classes"], facts["in_channels"], facts["ignore_index"]) == (count, 9, 255)
    first = "(3 files, first: "
    assert [note.partition(first)[0] for note in notes] == [
        "tested are 1 of the 312 scans of the official validation part, and 0 others: figures are not to be compared "
        "with published ones",
        "11 of 123 vertices (8.9%) are in several groups: the last one counts ",
        "12 of 123 vertices (9.8%) have a label that scannetv2-labels.combined.tsv lacks: no class ",
        "3 of 24 segments of groups (12.5%) are at no vertex ",
        "3 of 123 vertices (2.4%) are at no face with an area: their normal is 0 ",
    ]
    assert not (root / "was_run").exists()


def test_the_200_classes_are_in_groups_whose_means_are_scored(tmp_path: Path) -> None:
    writers.write_segments(tmp_path / "in")
    prepare(tmp_path / "in", tmp_path / "set", 200)
    part = ScanNet200(split="test", root=str(tmp_path / "set"))
    facts = part.info.facts
    assert facts["class_names"][:2] == ("thing 0", "thing 1")
    assert list(facts["class_groups"]) == writers.GROUPS
    assert "class_groups" not in open_parts_of_20(tmp_path).info.facts
    stated = {name: facts[name] for name in ("num_classes", "class_names", "class_groups", "ignore_index")}
    label = part[SampleKey(0, 0, 0)]["label"]
    answer = torch.where(label == 70, 71, label.clamp(max=199))  # of a class of the group `common`, another one
    meter = Meter(IoU(**stated, absent="both"))
    offsets, index = torch.tensor([0, len(label)]), torch.tensor([0])
    meter.update(probabilities=torch.eye(200)[answer], target=label, cloud_offsets=offsets, sample_index=index)
    found = meter.compute()
    means = {name: value for name, value in found.items() if "miou" in name}
    by_group = {"miou_head": 1, "miou_common": 0, "miou_tail": 1}
    zeroed = {"miou_head_absent_zero": 1 / 66, "miou_common_absent_zero": 0, "miou_tail_absent_zero": 1 / 66}
    assert means == pytest.approx({"miou": 2 / 4, "miou_absent_zero": 2 / 200} | by_group | zeroed)


def open_parts_of_20(folder: Path) -> ScanNet:
    prepare(folder / "in", folder / "set20")
    return ScanNet(split="test", root=str(folder / "set20"))


def edit_json(path: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Make a fault of the first room: what `change` does to a document."""

    def plant(root: Path) -> None:
        file = root / "scans/scene0000_00" / f"scene0000_00{path}"
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))

    return plant


def edit_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Make a fault of a file beside the rooms."""

    def plant(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return plant


SEGS, GROUPS, TABLE = "_vh_clean_2.0.010000.segs.json", ".aggregation.json", "scannetv2-labels.combined.tsv"
CONSTANTS, SPLITS = "scannet200_constants.py", "scannet200_splits.py"
FAULTS: list[tuple[int, Callable[[Path], object], str]] = [
    (
        20,
        edit_json(SEGS, lambda document: document["segIndices"].pop()),
        f"scene0000_00{SEGS}: has 40 segment indices for a mesh of 41 vertices; get the file again",
    ),
    (20, edit_json(SEGS, lambda document: document["segIndices"].append(True)), "segIndices is not a list of whole"),
    (20, edit_json(SEGS, dict.clear), "segIndices is not a list of whole numbers; get the room again"),
    (20, edit_json(GROUPS, dict.clear), f"scene0000_00{GROUPS}: has no list segGroups; get the room again"),
    (20, edit_json(GROUPS, lambda document: document["segGroups"].append(3)), "segGroups[6] has no text 'label'"),
    (
        20,
        edit_json(GROUPS, lambda document: document["segGroups"][1].update(segments=[0.5])),
        "segGroups[1].segments is not a list of whole numbers",
    ),
    (
        20,
        edit_json(SEGS, lambda document: document.update(segIndices=[5] * 41)),
        f"scene0000_00{GROUPS}: none of its 8 segments is in scene0000_00{SEGS}; get the file again",
    ),
    (20, lambda root: (root / f"scans/scene0000_00/scene0000_00{SEGS}").write_text("{"), "does not read as JSON"),
    (
        20,
        lambda root: (root / f"scans/scene0011_00/scene0011_00{SEGS}").unlink(),
        f"scene0011_00: 'scene0011_00' has no scene0011_00{SEGS} below scans; get the room, or leave it out",
    ),
    (20, lambda root: (root / TABLE).unlink(), f"{TABLE}: cannot be read"),
    (20, edit_text(TABLE, "nyu40id", "nyu41id"), f"{TABLE}: has no column 'nyu40id', it begins with id, raw_category"),
    (20, edit_text(TABLE, "\tx\t6", "\tx\tsix"), f"{TABLE}:6: nyu40id is 'six', not a whole number"),
    (20, edit_text(TABLE, "\tx\t6", ""), f"{TABLE}:6: has 2 of 4 columns"),
    (20, lambda root: (root / TABLE).write_text('"' + 200_000 * "a"), f"{TABLE}: does not read as a table"),
    (
        20,
        lambda root: shutil.rmtree(root / "scans/scene0011_00"),
        "of its rooms, none of the official validation part is there, or scannetv2_val.txt is empty; get rooms",
    ),
    (200, lambda root: (root / CONSTANTS).unlink(), f"{CONSTANTS}: there is no such file, which lists the classes of"),
    (200, edit_text(CONSTANTS, "(\n2, ", "(\n"), "VALID_CLASS_IDS_200 is not a list of 200 different values; get the"),
    (200, edit_text(CONSTANTS, "(\n2, ", "(\n2.5, "), "VALID_CLASS_IDS_200 is not a list of 200 different values"),
    (200, edit_text(CONSTANTS, "'thing 1'", "'thing 0'"), "CLASS_LABELS_200 is not a list of 200 different values"),
    (
        200,
        edit_text(CONSTANTS, "CLASS_LABELS_200", "LABELS"),
        f"{CONSTANTS}: assigns no CLASS_LABELS_200; get the file",
    ),
    (
        200,
        edit_text(CONSTANTS, "'thing 1'", "eval('1')"),
        f"{CONSTANTS}:7: CLASS_LABELS_200 is not a plain list of values; get the file from BenchmarkScripts",
    ),
    (200, edit_text(SPLITS, "'thing 66'", "'thing 3'"), f"{SPLITS}: COMMON_CATS_SCANNET_200: 'thing 3' is in two"),
    (200, edit_text(SPLITS, "'thing 66'", "'thing x'"), "'thing x' is no class of scannet200_constants.py"),
    (200, edit_text(SPLITS, ", 'thing 0']", "]"), f"{SPLITS}: the class 'thing 0' is in no group; get the file from"),
    (
        200,
        lambda root: [path.unlink() for path in root.rglob(f"*{GROUPS}")],
        f"'scene0000_00' has no scene0000_00{GROUPS} below scans, which the labels of 200 classes are in; get the room",
    ),
]


@run_each("count, plant, message", FAULTS)
def test_faulty_segments_groups_and_tables_are_refused(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    plant: Callable[[Path], object],
    message: str,
) -> None:
    root = tmp_path_factory.mktemp("scannet")
    writers.write_segments(root)
    plant(root)
    assert message in refuse("data", "prepare", NAMES[count], "--from", root, "--to", root / "prepared")


def test_a_mesh_to_predict_is_read_as_the_set_was_prepared(tmp_path: Path) -> None:
    """Its normals are those of its faces; a cloud without faces is refused."""
    writers.write_segments(tmp_path)
    prepare(tmp_path, tmp_path / "set")
    part = open_parts(tmp_path / "set", normals=True)["test"]
    mesh = tmp_path / "scans/scene0011_00/scene0011_00_vh_clean_2.ply"
    found, expected = read_sample(mesh, part.info, draws_meshes=False).fields, part[SampleKey(0, 0, 0)]
    assert list(found) == ["points", "colours", "normals"]
    for name, values in found.items():
        assert np.array_equal(values, expected[name].numpy()), name
    writers.write_ply(mesh, writers.make_mesh(2)[0])
    with pytest.raises(DataError, match=r"_2\.ply: has no faces, from which normals are computed; give the whole mesh"):
        read_sample(mesh, part.info, draws_meshes=False)


def test_a_room_without_groups_is_told(tmp_path: Path) -> None:
    writers.write_segments(tmp_path)
    edit_json(GROUPS, lambda document: document.update(segGroups=[]))(tmp_path)
    notes = prepare(tmp_path, tmp_path / "set")
    assert sum(note.startswith("no vertex has a class (1 file, first: ") for note in notes) == 1
    assert set(open_parts(tmp_path / "set")["train"][SampleKey(0, 0, 0)]["label"].tolist()) == {255}


# --- the parts ---


def test_the_official_validation_part() -> None:
    names = sorted(official_validation())
    assert len(names) == 312
    assert len({name[:9] for name in names}) == 142
    assert hashlib.sha256("\n".join(names).encode()).hexdigest().startswith("c04425d97dcea788")


def test_lists_divide_the_rooms_and_are_compared_with_the_official_part(tmp_path: Path) -> None:
    writers.write_segments(tmp_path)
    (tmp_path / "scannetv2_train.txt").write_text("scene0011_00\n")
    (tmp_path / "scannetv2_val.txt").write_text("scene0000_01\n")
    note, *_ = prepare(tmp_path, tmp_path / "set")
    assert note.startswith("tested are 0 of the 312 scans of the official validation part, and 1 others: figures are")
    parts = open_parts(tmp_path / "set")
    assert [part.sample_name(0) for part in parts.values()] == ["scene0011_00", "scene0000_01"]
    (tmp_path / "scannetv2_val.txt").write_text("scene0011_00\n")
    words = ("data", "prepare", "scannet", "--from", tmp_path, "--to", tmp_path / "other")
    assert f"{tmp_path}/scannetv2_val.txt:1: 'scene0011_00' is listed twice; correct the lists" in refuse(*words)
    (tmp_path / "scannetv2_val.txt").write_text("")
    assert "or scannetv2_val.txt is empty; get rooms of both parts" in refuse(*words)
    (tmp_path / "scannetv2_val.txt").unlink()
    assert "scannetv2_val.txt: cannot be read" in refuse(*words)


# --- labels of a second mesh ---


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    writers.write_labels(tmp_path / "scannet")
    return tmp_path / "scannet"


def test_labels_of_a_second_mesh(labelled: Path, tmp_path: Path) -> None:
    prepare(labelled, tmp_path / "set")
    train, test = open_parts(tmp_path / "set").values()
    assert [len(train), len(test)] == [2, 1]
    assert train.class_names == CLASSES.names
    assert train.sample_name(1) == "scene0000_01"
    for vertex, label in enumerate(train[SampleKey(1, 0, 0)]["label"].tolist()):  # the room's labels begin at 1
        number = (vertex + 1) % 41
        assert label == (CLASSES.numbers.index(number) if number in CLASSES.numbers else 255)
    assert train.info.facts["in_channels"] == 6


def test_labels_beyond_those_of_the_classes_are_without_a_class(labelled: Path, tmp_path: Path) -> None:
    """As the release has them in three rooms, where ScanNet's own evaluation leaves them out."""
    path = labelled / "scans" / "scene0000_01" / "scene0000_01_vh_clean_2.labels.ply"
    head, _, body = path.read_bytes().partition(b"end_header\n")
    rows = np.frombuffer(body, [*writers.VERTEX, ("label", "<u2")]).copy()
    rows["label"][[0, 7]] = 50, 149
    path.write_bytes(head + b"end_header\n" + rows.tobytes())
    said = prepare(labelled, tmp_path / "set")
    assert any("2 of 41 vertices (4.9%) have labels outside of 0 to 40: without a class" in line for line in said)
    label = ScanNet(split="train", root=str(tmp_path / "set"))[SampleKey(1, 0, 0)]["label"]
    assert label[[0, 7]].tolist() == [255, 255]
    assert int((label == 255).sum()) == 41 - 20 + sum(number in CLASSES.numbers for number in (1, 8))
    rows["label"] += 100
    path.write_bytes(head + b"end_header\n" + rows.tobytes())
    assert "with 0 to 40" in refuse("data", "prepare", "scannet", "--from", labelled, "--to", tmp_path / "other")


def test_a_missing_room_and_labels_of_another_mesh_are_refused(labelled: Path, tmp_path: Path) -> None:
    words = ("data", "prepare", "scannet", "--from", labelled, "--to", tmp_path / "prepared")
    labels = labelled / "scans" / "scene0011_00" / "scene0011_00_vh_clean_2.labels.ply"
    whole = labels.read_bytes()
    labels.write_bytes((labelled / "scans" / "scene0000_00" / "scene0000_00_vh_clean_2.labels.ply").read_bytes())
    assert f"{labels}: does not label the vertices of scene0011_00_vh_clean_2.ply" in refuse(*words)
    labels.write_bytes(whole[:-3])
    assert str(labels) in refuse(*words)
    labels.unlink()
    assert f"scannetv2_val.txt:1: 'scene0011_00' has no {labels.name} below scans" in refuse(*words)
    mesh = labelled / "scans" / "scene0000_01" / "scene0000_01_vh_clean_2.ply"
    labels.write_bytes(whole)
    writers.write_ply(mesh, writers.make_mesh(1)[0])
    assert f"{mesh}: has no faces, from which normals are computed; give the whole mesh" in refuse(*words)


# --- rooms that Pointcept converted ---


@run_each("count", [20, 200])
def test_converted_rooms(tmp_path_factory: pytest.TempPathFactory, count: int) -> None:
    root = tmp_path_factory.mktemp("converted")
    writers.write_converted(root)
    notes = prepare(root, root / "prepared", count)
    assert [note.partition(",")[0] for note in notes] == [
        "tested are 1 of the 312 scans of the official validation part",
        "the rooms in test have no labels: left out",
    ]
    parts = open_parts(root / "prepared", count, normals=True)
    for split, folder in (("train", "train/scene0000_01"), ("test", "val/scene0011_00")):
        sample = parts[split][SampleKey(len(parts[split]) - 1, 0, 0)]
        stored = np.load(root / folder / f"segment{count}.npy").ravel()
        assert np.array_equal(sample["label"], np.where(stored < 0, 255, stored))
        coord = np.load(root / folder / "coord.npy")
        assert np.abs(sample["points"].numpy() - (coord - coord.min(0))).max() < 1e-6
        assert np.array_equal(sample["normals"], np.load(root / folder / "normal.npy"))
        assert np.array_equal(np.rint(255 * sample["colours"].numpy()), np.load(root / folder / "color.npy"))


ARRAYS: list[tuple[str, Callable[[np.ndarray], np.ndarray], str]] = [
    ("segment20", lambda array: array + 1, "segment20.npy: label 20 is 20, classes are 0 to 19, -1 is none; convert"),
    ("segment20", lambda array: array - 1, "segment20.npy: label 0 is -2, classes are 0 to 19"),
    ("segment20", lambda array: array[1:], "segment20.npy is int64 (40,), (41,) is needed; convert the room again"),
    ("segment20", lambda array: array.astype(float), "segment20.npy is float64 (41,), (41,) is needed"),
    ("color", lambda array: array[:, :2], "color.npy is uint8 (41, 2), (41, 3) is needed"),
    ("color", lambda array: array + 1000.0, "colour_max is 255"),
    ("coord", lambda array: array.astype(int), "coord.npy is int64 (41, 3), (41, 3) is needed"),
    ("coord", lambda array: np.where(array == array.max(), np.nan, array), "coord.npy: row 26 is [nan, 2.65"),
    ("normal", lambda array: array * 2, "normal.npy: row "),
    ("normal", lambda array: array[0], "normal.npy is float32 (3,), (41, 3) is needed"),
]


@run_each("name, change, message", ARRAYS)
def test_faulty_arrays_are_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    root = tmp_path_factory.mktemp("converted")
    writers.write_converted(root)
    path = root / f"train/scene0000_00/{name}.npy"
    np.save(path, change(np.load(path)))
    assert message in refuse("data", "prepare", "scannet", "--from", root, "--to", root / "prepared")


def test_folders_of_arrays_that_lack_some_are_refused(tmp_path: Path) -> None:
    writers.write_converted(tmp_path)
    words = ("data", "prepare", "scannet", "--from", tmp_path, "--to", tmp_path / "prepared")
    (tmp_path / "train/scene0000_01/normal.npy").unlink()
    assert "train/scene0000_01: only some rooms have a normal.npy; convert all rooms alike" in refuse(*words)
    (tmp_path / "val/scene0011_00/segment20.npy").unlink()
    assert "val/scene0011_00: has no segment20.npy; convert the room again, or leave it out" in refuse(*words)
    shutil.rmtree(tmp_path / "train")
    assert f"{tmp_path / 'train'}: holds no room; folders of rooms in train and in val are needed" in refuse(*words)
    shutil.rmtree(tmp_path / "val")
    assert "which is not the folder scans, or folders train and val of converted rooms" in refuse(*words)
