"""LiDAR scans over HTTP, from a file of ONNX alone: the run's label at every point, and one line for a bad scan."""

from __future__ import annotations

import functools
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from starlette.testclient import TestClient

import sightline
from sightline.contract.types import SampleKey
from sightline.engine.distributed import World
from sightline.engine.run_loading import open_run
from sightline.workbench.predict.segment import SegmentPrediction
from sightline.workbench.serve.app import Limits, open_app
from tests.command import succeed
from tests.limits import HANG_S
from tests.marks import long_but
from tests.processes import ROOT, free_port
from tests.trained import LIDAR

pytestmark = pytest.mark.usefixtures("torchlib_once")
COLUMNS = ("x", "y", "z", "remission", "ring")
NETWORKS = {
    "deeplabv3": ("model.width=2", "train.steps=20"),
    "rangenet21": ("model.width=2", "train.steps=20"),
    "salsanext": ("model.width=4", "train.epochs=40", "optimizer.lr=1e-2"),
    "squeezeseg": ("train.steps=20",),
}
"""Configs `synthetic_lidar_<name>.yaml`, and for how long each is trained: until it predicts several classes."""
ROUNDING = 1e-5
"""Of probabilities: some 80 eps, as for the small networks of tests/export/test_export.py."""


class Street(NamedTuple):
    """A file of ONNX whose run is not at hand any more, scans (N, 5), and what the run predicted of them."""

    file: Path
    scans: list[np.ndarray]
    expected: list[SegmentPrediction]


@pytest.fixture(scope="module")
def make_street(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Street]:
    """Train a network on a few scans of 64 columns, export it, and delete the run; once a network."""

    @functools.cache
    def make(network: str) -> Street:
        folder = tmp_path_factory.mktemp(network)
        words = (*LIDAR, *NETWORKS[network], "--no-check", "--device", "cpu", "--out", folder / "run")
        succeed("train", ROOT / f"configs/segment/synthetic_lidar_{network}.yaml", *words)
        succeed("export", folder / "run", "--out", folder / "net.onnx")
        run = sightline.load_run(folder / "run")
        dataset = open_run(run.files, config=run.config).data.test.dataset
        scans, files = [], []
        for index in range(2):
            sample = dataset[SampleKey(index, 0, 0)]
            scans.append(np.column_stack([sample[name] for name in ("points", "remission", "ring")]).astype("<f4"))
            files.append(folder / f"{index:06d}.bin")
            files[-1].write_bytes(scans[-1].tobytes())
        expected = run.predict(files, probabilities="float32")
        assert not expected.refused
        shutil.rmtree(folder / "run")
        return Street(folder / "net.onnx", scans, list(expected.predicted))

    return make


@pytest.fixture(scope="module")
def street(make_street: Callable[[str], Street]) -> Street:
    return make_street("rangenet21")


@pytest.fixture(scope="module")
def client(street: Street) -> Iterator[TestClient]:
    loaded, limits = sightline.load_run(street.file), Limits(max_seconds=HANG_S)
    with open_app(loaded, World(), limits=limits) as app, TestClient(app) as client:
        yield client


def count_other_labels(answer: dict[str, Any], expected: SegmentPrediction) -> int:
    """Count the points whose label is not the run's; of each, the run finds both as probable, to the rounding."""
    labels = np.array(answer["labels"])
    assert answer["num_points"] == len(labels) == len(expected.points)
    assert answer["mean_probability"] == pytest.approx(float(expected.probability.mean()), abs=ROUNDING)
    table = expected.probabilities
    assert table is not None
    is_other = labels != expected.labels
    margin = table.max(axis=1) - np.take_along_axis(table, labels[:, None], axis=1)[:, 0]
    assert margin[is_other].max(initial=0.0) <= 2 * ROUNDING
    return int(is_other.sum())


@pytest.mark.parametrize("network", long_but(["rangenet21"], NETWORKS))
def test_uploads_and_json_get_the_labels_of_the_run_at_every_point(
    network: str, make_street: Callable[[str], Street]
) -> None:
    """By the command, in one process; of more than 7,000 points at most seven may have another label."""
    street = make_street(network)
    port, answers = free_port(), []

    def ask(app: Any, listener: socket.socket) -> None:
        assert listener.getsockname()[1] == port
        with TestClient(app) as client:
            for name, scan in zip(("000000.bin", "b c é.BIN"), street.scans, strict=True):
                answers.append((name, client.post("/predict", files={"file": (name, scan.tobytes())})))
                answers.append(("points", client.post("/predict", json={"points": scan.tolist()})))

    with mock.patch("sightline.workbench.serve.server.serve_forever", ask):
        succeed("serve", street.file, "--port", port, "--device", "cpu", "--max-seconds", HANG_S)
    expected = [prediction for prediction in street.expected for _ in range(2)]
    assert sum(len(prediction.points) for prediction in street.expected) > 7_000
    assert all(len(np.unique(prediction.labels)) >= 3 for prediction in expected), "else a constant would pass"
    num_others = 0
    for (name, answer), prediction in zip(answers, expected, strict=True):
        assert answer.status_code == 200, answer.text
        assert answer.json()["input"] == name
        num_others += count_other_labels(answer.json(), prediction)
    assert num_others <= 2 * 7


def test_scans_that_come_together_are_answered_each_with_its_own_labels(street: Street, client: TestClient) -> None:
    """Points in another order get the labels of that order."""
    first, second = street.scans
    backwards = client.post("/predict", json={"points": second[::-1].tolist()}).json()
    assert backwards["labels"][::-1] == client.post("/predict", json={"points": second.tolist()}).json()["labels"]
    assert len(client.post("/predict", json={"points": first.tolist()}).json()["labels"]) == len(first)


def test_info_names_the_columns_of_a_row(client: TestClient) -> None:
    assert client.get("/info").json()["input"]["columns"] == list(COLUMNS)


BROKEN_FILES: dict[str, tuple[str, Callable[[np.ndarray], bytes], str]] = {
    "cut": ("a.bin", lambda scan: scan.tobytes()[:-3], "which fit no number of columns from 3 to 6 of float32, not 5"),
    "four columns": ("a.bin", lambda scan: scan[:-1, :4].tobytes(), "name them: 'columns="),
    "no bytes": ("a.bin", lambda scan: b"", "file: is empty; send its content"),
    "text": ("a.bin", lambda scan: b"1 2 3 4 5\n" * 50, r"the ring of point 0 is 8\.72\S+, not a whole number"),
    "noise": ("a.bin", lambda scan: bytes(range(256)) * 5, "coordinates must be finite"),
    "millimetres": ("a.bin", lambda scan: (scan * [1e3, 1e3, 1e3, 1, 1]).astype("<f4").tobytes(), r"lie beyond .* m"),
    "no return": ("a.bin", lambda scan: (scan * 0).tobytes(), r"none of its \d+ points has a return"),
    "cut row": ("a.txt", lambda scan: b"1 2 3 0.5 5\r\n1 2 3\r\n", "the input:2: 3 columns, 5 are needed"),
    "a stray byte": ("a.csv", lambda scan: b"1,2,3,0.5,5\n1,2,3,\xff,5\n", "the input:2: 'ÿ' is not a number"),
    "a photo": ("a.jpg", lambda scan: b"\xff\xd8", r"its name has to end in one of \.bin"),
}
BROKEN_POINTS: dict[str, tuple[Callable[[np.ndarray], list[Any]], str]] = {
    "no ring": (lambda scan: scan[:, :4].tolist(), r"has 4 columns, 5 are named \(x, y, z, remission, ring\)"),
    "one row": (lambda scan: scan[0].tolist(), r"found the shape \[5\], 2 axes are needed"),
    "a ring too many": (lambda scan: _change(scan, 4, 64), r"rings run from 0 to 64, and the sensor has 64 beams"),
    "half a ring": (lambda scan: _change(scan, 4, 0.5), r"the ring of point 3 is 0\.5, not a whole number"),
    "bytes of remission": (lambda scan: _change(scan, 3, 255), "the remission of point 3 is 255, .* at most 1"),
    "below zero": (lambda scan: _change(scan, 3, -1), "remissions not negative"),
}


def _change(scan: np.ndarray, column: int, value: float) -> list[Any]:
    """The scan with another number at its fourth point."""
    changed = scan.copy()
    changed[3, column] = value
    rows: list[Any] = changed.tolist()
    return rows


def assert_refused(answer: Any, said: str) -> None:
    text = answer.json()["error"]
    assert 400 <= answer.status_code < 500, text
    assert re.search(said, text), text
    assert text.isprintable()
    assert "sightline-serve" not in text, "a folder of the server"


def test_a_broken_scan_gets_one_line_and_the_next_one_its_labels(street: Street, client: TestClient) -> None:
    scan = street.scans[0]
    for name, make, said in BROKEN_FILES.values():
        assert_refused(client.post("/predict", files={"file": (name, make(scan))}), said)
    for make_rows, said in BROKEN_POINTS.values():
        assert_refused(client.post("/predict", json={"points": make_rows(scan)}), said)
    answer = client.post("/predict", files={"file": ("a.bin", scan.tobytes())})
    assert count_other_labels(answer.json(), street.expected[0]) <= 3
