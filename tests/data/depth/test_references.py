"""Reference points: the truth, the centre of mass against one computed by hand, and files with their counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sightline import registry
from sightline.config import read_config
from sightline.data.depth.references import CentreOfMass, DepthFrame, FrameOrder, ReferencePointFile, TrueJoint
from sightline.errors import ConfigError, DataError
from sightline.geometry.pinhole import project_points
from sightline.types import ComponentConfig

CAMERA = np.array([100.0, -100.0, 16.0, 12.0])


def order_of(num_frames: int = 3, **changes: object) -> FrameOrder:
    given = {"cube_mm": 200.0, "path_placeholders": {"split": "train", "subject": "3"}, **changes}
    return FrameOrder(title="toy train", num_frames=num_frames, camera=CAMERA, centre=1, **given)  # type: ignore[arg-type]


def frame_of(depth: np.ndarray | None = None, **changes: object) -> DepthFrame:
    joints = np.array([[1, 2, 300], [4, 5, 306]], dtype=np.float32)
    image = np.zeros((24, 32), dtype=np.float32) if depth is None else depth
    given = {"depth": image, "joints": joints, "visible": np.ones(2, dtype=bool), **changes}
    return DepthFrame(**given)  # type: ignore[arg-type]


def test_the_kind_has_three_of_them() -> None:
    assert registry.references.names() == ["centre_of_mass", "file", "truth"]
    built = registry.references.build(ComponentConfig("centre_of_mass", {"passes": 2}), facts={"split": "train"})
    assert (built.passes, built.title) == (2, "centre_of_mass")


def test_the_truth_is_the_joint_in_the_middle_and_says_that_it_is_an_oracle() -> None:
    locate = TrueJoint().points_for(order_of())
    assert locate(frame_of(), 0).tolist() == [4, 5, 306]
    assert "oracle" in TrueJoint().title
    with pytest.raises(DataError, match="toy train: frame 2 has no labelled joint 1"):
        locate(frame_of(joints=np.zeros((2, 3), dtype=np.float32)), 2)


def test_the_centre_of_mass_of_two_pixels() -> None:
    """(10, 12) at 200 mm lies at x = -12, (26, 12) at 100 mm at x = 10; y is 0 in row 12."""
    depth = np.zeros((24, 32), dtype=np.float32)
    depth[12, 10], depth[12, 26] = 200, 100
    assert CentreOfMass().points_for(order_of())(frame_of(depth), 0).tolist() == [-1.0, 0.0, 150.0]


def test_what_is_far_off_is_cropped_away() -> None:
    """A hand of 5 x 5 pixels at 400 mm and a wall of 20 behind it at 500 mm: the means walk to the hand.

    By hand: the first mean has z = (25 * 400 + 20 * 500) / 45 = 444.4, and the wall is 55.6 mm away, inside the cube
    of 200 mm, but outside one of 100 mm.
    """
    depth = np.zeros((24, 32), dtype=np.float32)
    depth[10:15, 14:19], depth[20, 6:26] = 400, 500
    found = CentreOfMass().points_for(order_of(cube_mm=100.0))(frame_of(depth), 0)
    assert np.allclose(found, [0.0, 0.0, 400.0])
    one = CentreOfMass(passes=0).points_for(order_of(cube_mm=100.0))(frame_of(depth), 0)
    assert np.isclose(one[2], 20_000 / 45)
    assert CentreOfMass(far_mm=450.0, passes=0).points_for(order_of())(frame_of(depth), 0)[2] == 400
    assert CentreOfMass(near_mm=450.0, passes=0).points_for(order_of())(frame_of(depth), 0)[2] == 500
    region = CentreOfMass(passes=0).points_for(order_of())(frame_of(depth, region_px=(0, 20, 32, 24)), 0)
    assert region[2] == 500


def test_the_centre_of_mass_moves_with_the_scene() -> None:
    """A blob drawn at another place is found there; the image is not changed."""
    draw = np.random.default_rng(0)
    points = draw.normal((30, -20, 350), 15, (400, 3))
    depth = np.zeros((240, 320), dtype=np.float32)
    camera = np.array([241.42, -241.42, 160.0, 120.0])
    u, v, z = project_points(points, camera).T
    depth[v.round().astype(int), u.round().astype(int)] = z
    before = depth.copy()
    found = CentreOfMass().locate(depth, camera, cube_mm=200.0)
    assert found is not None
    assert np.abs(found - points.mean(0)).max() < 4 * 15 / 20  # the mean of 400 draws, and pixels of 1.4 mm
    assert np.array_equal(depth, before)


def test_an_empty_image_has_no_centre_of_mass() -> None:
    with pytest.raises(DataError, match="toy train: frame 7 has no measured pixel"):
        CentreOfMass().points_for(order_of())(frame_of(), 7)
    with pytest.raises(ConfigError, match=r"far_mm: is 100, it must be larger than near_mm, which is 200"):
        CentreOfMass(near_mm=200.0, far_mm=100.0)


# --- files ------------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "center_train_3_refined.txt").write_text(text)
    return str(tmp_path / "center_{split}_{subject}_refined.txt")


def test_a_file_answers_by_place(tmp_path: Path) -> None:
    path = written(tmp_path, "1 2 300\ninvalid 0 0 0\n-4.5 5e0 306.25\n")
    locate = ReferencePointFile(path=path).points_for(order_of())
    assert locate(frame_of(), 2).tolist() == [-4.5, 5.0, 306.25]
    assert locate.is_known is not None
    assert locate.is_known.tolist() == [True, False, True]
    depth = np.zeros((24, 32), dtype=np.float32)
    depth[12, 16] = 250
    assert locate(frame_of(depth), 1).tolist() == [0, 0, 250]


def test_metres_become_millimetres(tmp_path: Path) -> None:
    path = written(tmp_path, "0.1 0.2 2.5\n" * 3)
    assert np.allclose(ReferencePointFile(path=path, unit="m").points_for(order_of())(frame_of(), 0), [100, 200, 2500])
    with pytest.raises(DataError, match=r"z reaches 2\.5 mm; the file is in metres: set unit: m"):
        ReferencePointFile(path=path).points_for(order_of())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 2 300\n" * 2, "has 2 lines, toy train has 3 frames: 1 too few"),
        ("1 2 300\n" * 5, r"has 5 lines, toy train has 3 frames: 2 too many; .* \(an old copy\)"),
        ("1 2 300\n1 2\n1 2 300\n", ":2: '1 2' is neither three numbers nor 'invalid'"),
        ("1 2 300\n1 2 nan\n1 2 300\n", ":2: '1 2 nan' is neither"),
        ("1 2 300\n\n1 2 300\n", ":2: '' is neither"),
        ("1 2 300\n1 2 -300\n1 2 300\n", ":2: z is -300 mm, behind the camera"),
    ],
)
def test_wrong_files_are_named_with_their_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as error:
        ReferencePointFile(path=written(tmp_path, text)).points_for(order_of(if_counts_differ="an old copy"))
    assert "center_train_3_refined.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_words_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"path: .*\{fold\}.* these are \{split\}, \{subject\}"):
        ReferencePointFile(path="centres_{fold}.txt").points_for(order_of())
    with pytest.raises(DataError, match="cannot be read"):
        ReferencePointFile(path=str(tmp_path)).points_for(order_of())


@pytest.mark.parametrize("name", ["hands2017", "icvl", "itop", "msra", "nyu"])
def test_the_missing_file_of_a_shipped_recipe_names_the_ways_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(Path(__file__).parents[3] / "configs" / "pose" / f"{name}_v2v.yaml")
    block = config.data.arguments["reference"]
    path = block.arguments["path"].format(split="train", subject="3")
    with pytest.raises(DataError) as error:
        registry.references.build(block, facts={}).points_for(order_of())
    assert str(error.value).startswith(f"{path}: the file of the reference points of toy train is missing; ")
    for way in ("data.reference.path", "data.reference.name=centre_of_mass", "predict RUN --data CONFIG split=train"):
        assert way in str(error.value)
    assert str(error.value).endswith(f"split=train --out {path}")


def test_a_start_takes_the_place_of_the_first_mean() -> None:
    """Two squares 400 mm apart: from a start the near one alone is found; without passes it is the start itself."""
    depth = np.zeros((40, 100), dtype=np.float32)
    depth[18:21, 10:13], depth[18:21, 90:93] = 500, 500
    camera = np.array([100.0, 100.0, 50.0, 20.0])
    near = np.array([-170.0, 10.0, 510.0])
    found = CentreOfMass().locate(depth, camera, cube_mm=100.0, start=near)
    np.testing.assert_allclose(found, [(11 - 50) * 5.0, (19 - 20) * 5.0, 500.0], atol=1e-9)
    assert np.array_equal(CentreOfMass(passes=0).locate(depth, camera, cube_mm=100.0, start=near), near)
    assert CentreOfMass().locate(depth, camera, cube_mm=100.0, start=np.array([0.0, 0.0, 500.0])) is None
