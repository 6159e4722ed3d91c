"""LiDAR frames over HTTP, of a run and of its file of ONNX: the boxes that `sightline predict` finds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import pytest
from starlette.testclient import TestClient

import sightline
from sightline.contract.types import SampleKey
from sightline.engine.distributed import World
from sightline.engine.run_loading import open_run
from sightline.workbench.serve.app import Limits, open_app
from tests.command import document_of, succeed
from tests.limits import HANG_S
from tests.trained import trained_run

pytestmark = pytest.mark.usefixtures("torchlib_once")
SCORE = 0.0125


class Frame(NamedTuple):
    """A frame as KITTI's files have it, (N, 4) of x, y, z and remission, and what `predict --json` says of it."""

    scan: np.ndarray
    expected: dict[str, Any]


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Frame:
    folder, run = tmp_path_factory.mktemp("frame"), trained_run("boxes3d")
    loaded = sightline.load_run(run)
    sample = open_run(loaded.files, config=loaded.config).data.test.dataset[SampleKey(0, 0, 0)]
    scan = np.column_stack([sample["points"], sample["remission"]]).astype("<f4")
    (folder / "000000.bin").write_bytes(scan.tobytes())
    document = document_of("predict", run, folder / "000000.bin", f"score={SCORE}")
    (expected,) = document["predictions"]
    assert len(expected["boxes"]) > 3
    return Frame(scan, expected)


@pytest.fixture(scope="module")
def make_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], TestClient]]:
    """A client of a server of the run, or of its exported file; made once each."""
    with ExitStack() as stack:

        @functools.cache
        def make(kind: str) -> TestClient:
            path = trained_run("boxes3d")
            if kind == "file":
                path = tmp_path_factory.mktemp("exported") / "net.onnx"
                succeed("export", trained_run("boxes3d"), "--out", path)
            limits = Limits(max_seconds=HANG_S)
            app = stack.enter_context(
                open_app(sightline.load_run(path), World(), limits=limits, options={"score": SCORE})
            )
            return stack.enter_context(TestClient(app))

        yield make


@pytest.mark.parametrize("kind", ["run", "file"])
def test_a_frame_gets_the_boxes_that_predict_finds(
    kind: str, frame: Frame, make_client: Callable[[str], TestClient]
) -> None:
    client = make_client(kind)
    by_file = client.post("/predict", files={"file": ("000000.bin", frame.scan.tobytes())})
    by_json = client.post("/predict", json={"points": frame.scan.tolist()})
    for answer in (by_file, by_json):
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert document.keys() - {"input", "warning"} == frame.expected.keys() - {"file", "warning", "written"}
        assert document["num_points"] == len(frame.scan)
        assert [box["class"] for box in document["boxes"]] == [box["class"] for box in frame.expected["boxes"]]
        for found, expected in zip(document["boxes"], frame.expected["boxes"], strict=True):
            for name in ("score", "centre_m", "size_m", "yaw_rad"):
                np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    assert by_file.json()["input"] == "000000.bin"


@pytest.mark.parametrize("kind", ["run", "file"])
def test_a_frame_of_nothing_in_reach_has_few_boxes_and_a_broken_one_gets_a_line(
    kind: str, frame: Frame, make_client: Callable[[str], TestClient]
) -> None:
    client = make_client(kind)
    far = frame.scan + np.float32([0, 0, 50, 0])
    answer = client.post("/predict", files={"file": ("a.bin", far.tobytes())})
    assert answer.status_code == 200, answer.text
    assert answer.json()["num_points"] == len(far)
    broken = client.post("/predict", files={"file": ("a.bin", frame.scan.tobytes()[:-3])})
    assert broken.status_code == 422
    assert "fit no number of columns" in broken.json()["error"]
    assert client.get("/info").json()["input"]["columns"] == ["x", "y", "z", "remission"]
