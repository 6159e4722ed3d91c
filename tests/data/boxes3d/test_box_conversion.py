"""`data convert` among the forms of 3D boxes: every pair keeps the boxes, and what a form cannot hold is counted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.boxes3d.sets.boxes3d_folder import Boxes3dFolder, read_folder
from sightline.contract.errors import DataError, UserError
from sightline.store.boxes3d.box_table import wrap_yaw
from sightline.store.boxes3d.label_formats import WRITTEN
from tests.command import succeed
from tests.data.boxes3d.box_writers import format_txt, make_boxes, make_names, write_streets

COLUMNS = ("x", "y", "z", "intensity")


def convert(source: Path, form: str, target: Path, **options: Any) -> dict[str, Any]:
    return Boxes3dFolder.convert_labels(
        source, form, target, progress=lambda *_: None, **{"columns": COLUMNS, **options}
    )


def read_boxes(folder: Path) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Boxes and classes of every frame, as the set reads them."""
    planned = read_folder(folder, columns=COLUMNS).planned
    return {
        name: (table.boxes, [planned.class_names[label] for label in table.label])
        for name, table in planned.tables.items()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames, of which the last has no boxes, with a class of two words."""
    root = tmp_path_factory.mktemp("own") / "own"
    write_streets(root, 3)
    names = [name.replace("Cyclist", "traffic cone") for name in make_names()]
    for frame in range(2):
        (root / f"labels/{frame:04d}.txt").write_text(format_txt(make_boxes(frame), names))
    (root / "labels/0002.txt").write_text("")
    return root


@pytest.mark.parametrize("form", WRITTEN)
def test_every_form_keeps_the_boxes_and_leads_back(source: Path, tmp_path: Path, form: str) -> None:
    report = convert(source, form, tmp_path / "new")
    assert (report["boxes"], report["frames"]) == (18, {"all": 3})
    convert(tmp_path / "new", "txt", tmp_path / "back")
    expected = read_boxes(source)
    for folder in (tmp_path / "new", tmp_path / "back"):
        found = read_boxes(folder)
        assert list(found) == ["0000", "0001", "0002"]
        for name, (boxes, classes) in found.items():
            difference = boxes - expected[name][0]
            difference[:, 6] = wrap_yaw(difference[:, 6])
            assert np.abs(difference).max(initial=0.0) < 2e-6
            is_joined = WRITTEN[form].joins_blanks or folder.name == "back"
            assert classes == [each.replace(" ", "_") if is_joined else each for each in expected[name][1]]


def test_the_half_turn_between_labelcloud_and_kitti_is_told(source: Path, tmp_path: Path) -> None:
    convert(source, "labelcloud_kitti", tmp_path / "new")
    told = Boxes3dFolder.survey(tmp_path / "new", columns=COLUMNS)["differences"]
    assert any("state form=kitti if another tool wrote them" in line for line in told)
    yaw = []
    for form in ("labelcloud_kitti", "kitti"):
        read = read_folder(tmp_path / "new", columns=COLUMNS, form=form).planned
        assert not any("half a turn from KITTI's" in note for note in read.notes)
        yaw.append(read.tables["0000"].boxes[:, 6])
    assert np.abs(np.abs(wrap_yaw(yaw[0] - yaw[1])) - np.pi).max() < 1e-9


def test_losses_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "own"
    write_streets(root, 2)
    for frame in range(2):
        rows = format_txt(make_boxes(frame), make_names()).replace(" ", ",").splitlines()
        text = "".join(f"{row},0.5,{frame}{number}\n" for number, row in enumerate(rows))
        (root / f"labels/{frame:04d}.txt").write_text(f"x,y,z,dx,dy,dz,yaw,class,score,track\n{text}")
    lost = convert(root, "labelcloud_absolute", tmp_path / "a")["lost"]
    assert lost == {"scores: labelcloud_absolute has none": 18, _TRACKS.format("labelcloud_absolute"): 18}
    assert convert(root, "sustechpoints", tmp_path / "b")["lost"] == {"scores: sustechpoints has none": 18}
    assert convert(root, "txt", tmp_path / "c")["lost"] == {_TRACKS.format("txt"): 18}
    kitti = convert(root, "kitti", tmp_path / "d")["lost"]
    assert kitti == {
        "boxes in the image, which KITTI's rows state: 0 0 50 50 is written": 18,
        _TRACKS.format("kitti"): 18,
    }
    # a score is kept by the rows of text, and by KITTI's
    assert "score" in (tmp_path / "c/labels/0000.txt").read_text().splitlines()[0]
    assert (tmp_path / "d/label_2/0000.txt").read_text().splitlines()[0].split()[15] == "0.5"


_TRACKS = "numbers of objects over frames: {} has none"


def test_splits_go_along_and_clouds_are_linked(tmp_path: Path) -> None:
    root = tmp_path / "own"
    write_streets(root, 4)
    (root / "ImageSets").mkdir()
    (root / "ImageSets/train.txt").write_text("0000\n0001\n0002\n")
    (root / "ImageSets/val.txt").write_text("0003\n")
    assert convert(root, "kitti", tmp_path / "new")["frames"] == {"test": 1, "train": 3}
    assert Boxes3dFolder.survey(tmp_path / "new", columns=COLUMNS)["samples"] == {"train": 3, "test": 1}
    cloud = tmp_path / "new/velodyne/0003.npy"
    assert (cloud.is_symlink(), cloud.resolve()) == (True, (root / "points/0003.npy").resolve())


def test_targets_that_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").touch()
    for form, target, message in (
        ("txt", tmp_path / "full", "is there and not empty"),
        ("txt", source / "new", "whose clouds are read"),
        ("coco", tmp_path / "new", "is no form of 3D boxes that is written"),
    ):
        with pytest.raises(UserError, match=message):
            convert(source, form, target)
    (tmp_path / "bad").mkdir()
    write_streets(tmp_path / "bad/own", 1)
    (tmp_path / "bad/own/labels/0000.txt").write_text("1 2 3 0 1 1 0 Car\n")
    with pytest.raises(DataError, match=r"0000.txt:1: its sizes are 0, 1, 1 m"):
        convert(tmp_path / "bad/own", "kitti", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_command_prints_what_is_lost(source: Path, tmp_path: Path) -> None:
    words = ["data", "convert", "boxes3d_folder", "--from", str(source), "--as", "kitti", "--to", str(tmp_path / "new")]
    done = succeed(*words, "columns=[x, y, z, intensity]")
    assert "18 boxes in the image, which KITTI's rows state: 0 0 50 50 is written" in done.err
    assert "6 blanks in names of classes: kitti has _" in done.err


def test_what_no_cloud_tells_is_not_assumed(source: Path, tmp_path: Path) -> None:
    """Raw files whose columns nobody names hold no points to count; a stated reading needs none."""
    with pytest.raises(DataError, match="column"):
        convert(source, "kitti", tmp_path / "new", columns=None)
    assert not (tmp_path / "new").exists()


def test_angles_of_observation_are_within_half_a_turn(source: Path, tmp_path: Path) -> None:
    convert(source, "kitti", tmp_path / "new")
    rows = [line.split() for path in (tmp_path / "new").rglob("*.txt") for line in path.read_text().splitlines()]
    alphas = np.array([float(words[3]) for words in rows if len(words) >= 15])
    assert len(alphas) > 5
    assert np.abs(alphas).max() <= np.pi


def test_a_cut_cloud_is_said(source: Path, tmp_path: Path) -> None:
    """Its labels are converted; that nothing was counted in it stands in the report, with the file."""
    own = tmp_path / "own"
    shutil.copytree(source, own)
    cloud = next(path for path in sorted(own.rglob("0000.*")) if path.suffix != ".txt")
    cloud.write_bytes(cloud.read_bytes()[:-5])
    report = convert(own, "txt", tmp_path / "new")
    [said] = [line for line in report["differences"] if "cannot be used" in line]
    assert said.startswith(f"1 of 2 clouds that were read cannot be used: {cloud}")
    assert report["boxes"] == 18
