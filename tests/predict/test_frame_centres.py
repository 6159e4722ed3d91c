"""Reference points of frames: where they are looked for, and files of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.api import load_run
from sightline.areas.pose.frame_centres import (
    CentreFinder,
)
from sightline.areas.pose.set_centres import FrameCentres
from sightline.areas.pose.sets.msra_hands import MsraHands
from sightline.areas.pose.sets.references import CentreOfMass
from sightline.contract import registry
from sightline.contract.errors import DataError
from sightline.contract.types import ComponentConfig, Folds, SampleKey
from sightline.runs.lineage import LINEAGE_FILE
from tests.command import Outcome, run_here, succeed
from tests.data.depth.depth_trees import no_progress, write_msra
from tests.runs.small import ROOT

# --- where figures are looked for: near the last answer while there is one, and in words what was done ---------------


CAMERA = np.array([100.0, 100.0, 40.0, 30.0])
FILE = Path("a.npy")
MOVED = np.array([1.0, 2.0, 3.0])
SURE, DEAD = np.ones(4), np.array([0.05, 0.05, 0.9, 0.9])


def blob(*places: tuple[int, int, float]) -> np.ndarray:
    """Squares of nine pixels about columns and rows, at depths."""
    depth = np.zeros((60, 80), dtype=np.float32)
    for u, v, z in places:
        depth[v - 1 : v + 2, u - 1 : u + 2] = z
    return depth


def point(u: float, v: float, z: float) -> np.ndarray:
    return np.array([(u - 40) * z / 100, (v - 30) * z / 100, z])


def finder(settings: CentreOfMass | None = None, **more: Any) -> CentreFinder:
    return CentreFinder(settings or CentreOfMass(), CAMERA, cube_mm=100.0, **more)


def test_the_centre_of_mass_starts_from_the_whole_image() -> None:
    found = finder()(FILE, blob((40, 30, 400.0)))
    np.testing.assert_allclose(found.point_mm, point(40, 30, 400), atol=1e-9)
    assert found.source == "centre of mass"


def test_nothing_in_reach_is_told_in_one_line() -> None:
    with pytest.raises(DataError, match=r"a\.npy: has no measured pixel between 450 and 500 mm, .* reference.far_mm="):
        finder(CentreOfMass(near_mm=450, far_mm=500))(FILE, blob((40, 30, 400.0)))
    with pytest.raises(DataError, match="has no measured pixel, so that there is no figure in it"):
        finder()(FILE, np.zeros((60, 80), dtype=np.float32))


def test_a_figure_is_followed_past_what_lies_elsewhere() -> None:
    """A second thing in view draws the mean of all between the two; from the last answer it is not in reach."""
    centres = finder(tracks_previous=True)
    first = centres(FILE, blob((20, 30, 400.0)))
    assert first.source == "centre of mass (first frame)"
    centres.update(np.stack([first.point_mm] * 4), SURE)
    both = blob((22, 31, 402.0), (70, 30, 400.0))
    followed = centres(FILE, both)
    assert followed.source == "previous frame"
    np.testing.assert_allclose(followed.point_mm, point(22, 31, 402), atol=1e-9)
    alone = finder()(FILE, both).point_mm
    assert np.abs(alone - point(22, 31, 402)).max() > 50


def test_a_frame_between_that_cannot_be_read_loses_nothing() -> None:
    centres = finder(tracks_previous=True)
    centres.update(np.stack([point(20, 30, 400.0)] * 4), SURE)
    with pytest.raises(DataError, match="has no measured pixel"):
        centres(FILE, blob())
    assert centres(FILE, blob((21, 30, 400.0))).source == "previous frame"


@pytest.mark.parametrize(
    ("peaks", "where", "told"),
    [
        (DEAD, (20, 30, 400.0), "previous prediction lost: 2 of 4 peaks below 0.1"),
        (SURE, (70, 30, 400.0), "previous prediction lost: no measured pixel near it"),
    ],
)
def test_a_lost_answer_falls_back_and_says_so(peaks: np.ndarray, where: tuple[int, int, float], told: str) -> None:
    centres = finder(tracks_previous=True)
    centres.update(np.stack([point(20, 30, 400.0)] * 4), peaks)
    found = centres(FILE, blob(where))
    assert found.source == f"centre of mass ({told})"
    np.testing.assert_allclose(found.point_mm, point(*where), atol=1e-9)


def test_a_refiner_is_given_what_the_others_find() -> None:
    centres = finder(tracks_previous=True, refine=lambda path, depth, found: found + MOVED)
    first = centres(FILE, blob((40, 30, 400.0)))
    np.testing.assert_allclose(first.point_mm, point(40, 30, 400) + MOVED, atol=1e-9)
    assert first.source == "centre of mass (first frame), refined"
    centres.update(np.stack([first.point_mm] * 4), SURE)
    assert centres(FILE, blob((40, 30, 400.0))).source == "previous frame, refined"


# --- files of reference points: whose frames they are for, a line for each, and no refiner that saw who i ------------


COUNTS = {"P0/1": 3, "P0/Y": 2, "P1/1": 2, "P2/MP": 1, "P2/TIP": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("msra")
    write_msra(folder / "source" / "cvpr15_MSRAHandGestureDB", COUNTS)
    MsraHands.prepare(source=folder / "source", target=folder / "msra", name="msra_hands", progress=no_progress)
    return folder / "msra"


@pytest.fixture(scope="module")
def config(root: Path) -> Path:
    file = root.parent / "msra.yaml"
    base = ROOT / "configs" / "pose" / "synthetic_hands_scale_net.yaml"
    file.write_text(f"base: {base}\ndata: {{name: msra_hands, root: {root}, subject: 1, validation_share: 0.5}}\n")
    return file


@pytest.fixture(scope="module")
def refiner(config: Path) -> Path:
    """Trained without the second subject."""
    out = config.parent / "refiner"
    words = ("train.epochs=1", "train.batch_size=4", "log.tensorboard=false", "--no-check", "--device", "cpu")
    succeed("train", config, *words, "--out", out)
    return out


def written(refiner: Path, config: Path, *words: object) -> Outcome:
    return run_here("predict", refiner, "--data", config, "--device", "cpu", *words)


def test_a_run_keeps_which_parts_it_tests(refiner: Path) -> None:
    run = load_run(refiner)
    assert run.files.inputs.folds == Folds(("P0", "P1", "P2"), ("P1",))


@pytest.mark.parametrize(("split", "num_lines"), [("test", 2), ("train", 8)])
def test_every_frame_of_the_files_has_its_line(
    refiner: Path, config: Path, root: Path, tmp_path: Path, split: str, num_lines: int
) -> None:
    """Of the training files those of the validation part, too: the set reads the file for both."""
    done = written(refiner, config, f"split={split}", "--out", tmp_path / f"{split}.txt")
    assert done.code == 0, done.err
    lines = (tmp_path / f"{split}.txt").read_text().splitlines()
    assert len(lines) == num_lines
    assert all(len(line.split()) == 3 for line in lines)
    reference = {"name": "file", "path": str(tmp_path / "{split}.txt")}
    arguments = {"root": str(root), "subject": 1, "validation_share": 0.5, "reference": reference}
    found = {}
    for part in ("test",) if split == "test" else ("train", "validation"):
        frames = registry.data.build(ComponentConfig("msra_hands", arguments), facts={"split": part})
        for index, place in enumerate(frames.frame_indices.tolist()):
            found[place] = frames[SampleKey(index, 0, 0)]["reference"].numpy()
    expected = np.array([[float(word) for word in line.split()] for line in lines], dtype=np.float32)
    assert np.array_equal(np.stack([found[place] for place in sorted(found)]), expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("split=validation", "--out", "{out}"), "split=validation: allowed are train, test"),
        ((), "give their file with --out FILE"),
        (("cloud.npy", "--out", "{out}"), "cloud.npy: has no use with --data"),
        (("--columns", "x,y,z", "--out", "{out}"), "--columns: has no use with --data"),
    ],
)
def test_what_the_frames_of_a_set_have_no_use_for_is_refused(
    refiner: Path, config: Path, tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    done = written(refiner, config, *(word.format(out=tmp_path / "c.txt") for word in words))
    assert (done.code, expected in done.err, done.err.count("\n")) == (2, True, 1), done.err


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_refiner_that_saw_the_tested_subject_is_refused(
    refiner: Path, config: Path, tmp_path: Path, split: str
) -> None:
    done = written(refiner, config, "data.subject=0", f"split={split}", "--out", tmp_path / "c.txt")
    assert done.code == 2
    leak = "was trained on P0, on which this config is tested: its centres would leak the test labels"
    assert f"{refiner}: {leak}; give a refiner that was trained without P0" in done.err
    assert not (tmp_path / "c.txt").exists()


def test_so_is_one_that_started_from_other_weights(refiner: Path, config: Path, tmp_path: Path) -> None:
    match = {"matched": 1, "total": 1, "filled": []}
    kept = {"checkpoint": "last", "sha256": "0", "match": match, "modules": None, "lineage": None}
    (refiner / LINEAGE_FILE).write_text(json.dumps({"from": "a.pth", "source": None, **kept}))
    try:
        done = written(refiner, config, "--out", tmp_path / "c.txt")
        assert done.code == 2
        assert f"{refiner}: started from a.pth, which may have been trained on P1, on which this" in done.err
    finally:
        (refiner / LINEAGE_FILE).unlink()


def test_a_run_that_did_not_note_its_parts_is_refused(refiner: Path, config: Path, tmp_path: Path) -> None:
    kept = (refiner / "inputs.json").read_text()
    document = json.loads(kept)
    document["folds"] = None  # of a set that names none
    (refiner / "inputs.json").write_text(json.dumps(document))
    try:
        done = written(refiner, config, "--out", tmp_path / "c.txt")
        assert "does not record on which parts of 'msra_hands' it was trained; train it again" in done.err
    finally:
        (refiner / "inputs.json").write_text(kept)


@pytest.mark.parametrize(
    ("config_name", "expected"),
    [
        ("pose/synthetic_bodies_v2v_small", "was trained with cube_mm = 200.0; data set 'synthetic_bodies' has 2000"),
        ("classify/synthetic_shapes_pointnet", "data set 'synthetic_shapes' has no depth images"),
    ],
)
def test_other_data_are_refused(refiner: Path, tmp_path: Path, config_name: str, expected: str) -> None:
    file = ROOT / "configs" / f"{config_name}.yaml"
    done = written(refiner, file, "--out", tmp_path / "c.txt")
    assert done.code == 2
    assert expected in done.err


def test_lines_are_float32_to_the_last_bit() -> None:
    points = np.array([[1 / 3, -2.0, 350.125], [0, 0, 0], [1e-7, 12345.678, 5]], dtype=np.float32)
    text = FrameCentres(points, np.array([True, False, True]), 0.0, 0.0, ()).to_text()
    lines = text.splitlines()
    assert lines[0] == "0.33333334 -2 350.125"
    assert lines[1] == "invalid"
    assert np.array_equal(np.array([float(word) for word in lines[2].split()], dtype=np.float32), points[2])
    assert text.endswith("\n")
