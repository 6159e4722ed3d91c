"""Labels of points: which answer belongs to which point of a file, and names of output files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from sightline.contract.errors import UserError
from sightline.workbench.predict.file_samples import PointOrigin
from sightline.workbench.predict.predictor import output_names
from sightline.workbench.predict.segment import ENDINGS, nearest_predicted_row

# --- which answer stands for which point of a file -------------------------------------------------------------------


LINE = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3.5, 0, 0], [4, 0, 0]])


@pytest.mark.parametrize(
    ("points", "rows", "numbers", "expected"),
    [
        (LINE, [4, 0, 2], [2, 0], [0, 0, 0, 1, 1]),
        (np.zeros((4, 3)), [0, 1, 2, 3], [3, 1], [0, 1, 0, 0]),
        (LINE[:3], [0, 1, 2], [1, 0, 1, 2, 0], [1, 0, 3]),
    ],
    ids=["others take the nearest", "at one place each has its own", "of several the first"],
)
def test_each_point_has_its_own_answer_or_the_nearest(
    points: np.ndarray, rows: list[int], numbers: list[int], expected: list[int]
) -> None:
    """Worked by hand."""
    origin = PointOrigin(points, points[rows], np.array(rows))
    assert nearest_predicted_row(origin, np.array(numbers)).tolist() == expected


@pytest.mark.parametrize("offset", [0.0, 5e6])
def test_the_nearest_is_that_of_scipy_however_far_from_the_origin(offset: float) -> None:
    draw = np.random.default_rng(1)
    points = draw.standard_normal((2000, 3)) + offset
    rows = draw.permutation(2000)[:300]
    numbers = draw.permutation(300)[:100]
    answered = nearest_predicted_row(PointOrigin(points, points[rows], rows), numbers)
    distances = np.linalg.norm(points - points[rows[numbers]][answered], axis=1)
    assert np.array_equal(distances, cKDTree(points[rows[numbers]]).query(points)[0])
    assert answered[rows[numbers]].tolist() == list(range(100))


def test_corners_of_a_mesh_take_the_nearest_point_that_was_drawn() -> None:
    draw = np.random.default_rng(2)
    corners, drawn = draw.standard_normal((50, 3)), draw.standard_normal((400, 3))
    answered = nearest_predicted_row(PointOrigin(corners, drawn, None), np.arange(400)[::-1])
    assert answered.tolist() == (399 - cKDTree(drawn).query(corners)[1]).tolist()


# --- what answers for points are called: no two inputs share a name, and no input is written over --------------------


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
