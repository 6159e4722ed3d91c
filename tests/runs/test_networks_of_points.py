"""Whole runs of networks on sparse voxels, or points and pixels: evaluated, predicted, in tiles, served, resumed."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

import sightline
from sightline.contract.types import SampleKey
from sightline.engine.distributed import World
from sightline.engine.run_loading import open_run
from sightline.workbench.predict.segment import SegmentPrediction
from sightline.workbench.serve.app import Limits, open_app
from tests.command import document_of, refuse, succeed
from tests.limits import HANG_S
from tests.marks import long_but
from tests.processes import ROOT
from tests.recipes import SMALLER
from tests.runs.broken_off import differences
from tests.runs.test_predict_points import columns_of, write
from tests.trained import break_off

NETWORKS = ("synthetic_lidar_frnet", "synthetic_lidar_minkunet", "synthetic_rooms_ptv3", "synthetic_rooms_spunet")
ON_VOXELS = NETWORKS[1:]
DAILY = ("synthetic_lidar_frnet", "synthetic_rooms_ptv3")
SMALL = (
    *("data.train_size=8", "data.test_size=2", "train.batch_size=4", "train.epochs=2", "train.precision=float32"),
    *("evaluate.every=2", "checkpoint.every=1", "checkpoint.keep_last=2", "log.tensorboard=false"),
)


class Trained(NamedTuple):
    """A small run on scans or rooms, and a scene of its test part as a file, with the classes of its points."""

    run: Path
    file: Path
    truth: np.ndarray

    def predict(self, **options: object) -> SegmentPrediction:
        predictions = sightline.load_run(self.run).predict([self.file], probabilities="float32", **options)
        assert predictions.refused == ()
        (prediction,) = predictions.predicted
        assert isinstance(prediction, SegmentPrediction)
        return prediction


def words_of(network: str) -> tuple[object, ...]:
    config = f"segment/{network}"
    return ("train", ROOT / f"configs/{config}.yaml", *SMALL, *SMALLER[config], "--no-check", "--device", "cpu")


@pytest.fixture(scope="module")
def make_trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    @functools.cache
    def make(network: str) -> Trained:
        folder = tmp_path_factory.mktemp(network)
        succeed(*words_of(network), "--out", folder / "run")
        run = sightline.load_run(folder / "run")
        sample = open_run(run.files, config=run.config).data.test.dataset[SampleKey(0, 0, 0)]
        if "lidar" in network:
            file = folder / "000000.bin"
            columns = [sample["points"], sample["remission"], sample["ring"][:, None].float()]
            file.write_bytes(torch.cat(columns, dim=1).numpy().tobytes())
        else:
            file = folder / "room.ply"
            write(file, columns_of(sample))
        return Trained(folder / "run", file, sample["label"].numpy())

    return make


@pytest.mark.parametrize("network", long_but(DAILY, NETWORKS))
def test_a_file_gets_the_labels_that_evaluation_scored_each_time(
    network: str, make_trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    trained = make_trained(network)
    evaluated = [document_of("evaluate", trained.run, "--device", "cpu", "--save-predictions", "--out", tmp_path / name)
                 for name in ("one", "two")]  # fmt: skip
    kept = [sorted((tmp_path / name).rglob("*.npy")) for name in ("one", "two")]
    assert evaluated[0]["confusion"] == evaluated[1]["confusion"]
    assert all(np.array_equal(np.load(one), np.load(two)) for one, two in zip(*kept, strict=True))
    prediction = trained.predict()
    assert len(prediction.labels) == len(trained.truth)
    assert any(np.array_equal(np.load(file), prediction.labels) for file in kept[0])


@pytest.mark.parametrize("network", long_but(DAILY, ON_VOXELS))
def test_tiles_label_every_point_once(network: str, make_trained: Callable[[str], Trained]) -> None:
    """With a halo beyond the scene they are the whole, bit for bit; with a narrow one, every point has a label."""
    trained = make_trained(network)
    whole, wide, narrow = (
        trained.predict(tiles=tiles)
        for tiles in (None, {"size_m": 2.5, "halo_m": 300.0}, {"size_m": 2.5, "halo_m": 0.5})
    )
    assert np.array_equal(wide.probabilities, whole.probabilities)
    assert narrow.labels.shape == whole.labels.shape == trained.truth.shape
    assert np.isfinite(narrow.probabilities).all()
    plan = np.asarray(narrow.points)[:, :2].astype(np.float64)
    number = len(np.unique(np.floor((plan - plan.min(axis=0)) / 2.5), axis=0))
    assert narrow.treatment.endswith(f"predicted in {number} tiles of 2.5 m, with 0.5 m around each")
    assert "tile" not in whole.treatment
    assert not np.array_equal(narrow.probabilities, whole.probabilities)


@pytest.mark.parametrize("network", long_but(DAILY, NETWORKS))
def test_the_server_answers_as_predict_does(network: str, make_trained: Callable[[str], Trained]) -> None:
    trained = make_trained(network)
    with (
        open_app(sightline.load_run(trained.run), World(), limits=Limits(max_seconds=HANG_S)) as app,
        TestClient(app) as client,
    ):
        answer = client.post("/predict", files={"file": (trained.file.name, trained.file.read_bytes())})
    assert answer.status_code == 200, answer.text
    assert answer.json()["labels"] == trained.predict().labels.tolist()


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("synthetic_lidar_frnet", "a network on points and pixels cannot be in a file: how many points a pixel"),
        ("synthetic_rooms_ptv3", "a network on sparse voxels cannot be in a file: how many voxels there are"),
    ],
)
def test_no_file_of_onnx_is_begun(
    network: str, said: str, make_trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    error = refuse("export", make_trained(network).run, "--out", tmp_path / "net.onnx")
    assert said in error
    assert list(tmp_path.iterdir()) == []


def test_a_network_on_pixels_takes_no_tiles(make_trained: Callable[[str], Trained]) -> None:
    trained = make_trained("synthetic_lidar_frnet")
    error = refuse("predict", trained.run, trained.file, "tiles={size_m: 5, halo_m: 5}", "--device", "cpu")
    assert "tiles divide clouds, not images of scans" in error


@pytest.mark.parametrize("network", long_but(DAILY, NETWORKS))
def test_a_run_that_was_broken_off_goes_on_to_the_same_bits(
    network: str, make_trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    """Curves are shuffled and scans mixed by draws that a resumed run makes anew."""
    whole, resumed = make_trained(network).run, tmp_path / "run"
    shutil.copytree(whole, resumed, symlinks=True)
    break_off(resumed)
    succeed(*words_of(network), "--out", resumed, "--resume", "auto")
    assert differences(resumed, whole) == []
