"""Folders and lists of a user's own clouds: what is reported of them, what is refused, and where."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from sightline.commands.data import PrepareOptions
from sightline.errors import ConfigError, DataError, UserError
from sightline.verbs.data import prepare as prepare_verb
from tests.data.clouds.cloud_writers import prepare_folder, solid, write_folder, write_ply


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 PLY files in three classes."""
    return write_folder(tmp_path_factory.mktemp("own") / "clouds")


@pytest.fixture(scope="module")
def prepared(clouds: Path) -> Path:
    prepare_folder(clouds, clouds.parent / "prepared")
    return clouds.parent / "prepared"


def test_one_cloud_in_two_classes_is_reported(clouds: Path, tmp_path: Path) -> None:
    shutil.copytree(clouds, tmp_path / "in")
    shutil.copy(tmp_path / "in" / "ball" / "ball_00.ply", tmp_path / "in" / "rod" / "another_name.ply")
    (line,) = prepare_folder(tmp_path / "in", tmp_path / "set")["differences"]
    assert line.startswith("the same cloud in the classes ball, rod: at most one label is right")
    assert "rod/another_name.ply" in line


def test_another_preparation_is_not_taken_for_this_one(clouds: Path, prepared: Path) -> None:
    with pytest.raises(DataError, match="was prepared with num_points = 64, now it is 32; delete it"):
        prepare_folder(clouds, prepared, num_points=32)
    with pytest.raises(DataError, match="was prepared with up_axis = z, now it is y"):
        prepare_folder(clouds, prepared, up_axis="y")


def test_named_columns_are_no_other_preparation(tmp_path: Path) -> None:
    """Neither to a set that is there nor to one that was broken off."""
    write_folder(tmp_path / "in", suffix=".npy")
    columns = ("x", "y", "z")
    first = prepare_folder(tmp_path / "in", tmp_path / "set", columns=columns)
    assert prepare_folder(tmp_path / "in", tmp_path / "set", columns=columns)["outcome"] == "already there"
    last = tmp_path / "in" / "rod" / "rod_09.npy"
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    with pytest.raises(DataError, match="cut short"):
        prepare_folder(tmp_path / "in", tmp_path / "again", columns=columns)
    assert (tmp_path / "again.partial").is_dir()
    last.write_bytes(content)
    assert prepare_folder(tmp_path / "in", tmp_path / "again", columns=columns)["files"] == first["files"]


def test_an_edited_list_is_not_taken_for_the_old_one(clouds: Path, tmp_path: Path) -> None:
    """The label of one file changes, and no size of any file does."""
    rows = [f"{clouds}/{kind}/{kind}_{n:02d}.ply,{kind[:3]}" for kind in ("ball", "rod") for n in range(4)]
    path = tmp_path / "list.csv"
    path.write_text("path,label\n" + "\n".join(rows))
    prepare_folder(path, tmp_path / "set")
    path.write_text("path,label\n" + "\n".join([rows[0].replace(",bal", ",rod"), *rows[1:]]))
    with pytest.raises(DataError, match="was prepared with clouds = "):
        prepare_folder(path, tmp_path / "set")


def test_a_unit_is_asked_for_where_it_matters(clouds: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^normalisation: .*unit=m, cm or mm"):
        prepare_folder(clouds, tmp_path / "set", normalisation="none")


def touch(path: Path, text: str = "1 2 3\n4 5 6\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


FOLDERS: dict[str, tuple[dict[str, str], str]] = {
    "an empty folder": ({}, r"holds nothing; lay it out as CLASS/FILE"),
    "one class": ({f"ball/{n}.txt": "1 2 3\n4 5 6\n" for n in range(4)}, "holds one class, ball, at least two"),
    "an empty class": ({"ball/0.txt": "1 2 3", "rod/readme.md": ""}, "rod: is taken for a class and holds no cloud"),
    "a folder in a class": ({"ball/0.txt": "1 2 3", "rod/raw/0.txt": "1 2 3"}, "rod: .*holds the folder raw"),
    "a stray cloud": ({"ball/0.txt": "1 2 3", "0.txt": "1 2 3"}, "0.txt is not in the folder of a class"),
    "parts among classes": ({"train/a/0.txt": "1 2 3", "ball/0.txt": "1 2 3"}, "the part 'train' and 'ball'"),
    "no part to test": (
        {"train/a/0.txt": "1 2 3", "train/b/0.txt": "1 2 3"},
        "names the parts train, train and test are needed",
    ),
    "a class that is not tested": (
        {"train/a/0.txt": "1 2 3", "train/b/0.txt": "1 2 3", "test/a/0.txt": "1 2 3"},
        "class 'b' has no cloud in the test part",
    ),
    "a class of one cloud": (
        {f"{kind}/{n}.txt": "1 2 3\n4 5 6\n" for kind, count in (("a", 3), ("b", 1)) for n in range(count)},
        "class 'b' has 1 cloud, too few",
    ),
    "a class of two": (
        {f"{kind}/{n}.txt": "1 2 3\n4 5 6\n" for kind, count in (("a", 3), ("b", 2)) for n in range(count)},
        "class 'b' has 2 clouds, too few",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_are_no_set(tmp_path: Path, case: str) -> None:
    files, words = FOLDERS[case]
    (tmp_path / "in").mkdir()
    for name, text in files.items():
        touch(tmp_path / "in" / name, text)
    with pytest.raises(DataError, match=words):
        prepare_folder(tmp_path / "in", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert not (tmp_path / "set.partial").exists()


LISTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", ":1: names the columns ''"),
    "other columns": (b"file,class\na.txt,b\n", ":1: names the columns 'file,class'; path,label"),
    "no text": (b"path,label\na.txt,b\nb.txt,\xff\xfe\n", ":3: is not UTF-8 text"),
    "a missing file": (b"path,label\na.txt,b\nc.txt,b\n", ":3: there is no file c.txt"),
    "a name too long for a disk": (b"path,label\na.txt,b\n" + b"c" * 5000 + b",b\n", ":3: there is no file ccc"),
    "an empty label": (b"path,label\na.txt,b\nb.txt, \n", ":3: 'b.txt, ' is not a row of path,label"),
    "a row too long": (b"path,label\na.txt,b,train\n", ":2: .* is not a row of path,label"),
    "an unknown part": (b"path,label,split\na.txt,b,train\nb.txt,b,tset\n", ":3: 'tset' is not a part"),
    "a file twice": (b"path,label\na.txt,b\n./a.txt,c\n", ":3: a.txt is listed on line 2 already"),
    "a file of another kind": (b"path,label\na.stl,b\n", ":2: a.stl is not a cloud file"),
    "an open quote": (b'path,label\na.txt,b\n"b.txt,b\n', ":3: does not read as CSV"),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_are_no_set(tmp_path: Path, case: str) -> None:
    content, words = LISTS[case]
    for name in ("a.txt", "b.txt", "a.stl"):
        touch(tmp_path / name)
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"list.csv{words}"):
        prepare_folder(tmp_path / "list.csv", tmp_path / "set")


def test_a_broken_cloud_is_named_and_nothing_is_left(clouds: Path, tmp_path: Path) -> None:
    shutil.copytree(clouds, tmp_path / "in")
    broken = tmp_path / "in" / "rod" / "rod_05.ply"
    broken.write_bytes(broken.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"rod_05.ply: byte \d+: 300 x vertex need 7200 bytes, 7193 are left"):
        prepare_folder(tmp_path / "in", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    shutil.copy(clouds / "rod" / "rod_05.ply", broken)
    assert prepare_folder(tmp_path / "in", tmp_path / "set")["outcome"] == "prepared"  # and goes on from there


@pytest.mark.parametrize("place", ["ball_00.ply", "ball_07.ply"])
def test_some_files_with_normals_are_told_before_any_work(clouds: Path, tmp_path: Path, place: str) -> None:
    """Whether the first file is among them or not; and what is said can be pasted, and works at once."""
    shutil.copytree(clouds, tmp_path / "in")
    points = solid("ball", 0)
    names = ("x", "y", "z", "nx", "ny", "nz")
    write_ply(tmp_path / "in" / "ball" / place, dict(zip(names, np.hstack([points, points]).T, strict=True)))
    words = rf"1 files have normals or faces \({place}\), 29 have none \(ball_0.\.ply\); .*'columns=\[x, y, z\]'"
    with pytest.raises(DataError, match=words.replace("1 files have", "1 file has")):
        prepare_folder(tmp_path / "in", tmp_path / "set")
    assert not (tmp_path / "set.partial").exists()
    assert "normals" not in prepare_folder(tmp_path / "in", tmp_path / "set", columns=("x", "y", "z"))["columns"]


def test_files_of_other_kinds_are_told(clouds: Path, tmp_path: Path) -> None:
    shutil.copytree(clouds, tmp_path / "in")
    for name in ("a.e57", "b.e57", "c.e57"):
        touch(tmp_path / "in" / "rod" / name)
    told = prepare_folder(tmp_path / "in", tmp_path / "set")["differences"]
    assert told == ["3 files of other kinds passed over: rod/a.e57, rod/b.e57, rod/c.e57"]


# --- the command line's options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cloud_folder", [], "up_axis: is required and missing: up_axis=VALUE, one of 'x', 'y', 'z'"),
        ("cloud_folder", ["up_axis=up"], "up_axis: found .*'x', 'y', 'z'"),
        ("cloud_folder", ["up_axis=z", "num_ponts=3"], "num_ponts: is not an option; did you mean 'num_points'"),
        ("cloud_folder", ["up_axis=z", "num_points=many"], "num_points: found .*a whole number"),
        ("cloud_folder", ["up_axis=z", "up_axis=y"], "up_axis: is given twice"),
        ("cloud_folder", ["up_axis=z", "columns=[x, 3]"], "columns.1: "),
        ("cloud_folder", ["z"], "is not an option key=value; 'cloud_folder' takes up_axis, num_points"),
        ("modelnet40", ["num_points=3"], "num_points: is not an option; 'modelnet40' takes none"),
    ],
)
def test_options_are_checked_before_any_file_is_read(tmp_path: Path, name: str, options: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        prepare_verb(
            PrepareOptions(dataset=name, options=tuple(options), source=tmp_path / "absent", target=tmp_path / "set")
        )
