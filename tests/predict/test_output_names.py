"""What answers for points are called: no two inputs share a name, and no input is written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.errors import UserError
from sightline.predict.predictor import output_names
from sightline.predict.segment import ENDINGS


def named(tmp_path: Path, *files: str) -> list[str]:
    names = output_names([Path(file) for file in files], tmp_path / "out", endings=ENDINGS.values())
    return [str(names[Path(file)].relative_to(tmp_path / "out")) for file in files]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["/a/hall.ply", "/b/room.npy"], ["hall", "room"]),
        (["/a/hall.ply", "/b/hall.npy", "/b/room.npy"], ["a/hall", "b/hall", "room"]),
        (["/a/hall.ply", "/a/hall.npy"], ["hall.ply", "hall.npy"]),
        (["/a/x/hall.ply", "/b/x/hall.ply"], ["a/x/hall", "b/x/hall"]),
        (["/a/x/hall.ply", "/b/x/hall.ply", "/b/x/hall.npy"], ["hall", "hall.ply", "hall.npy"]),
        (["/a/hall.ply", "/a/hall.npy", "/b/hall.ply"], ["hall.ply", "hall.npy", "hall"]),
        (["/hall.ply", "/a/hall.ply"], ["hall", "a/hall"]),
        (["/a/hall.ply", "/a/hall.npy", "/b/hall.ply.txt"], ["a/hall.ply", "hall.npy", "b/hall.ply"]),
        (["/a/../a/hall.ply", "/a/hall.ply"], ["hall", "hall"]),
    ],
)
def test_every_file_has_a_name_of_its_own(tmp_path: Path, files: list[str], expected: list[str]) -> None:
    found = named(tmp_path, *files)
    assert found == expected


def test_names_do_not_depend_on_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named(tmp_path, "a/x.npy", str(tmp_path / "b" / "x.npy")) == ["a/x", "b/x"]


@pytest.mark.parametrize("file", ["a.ply", "a.labels.npy", "link.ply"])
def test_a_file_to_predict_is_never_written_over(tmp_path: Path, file: str) -> None:
    (tmp_path / "a.ply").touch()
    (tmp_path / "a.labels.npy").touch()
    (tmp_path / "link.ply").symlink_to(tmp_path / "a.ply")
    others = [tmp_path / "elsewhere" / "a.txt"] if file == "a.labels.npy" else []
    with pytest.raises(UserError, match="is a file to predict and would be overwritten; give another"):
        output_names([tmp_path / file, *others], tmp_path, endings=ENDINGS.values())


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        output_names([], tmp_path / "out", endings=())
