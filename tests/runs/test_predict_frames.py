"""`sightline predict` on depth files gives the joints that `sightline evaluate` scored, for any camera."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

import sightline
from sightline.areas.pose.refiner import CentreRefinement
from sightline.areas.pose.task import Pose
from sightline.contract.errors import ConfigError
from tests.command import Outcome, refuse, run_here
from tests.runs.poses import NUM_HANDS, hands, train_refiner, write_frames
from tests.trained import copy_run

CAMERA = ("camera.fx=241.42", "camera.fy=-241.42", "camera.u0=160", "camera.v0=120")
ROUNDING_MM = 1e-3
"""Float32 of some hundred mm, and of the maps whose parabola is read."""
Scored = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("pose", tmp_path_factory.mktemp("pose"))


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_refiner(tmp_path_factory.mktemp("refiner") / "run")


@pytest.fixture(scope="module")
def hand_batch() -> dict[str, Tensor]:
    return hands()


@pytest.fixture
def frames(hand_batch: dict[str, Tensor], tmp_path: Path) -> Path:
    write_frames(tmp_path / "frames", hand_batch["depth"])
    return tmp_path / "frames"


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Scored:
    """A function that evaluates a run and gives what its task predicted for every sample."""

    def evaluate(run: Path, *words: object, task: type = Pose, key: str = "joints_mm") -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        assess = task.losses_and_predictions

        def recording(self: Any, model: Any, batch: Any, around: Any) -> Any:
            sums, predictions = assess(self, model, batch, around)
            found.update(zip(batch["sample_index"].tolist(), predictions[key].double().numpy(), strict=True))
            return sums, predictions

        with monkeypatch.context() as patch:
            patch.setattr(task, "losses_and_predictions", recording)
            done = run_here("evaluate", run, *words, "--device", "cpu")
        assert done.code == 0, done.err
        return np.stack([found[index] for index in range(len(found))])

    return evaluate


def told(run: Path, *words: object, expect: int = 0) -> tuple[dict[str, Any], Outcome]:
    out = run.parent / "predicted.json"
    done = run_here("predict", run, *words, "--device", "cpu", "--json", out)
    assert done.code == expect, done.err
    return json.loads(out.read_text()), done


def joints_of(document: dict[str, Any]) -> np.ndarray:
    return np.array([row["joints_mm"] for row in document["predictions"]])


def test_frames_give_the_joints_that_evaluation_scored(run: Path, frames: Path, scored: Scored) -> None:
    document, done = told(run, frames)
    assert np.abs(joints_of(document) - scored(run)).max() < ROUNDING_MM
    assert (document["refused"], len(document["predictions"])) == ([], NUM_HANDS)
    assert document["joint_names"][5] == "middle_mcp"
    assert {row["reference"] for row in document["predictions"]} == {"centre of mass"}
    assert {row["treatment"] for row in document["predictions"]} == {"as it is"}
    assert "about" in done.out


def test_the_table_tells_how_many_joints_were_found(run: Path, frames: Path) -> None:
    """Those with a peak of min_peak or more: an untrained network finds none by the default, all by next to nothing."""
    document, done = told(run, frames)
    peaks = np.array([row["peaks"] for row in document["predictions"]])
    assert peaks.max() < 0.1
    assert done.out.count(f"0 of {peaks.shape[1]}") == len(peaks)
    lowest = np.sort(peaks, axis=1)[:, 5]
    _, done = told(run, frames, f"min_peak={lowest[0]}")
    assert f"{int((peaks[0] >= lowest[0]).sum())} of {peaks.shape[1]}" in done.out


def test_the_reference_point_is_that_of_the_set(run: Path, frames: Path, hand_batch: dict[str, Tensor]) -> None:
    document, _ = told(run, frames, *CAMERA)
    points = np.array([row["reference_mm"] for row in document["predictions"]])
    np.testing.assert_allclose(points, hand_batch["reference"].numpy(), rtol=0, atol=1e-4)


def test_frames_of_the_runs_size_get_its_camera_with_a_note(run: Path, frames: Path) -> None:
    """A camera of the same size may be another one; where its own is given there is nothing to note."""
    facts = json.loads((run / "facts.json").read_text())
    numbers = ", ".join(f"{n} {v:g}" for n, v in zip(("fx", "fy", "u0", "v0"), facts["camera_px"], strict=True))
    line = f"frames of 320 x 240 pixels are taken for those of the run's camera, {numbers};"
    bare, given = (" ".join(told(run, frames, *words)[1].err.split()) for words in ((), CAMERA))
    assert line in bare
    assert "another needs its own camera.fx=" in bare
    assert "camera.fx=" not in given


def test_pixels_are_those_of_the_camera(run: Path, frames: Path) -> None:
    document, _ = told(run, frames)
    for row in document["predictions"]:
        x, y, z = np.array(row["joints_mm"]).T
        expected = np.stack([241.42 * x / z + 160, -241.42 * y / z + 120], axis=1)
        np.testing.assert_allclose(row["joints_px"], expected, rtol=0, atol=1e-9)
        assert row["camera"] == [241.42, -241.42, 160, 120]


def test_kinds_of_files_that_hold_the_same_depths_give_the_same_joints(
    run: Path, hand_batch: dict[str, Tensor], tmp_path: Path
) -> None:
    whole = hand_batch["depth"].round()
    write_frames(tmp_path / "npy", whole)
    for kind in ("png", "msra", "tif", "marked", "metres"):
        (tmp_path / kind).mkdir()
    for number, depth in enumerate(whole.numpy()):
        name = f"{number:03d}"
        Image.fromarray(depth.astype(np.uint16)).save(tmp_path / "png" / f"{name}.png")
        Image.fromarray(depth.astype(np.float32)).save(tmp_path / "tif" / f"{name}.tif")
        np.save(tmp_path / "marked" / f"{name}.npy", np.where(depth > 0, depth, 65535))
        header = struct.pack("<6i", 320, 240, 0, 0, 320, 240)
        (tmp_path / "msra" / f"{name}.bin").write_bytes(header + depth.astype("<f4").tobytes())
        np.save(tmp_path / "metres" / f"{name}.npy", depth.astype(np.float64) / 1000)
    expected = joints_of(told(run, tmp_path / "npy")[0])
    for kind in ("png", "msra", "tif"):
        assert np.array_equal(joints_of(told(run, tmp_path / kind)[0]), expected), kind
    assert np.array_equal(joints_of(told(run, tmp_path / "marked", "camera.no_return=65535")[0]), expected)
    refused, _ = told(run, tmp_path / "marked", expect=2)
    assert refused["refused"][0]["reason"].endswith(
        "a measurement; give no_return=65535 (camera.no_return= when predicting)"
    )
    metres = joints_of(told(run, tmp_path / "metres", "camera.mm_per_unit=1000")[0])
    assert np.abs(metres - expected).max() < ROUNDING_MM


def test_a_camera_whose_y_points_down_has_the_same_joints_turned(
    run: Path, frames: Path, hand_batch: dict[str, Tensor], tmp_path: Path
) -> None:
    """The image is the same, so the run sees the same; only the frame in which it is told is another."""
    up, _ = told(run, frames, *CAMERA)
    down, _ = told(run, frames, CAMERA[0], "camera.fy=241.42", *CAMERA[2:])
    assert np.array_equal(joints_of(down) * [1, -1, 1], joints_of(up))
    for mirrored, straight in zip(down["predictions"], up["predictions"], strict=True):
        np.testing.assert_allclose(mirrored["joints_px"], straight["joints_px"], rtol=0, atol=1e-9)
        assert mirrored["treatment"] == "Y points down, in the run up: turned for the run, and back"
        assert mirrored["reference_mm"][1] == -straight["reference_mm"][1]


def test_a_refiner_moves_the_point_to_where_its_evaluation_does(
    run: Path, refiner: Path, frames: Path, scored: Scored
) -> None:
    expected = scored(refiner, task=CentreRefinement, key="centre_mm")
    document, _ = told(run, frames, f"refiner={refiner}")
    points = np.array([row["reference_mm"] for row in document["predictions"]])
    assert np.abs(points - expected).max() < ROUNDING_MM
    assert {row["reference"] for row in document["predictions"]} == {"centre of mass, refined"}
    down, _ = told(run, frames, f"refiner={refiner}", CAMERA[0], "camera.fy=241.42", *CAMERA[2:])
    np.testing.assert_allclose(
        [row["reference_mm"] for row in down["predictions"]], points * [1, -1, 1], rtol=0, atol=1e-9
    )


def test_table_json_and_csv_hold_the_same_and_a_picture_each(run: Path, frames: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "out.csv", tmp_path / "pictures"
    document, done = told(run, frames, "--csv", table, "--out", out)
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    for row, answer in zip(rows, document["predictions"], strict=True):
        assert row["file"] == answer["file"]
        found = [float(row[f"thumb_tip {axis}_mm"]) for axis in "xyz"]
        assert found == answer["joints_mm"][20]
        assert [float(row["wrist u_px"]), float(row["wrist v_px"])] == answer["joints_px"][0]
        assert float(row["middle_mcp peak"]) == answer["peaks"][5]
        assert [float(row[f"reference {axis}_mm"]) for axis in "xyz"] == answer["reference_mm"]
        assert row["refused"] == ""
        picture = np.asarray(Image.open(answer["written"]["picture"]))
        assert 352 < max(picture.shape) <= 640 + 120, "the window of the cube, enlarged, and the names of 21 joints"
        assert Path(answer["written"]["picture"]).name == f"{Path(answer['file']).stem}.pose.png"
    assert done.out.count("000.") == 1  # a long path may go on in the next line


def test_files_that_cannot_be_predicted_are_refused_by_name(
    run: Path, frames: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(frames / "empty.npy", np.zeros((240, 320)))
    np.save(frames / "large.npy", np.full((480, 640), 400.0))
    np.save(frames / "metres.npy", np.full((240, 320), 0.4))
    (frames / "cut.png").write_bytes(b"\x89PNG")
    (frames / "notes.txt").write_text("")
    (frames / "link.png").symlink_to("nowhere")
    os.mkfifo(frames / "pipe.bin")
    (frames / "signs.npy").write_bytes(b"\x93NUMPY\1\0" + (9001).to_bytes(2, "little") + b"-" * 9000 + b"\n")
    document, _ = told(run, frames, frames.parent / "gone.npy", "reference.near_mm=50", expect=2)
    assert len(document["predictions"]) == NUM_HANDS
    reasons = {Path(row["file"]).stem: row["reason"] for row in document["refused"]}
    assert reasons.keys() == {"empty", "large", "metres", "cut", "gone", "link", "pipe", "signs"}
    assert "has no measured pixel beyond 50 mm, so that there is no figure in it" in reasons["empty"]
    assert (
        "640 x 480 pixels, those of the run's camera are 320 x 240; give this camera's own camera.fx="
        in reasons["large"]
    )
    assert "set mm_per_unit to 1000" in reasons["metres"]
    assert "does not end as PNG files do" in reasons["cut"]
    assert "there is no such file" in reasons["gone"]
    assert "is not a regular file" in reasons["link"]
    assert "is not a regular file" in reasons["pipe"]
    assert "does not fit into memory, or the file is damaged" in reasons["signs"]
    assert all("\n" not in reason for reason in reasons.values())
    assert "1 file of another kind passed over: notes.txt" in caplog.text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("camera.fx=240", "camera.fy=240"),
            "camera.u0=, camera.v0=: is missing, other values of the camera are given",
        ),
        (("camera.fx=0", *CAMERA[1:]), "predict: camera.fx: found 0"),
        ((CAMERA[0], "camera.fy=0", *CAMERA[2:]), "fx must be positive, fy not 0 (negative: Y up)"),
        (
            ("reference.near_mm=500", "reference.far_mm=400"),
            "far_mm: is 400, it must be larger than near_mm, which is 500",
        ),
        (("refiner={run}",), "the task 'pose' predicts no centres; give a run of the task centre"),
        (
            ("category=mug",),
            "found 'category=mug', allowed is key=value with camera.*, reference.*, refiner and min_peak",
        ),
        (("--out", "{frames}/000.npy"), "is a file; give a folder"),
    ],
)
def test_each_mistake_is_one_line(
    run: Path, frames: Path, tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    given = [word.format(run=run, frames=frames) for word in words]
    done = refuse("predict", run, frames, *given, "--device", "cpu")
    (line,) = [line for line in done.splitlines() if "error" in line]
    assert expected in line


def test_a_refiner_alone_is_told_what_it_is_for(run: Path, refiner: Path, frames: Path) -> None:
    done = refuse("predict", refiner, frames)
    assert f"refines reference points; give it as refiner={refiner} to a run of the task pose" in done
    assert "refines reference points; give it as" in refuse("predict", refiner)
    assert "predict: camera.fx: is not an option" in refuse("predict", refiner, "camera.fx=1")
    given = (
        rf"no file is given; .* one frame from each file \(\.png \.tif \.tiff \.npy \.bin\), .*: "
        rf"sightline predict {run} frame\.png"
    )
    assert re.search(given, refuse("predict", run, "--device", "cpu"))
    with pytest.raises(ConfigError, match="predict of the task 'pose' has no option 'to_sphere'; it takes frames"):
        sightline.load_run(run).predict([frames], to_sphere=True)
