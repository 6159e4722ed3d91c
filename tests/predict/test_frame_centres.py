"""Files of reference points that a refiner writes for the frames of a data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sightline.api import load_run
from sightline.areas.pose.centres import FrameCentres
from sightline.areas.pose.sets.hand_sets import MsraHands
from sightline.contract import registry
from sightline.contract.types import ComponentConfig, Folds, SampleKey
from sightline.runs.lineage import LINEAGE_FILE
from tests.command import Outcome, run_here, succeed
from tests.data.depth.depth_trees import no_progress, write_msra
from tests.runs.small import ROOT

# --- files of reference points: whose frames they are for, and no refiner that saw them in training -------------------


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


@pytest.fixture
def copied_refiner(refiner: Path, tmp_path: Path) -> Path:
    """A copy of the refiner, to be changed."""
    return shutil.copytree(refiner, tmp_path / "copied", symlinks=True)


def test_so_is_one_that_started_from_other_weights(copied_refiner: Path, config: Path, tmp_path: Path) -> None:
    match = {"matched": 1, "total": 1, "filled": []}
    kept = {"checkpoint": "last", "sha256": "0", "match": match, "modules": None, "lineage": None}
    (copied_refiner / LINEAGE_FILE).write_text(json.dumps({"from": "a.pth", "source": None, **kept}))
    done = written(copied_refiner, config, "--out", tmp_path / "c.txt")
    assert done.code == 2
    assert f"{copied_refiner}: started from a.pth, which may have been trained on P1, on which this" in done.err


def test_a_run_that_did_not_note_its_parts_is_refused(copied_refiner: Path, config: Path, tmp_path: Path) -> None:
    document = json.loads((copied_refiner / "inputs.json").read_text())
    document["folds"] = None  # of a set that names none
    (copied_refiner / "inputs.json").write_text(json.dumps(document))
    done = written(copied_refiner, config, "--out", tmp_path / "c.txt")
    assert "does not record on which parts of 'msra_hands' it was trained; train it again" in done.err


def test_other_data_are_refused(copied_refiner: Path, tmp_path: Path) -> None:
    file = ROOT / "configs" / "classify" / "synthetic_shapes_pointnet.yaml"
    done = written(copied_refiner, file, "--out", tmp_path / "c.txt")
    assert (done.code, "data set 'synthetic_shapes' has no depth images" in done.err) == (2, True)
    facts = json.loads((copied_refiner / "facts.json").read_text())
    (copied_refiner / "facts.json").write_text(json.dumps({**facts, "cube_mm": 2000.0}))
    done = written(copied_refiner, ROOT / "configs" / "pose" / "synthetic_hands_v2v.yaml", "--out", tmp_path / "c.txt")
    assert "was trained with cube_mm = 2000.0; data set 'synthetic_hands' has 200" in done.err


def test_lines_are_float32_to_the_last_bit() -> None:
    points = np.array([[1 / 3, -2.0, 350.125], [0, 0, 0], [1e-7, 12345.678, 5]], dtype=np.float32)
    text = FrameCentres(points, np.array([True, False, True])).to_text()
    lines = text.splitlines()
    assert lines[0] == "0.33333334 -2 350.125"
    assert lines[1] == "invalid"
    assert np.array_equal(np.array([float(word) for word in lines[2].split()], dtype=np.float32), points[2])
    assert text.endswith("\n")
