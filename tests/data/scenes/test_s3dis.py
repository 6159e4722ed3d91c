"""S3DIS from its raw text: what is read, mended, told and refused, which rooms a part has, and what a kill costs."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.areas.scenes.sets.s3dis import S3dis
from sightline.areas.scenes.sets.s3dis_files import CLASS_NAMES
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.store.loading.batch_reader import BatchReader
from tests.data.preparing import Damage, names_of, prepare_set, refuse
from tests.data.scenes.scene_writers import ROOMS, annotation, write_s3dis

prepare = functools.partial(prepare_set, "s3dis")
WALL = "Area_1/office_1/Annotations/wall_1.txt"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_s3dis(tmp_path / "Stanford3dDataset_v1.2_Aligned_Version")


@pytest.fixture
def root(source: Path, tmp_path: Path) -> Path:
    prepare(source, tmp_path / "s3dis")
    return tmp_path / "s3dis"


def change_line(path: Path, number: int, line: bytes) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines))


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_room_is_what_its_files_say(source: Path, root: Path) -> None:
    rooms = S3dis(split="test", root=str(root), test_area=1)
    assert [rooms.sample_name(i) for i in range(4)] == [
        f"Area_1/{n}" for n in ("hallway_1", "office_1", "office_2", "office_10")
    ]
    sample = rooms[SampleKey(1, 0, 0)]
    lines, labels = [], []
    for file in ("ceiling_1", "chair_1", "floor_1", "wall_1", "wall_2"):
        lines += annotation(f"Area_1office_1{file}", num_points=4 + len(file))
        labels += [CLASS_NAMES.index(file.split("_")[0])] * (4 + len(file))
    table = np.array([[float(token) for token in line.split()] for line in lines])
    expected = (table[:, :3] - table[:, :3].min(0)).astype("f4")
    assert np.array_equal(sample["points"].numpy(), expected)
    assert np.array_equal(sample["colours"].numpy(), (table[:, 3:] / 255).astype("f4"))
    assert sample["label"].tolist() == labels
    manifest_origin = rooms._prepared.row("Area_1", "origin_m", 1)
    assert np.array_equal(manifest_origin, table[:, :3].min(0))


def test_facts_and_fields(root: Path) -> None:
    rooms = S3dis(split="train", root=str(root))
    facts = rooms.info.facts
    assert facts["class_names"] == CLASS_NAMES
    assert (facts["num_classes"], facts["in_channels"], facts["up_axis"]) == (13, 6, "z")
    seen = np.zeros(13, dtype=int)
    for index in range(len(rooms)):
        seen += np.bincount(rooms[SampleKey(index, 0, 0)]["label"], minlength=13)
    assert facts["class_counts"] == tuple(seen.tolist())
    assert S3dis(split="train", root=str(root), colours=False).info.facts["in_channels"] == 3
    nine = S3dis(split="train", root=str(root), normalised_position=True)
    assert nine.info.facts["in_channels"] == 9
    batch = BatchReader(nine)([SampleKey(0, 0, 0), SampleKey(1, 0, 0)])
    assert batch["features"].shape == (int(batch["offsets"][-1]), 6)
    assert torch.equal(batch["features"], torch.cat((batch["colours"], batch["normalised_position"]), 1))
    assert batch["normalised_position"].amin() == 0
    assert batch["normalised_position"].amax() == 1


@pytest.mark.parametrize(("colours", "position"), [(True, False), (False, False), (True, True)])
def test_a_promise_is_what_info_states(root: Path, colours: bool, position: bool) -> None:
    """How far points reach, and what a field is called there, a set that is not there cannot tell."""
    info = S3dis(split="train", root=str(root), colours=colours, normalised_position=position).info
    promised = S3dis.expected_info(colours=colours, normalised_position=position)
    assert {**promised.facts, "class_counts": info.facts["class_counts"]} == info.facts
    assert (promised.features, list(promised.fields)) == (info.features, list(info.fields))
    for name, field in promised.fields.items():
        stated = info.fields[name]
        assert (field.shape, field.dtype, field.collate) == (stated.shape, stated.dtype, stated.collate)


def test_unknown_classes_are_clutter_and_told(source: Path, tmp_path: Path) -> None:
    manifest = prepare(source, tmp_path / "set")
    told = manifest["differences"]
    assert "files of the unknown class 'stairs' count as clutter: 1" in told
    assert "Area_3 has 0 rooms, the release has 23" in told
    rooms = S3dis(split="test", root=str(tmp_path / "set"), test_area=1)
    label = rooms[SampleKey(3, 0, 0)]["label"]
    assert set(label.tolist()) == {CLASS_NAMES.index("floor"), CLASS_NAMES.index("clutter")}
    assert (label == CLASS_NAMES.index("clutter")).sum() == (4 + len("stairs_1")) + (4 + len("clutter_1"))


@pytest.mark.parametrize("area", [1, 2, 5])
def test_the_area_that_is_tested_is_not_trained_on(root: Path, area: int) -> None:
    sets = {split: S3dis(split=split, root=str(root), test_area=area) for split in ("train", "validation", "test")}
    parts = {split: {*names_of(rooms)} for split, rooms in sets.items()}
    assert {name.split("/")[0] for name in parts["test"]} == {f"Area_{area}"}
    assert all(not name.startswith(f"Area_{area}/") for name in parts["train"] | parts["validation"])
    everything = {f"{area}/{room}" for area, rooms in ROOMS.items() for room in rooms}
    assert parts["train"] | parts["validation"] | parts["test"] == everything
    assert not parts["train"] & parts["validation"]
    assert len(parts["validation"]) == 1
    folds = sets["test"].info.folds
    assert folds is not None
    assert (folds.names, folds.tested) == (("Area_1", "Area_2", "Area_5"), (f"Area_{area}",))


def test_repeats_go_through_the_rooms_again(root: Path) -> None:
    once, thrice = S3dis(split="train", root=str(root)), S3dis(split="train", root=str(root), repeats=3)
    assert len(thrice) == 3 * len(once)
    assert thrice.info.split_sizes["train"] == len(thrice)
    assert names_of(thrice) == 3 * names_of(once)
    for index in range(len(once)):
        assert torch.equal(once[SampleKey(index, 0, 0)]["points"], thrice[SampleKey(index + len(once), 0, 0)]["points"])
    assert len(S3dis(split="test", root=str(root), repeats=3)) == 2


def test_without_a_held_out_share_all_rooms_train(root: Path) -> None:
    rooms = S3dis(split="train", root=str(root), validation_share=0.0)
    assert len(rooms) == 6
    assert rooms.info.split_sizes == {"train": 6, "validation": 0, "test": 2}
    with pytest.raises(ConfigError, match=r"no scene in the part 'validation'.*set evaluate.select: test"):
        S3dis(split="validation", root=str(root), validation_share=0.0)


# --- lines with stray bytes -------------------------------------------------------------------------------------------

STRAY = [
    (b"-22.271 6.344 2.702 185\x00187 182", "-22.271 6.344 2.702 185 187 182", [185, 187, 182]),
    (b"22.350 6.692 3.048 185 187 103.0\x100000", "22.350 6.692 3.048 185 187 103.00000", [185, 187, 103]),
    (b"-9.1\x160 1.000 2.000 1 2 3", "-9.10 1.000 2.000 1 2 3", [1, 2, 3]),
    (b"1.0 2.0 3.0 167.\x1000000 2 3", "1.0 2.0 3.0 167.00000 2 3", [167, 2, 3]),
    (b"1.0 2.0 3.0 18\x105 187 182\r", "1.0 2.0 3.0 185 187 182", [185, 187, 182]),
    (b"1.0 2.0 3.0 185\xff187 182", "1.0 2.0 3.0 185 187 182", [185, 187, 182]),
]


@pytest.mark.parametrize(("line", "after", "colour"), STRAY)
def test_stray_bytes_are_mended_and_reported(
    source: Path, tmp_path: Path, line: bytes, after: str, colour: list[int]
) -> None:
    change_line(source / WALL, 3, line)
    manifest = prepare(source, tmp_path / "set")
    before = line.strip(b"\r").decode("latin-1")
    told = f"{WALL}:3: {before!r} read as {after!r} (1 file, first: "
    assert any(note.startswith(told) for note in manifest["differences"])
    rooms = S3dis(split="test", root=str(tmp_path / "set"), test_area=1)
    sample = rooms[SampleKey(1, 0, 0)]
    place = sum(4 + len(name) for name in ("ceiling_1", "chair_1", "floor_1")) + 2
    assert (sample["colours"][place] * 255).round().int().tolist() == colour
    x, y, z = (float(token) for token in after.split()[:3])
    origin = rooms._prepared.row("Area_1", "origin_m", 1)
    assert np.array_equal(sample["points"][place].numpy(), (np.array([x, y, z]) - origin).astype("f4"))


# --- what is refused --------------------------------------------------------------------------------------------------


def second_line(line: bytes) -> Damage:
    def damage(path: Path) -> None:
        first, _, rest = path.read_bytes().split(b"\n", 2)
        path.write_bytes(b"\n".join([first, line, rest]))

    return damage


OTHER = "Area_2/WC_1/Annotations"


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        (WALL, second_line(b"1.0 2.0 3.0 4 5"), "wall_1.txt:2: .*5 columns, 6 are needed"),
        (WALL, second_line(b"1.0 2.0 nan 4 5 6"), "wall_1.txt:2: .*nan is not a finite number"),
        (WALL, second_line(b"1.0 2.0 3.x 4 5 6"), "wall_1.txt:2: .*'3.x' is not a number"),
        (
            WALL,
            second_line(b"1.0 2.0 3.0 4 5 256"),
            "wall_1.txt:2: .*the colour 4 5 256 is not three whole numbers from 0 to 255",
        ),
        (WALL, second_line(b"1.0 2.0 3.0 -1 5 6"), "wall_1.txt:2: .*the colour -1 5 6 is not"),
        (WALL, second_line(b"1.0 2.0 3.0 1.5 5 6"), "wall_1.txt:2: .*the colour 1.5 5 6 is not"),
        (WALL, second_line(b""), "wall_1.txt:2: .*0 columns, 6 are needed"),
        (WALL, second_line(b"1.0 2.0 \x10 4 5\x00"), "wall_1.txt:2: .*has stray bytes and is not 6 numbers"),
        (WALL, lambda path: path.write_bytes(b"\n \n"), "wall_1.txt: holds no points"),
        (
            OTHER,
            lambda path: path.rename(path.with_name("annotation")),
            "WC_1: has no folder Annotations, it holds WC_1.txt, annotation",
        ),
        (OTHER, lambda path: [each.unlink() for each in path.iterdir()], "Annotations: holds no <class>_<number>.txt"),
        ("Area_7/office_1", lambda path: path.mkdir(parents=True), "Area_7: is not one of the areas 1 to 6"),
        ("Area_3", Path.mkdir, "Area_3: holds no room"),
        (WALL, lambda path: path.rename(path.with_name("wall.txt")), "wall.txt: is not named <class>_<num"),
        (".", shutil.rmtree, r"there is no such folder .*; give the folder with Area_1 to Area_6"),
    ],
)
def test_broken_releases_are_refused(source: Path, file: str, damage: Damage, words: str) -> None:
    damage(source / file)
    refuse(prepare, source, words)


def test_a_folder_without_areas_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other" / "office_1").mkdir(parents=True)
    refuse(prepare, tmp_path / "other", "holds no area, it holds office_1")


def test_parts_that_are_none(root: Path) -> None:
    with pytest.raises(DataError, match=r"holds no Area_3, it holds Area_1, Area_2, Area_5; set data.test_area"):
        S3dis(split="train", root=str(root), test_area=3)
    with pytest.raises(DataError, match="has no part 'val'"):
        S3dis(split="val", root=str(root))


def test_what_is_told_of_a_prepared_set(source: Path, root: Path) -> None:
    told = S3dis.describe(root)
    assert told["scenes"] == {"Area_1": 4, "Area_2": 2, "Area_5": 2}
    assert told["points"]["Area_2"] == sum(4 + len(name) for rooms in ROOMS["Area_2"].values() for name in rooms)
    assert told["points_per_class"]["Area_5"]["sofa"] == 4 + len("sofa_1")
    assert (told["unit"], told["up_axis"]) == ("m", "z")
    assert "Armeni" in S3dis.card()["cite"]
