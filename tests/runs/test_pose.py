"""Whole runs of the task pose: trained, evaluated again, averaged over checkpoints and over passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sightline.api import load_run
from sightline.areas.pose.task import decode_joints
from sightline.config import read_config
from sightline.contract.types import SampleKey
from sightline.engine.run_data import build_data
from sightline.ops.voxels.cubes import CubePlacement
from sightline.store.files.image_files import read_image
from sightline.view.skeletons import READ, TRUE
from tests.command import document_of, refuse, succeed
from tests.doctor.posing import CONFIG
from tests.trained import trained_run

SHORT = ("train.epochs=3", "checkpoint.keep_last=3", "log.tensorboard=false")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pose")
    config = folder / "pose.yaml"
    config.write_text(CONFIG.replace("size: 44", "size: 16"))
    succeed("train", config, *SHORT, "--no-check", "--out", folder / "run")
    return folder / "run"


def metrics_of(*words: object) -> dict[str, float]:
    return dict(document_of("evaluate", *words)["metrics"])


def test_evaluate_repeats_the_final_figures(run: Path) -> None:
    final = json.loads((run / "final.json").read_text())["metrics"]
    assert metrics_of(run) == final
    assert set(final) >= {"mean_error_mm", "median_error_mm", "max_error_mm", "frames_within"}


def test_pictures_of_an_evaluation_have_both_poses_and_the_error_of_their_frame(run: Path) -> None:
    captions = json.loads((run / "predictions" / "captions.json").read_text())
    assert list(captions) == [f"joints_{number}.png" for number in range(4)]
    data, loaded = build_data(read_config(run / "config.yaml")), load_run(run, checkpoint="last")
    batch = data.test.reader([SampleKey(index, 0, 0) for index in range(4)])
    with torch.no_grad():
        likelihood = loaded.model.eval()(volume=batch["volume"])["likelihood"]
    joints = decode_joints(likelihood, CubePlacement.from_rows(batch["placement"].float()), decoding="parabola")
    errors_mm = (joints - batch["joints"]).norm(dim=-1).mean(dim=1).tolist()
    for error_mm, (name, caption) in zip(errors_mm, captions.items(), strict=True):
        assert float(caption.partition(" mm off on average; ")[0]) == pytest.approx(error_mm, rel=1e-3, abs=0.05)
        pixels = read_image(run / "predictions" / name)
        assert all((pixels == color).all(axis=2).any() for color in (TRUE, READ))


def test_an_ensemble_is_the_mean_of_the_joints_of_all_checkpoints(run: Path) -> None:
    figures = metrics_of(run, "--ensemble")
    assert figures["mean_error_mm"] == json.loads((run / "final.json").read_text())["metrics"]["mean_error_mm"]
    data = build_data(read_config(run / "config.yaml"))
    batch = data.test.reader([SampleKey(index, 0, 0) for index in range(len(data.test.indices))])
    found = []
    for checkpoint in sorted((run / "checkpoints").glob("step_*")):
        loaded = load_run(run, checkpoint=checkpoint)
        with torch.no_grad():
            likelihood = loaded.model.eval()(volume=batch["volume"])["likelihood"]
        found.append(
            decode_joints(likelihood, CubePlacement.from_rows(batch["placement"].float()), decoding="parabola")
        )
    assert len(found) == 3
    error = (torch.stack(found).mean(dim=0) - batch["joints"]).norm(dim=-1).mean()
    # Batches of another size round convolutions otherwise, and a joint on a ridge may move by a part of a cell.
    assert figures["mean_error_mm_ensemble3"] == pytest.approx(error.item(), rel=1e-3)


def test_votes_vary_the_cube_and_average_what_comes_back(run: Path) -> None:
    """Passes that vary nothing give the very figure of one; other passes another, brought back into the same frame."""
    same = "transforms.vote=[{name: place_cube, size: 16}, {name: voxelize}]"
    figures = metrics_of(run, "evaluate.votes=2", same)
    assert figures["mean_error_mm_vote2"] == pytest.approx(figures["mean_error_mm"], rel=1e-6)
    varied = "transforms.vote=[{name: place_cube, size: 16, max_angle_rad: 0.3, max_shift: 1.0}, {name: voxelize}]"
    other = metrics_of(run, "evaluate.votes=3", varied)
    assert other["mean_error_mm_vote3"] != other["mean_error_mm"]
    assert other["mean_error_mm_vote3"] < 3 * other["mean_error_mm"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("evaluate.votes=2", "transforms.vote=[{name: voxelize}]"), "give only one of them"),
        (("--checkpoint", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_averaged_is_said_in_one_line(run: Path, words: tuple[str, ...], told: str) -> None:
    outcome = refuse("evaluate", run, "--ensemble", *words)
    assert told in outcome
    assert "Traceback" not in outcome


def test_one_checkpoint_is_no_ensemble() -> None:
    assert "has only one checkpoint" in refuse("evaluate", trained_run("pose"), "--ensemble")
