"""The server's application, in process: what it answers, what it refuses, and its limits."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import sightline
from benchmarks.malformed_requests import MALFORMED
from sightline.contract.types import ComponentConfig
from sightline.engine.distributed import World
from sightline.engine.run_data import build_transforms
from sightline.workbench.export import onnx_file
from sightline.workbench.export.onnx_file import open_run_or_file
from sightline.workbench.serve import inputs
from sightline.workbench.serve.app import Limits, open_app
from tests.cases import run_each
from tests.endless import write_endless
from tests.limits import HANG_S, limited
from tests.trained import copy_run

pytestmark = pytest.mark.usefixtures("torchlib_once")
CLOUD = (np.random.default_rng(0).random((32, 3)) - 0.5).astype(np.float32)
PATIENT = Limits(max_seconds=HANG_S)


def as_npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run("classify", tmp_path_factory.mktemp("classify") / "copy")


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[TestClient]:
    with (
        open_app(
            sightline.load_run(run), World(), limits=Limits(max_bytes=80_000, max_requests=8, max_seconds=HANG_S)
        ) as app,
        TestClient(app) as client,
    ):
        yield client


def test_an_upload_and_json_get_what_predict_says(client: TestClient, run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "input.npy", CLOUD)
    (expected,) = sightline.load_run(run).predict([tmp_path / "input.npy"]).predicted
    by_file = client.post("/predict", files={"file": ("chair.npy", as_npy(CLOUD))})
    by_json = client.post("/predict", json={"points": CLOUD.tolist()})
    assert not list(client.app.state.folder.iterdir()), "inputs are deleted once answered"  # type: ignore[attr-defined]
    assert (by_file.status_code, by_json.status_code) == (200, 200)
    assert by_file.json()["input"] == "chair.npy"
    for answer in (by_file.json(), by_json.json()):
        assert answer["probability"] == pytest.approx(expected.probability, abs=1e-6)
        assert "file" not in answer


@run_each("num_points, transforms", [(32, ["rotate"]), (500, [])])
def test_an_upload_draws_as_a_file_of_its_name(
    num_points: int, transforms: list[str], run: Path, tmp_path: Path
) -> None:
    """Its turn and, of more points than the run takes, its choice; whatever folders a client writes in front."""
    loaded = sightline.load_run(run)
    turn = build_transforms([ComponentConfig(name) for name in transforms], loaded.facts)
    loaded = dataclasses.replace(loaded, transforms=(*turn, *loaded.transforms))
    cloud = (np.random.default_rng(0).random((num_points, 3)) - 0.5).astype(np.float32)
    names = ("my chair.npy", "b.npy")
    for name in names:
        np.save(tmp_path / name, cloud)
    expected = [found.probability for found in loaded.predict([tmp_path / name for name in names]).predicted]
    assert abs(expected[0] - expected[1]) > 1e-5
    with open_app(loaded, World(), limits=PATIENT) as app, TestClient(app) as client:
        for name, probability in zip(("../../my chair.npy", "b.npy"), expected, strict=True):
            answer = client.post("/predict", files={"file": (name, as_npy(cloud))}).json()
            assert answer["probability"] == pytest.approx(probability, abs=1e-6)


def test_inputs_far_outside_of_training_are_answered_with_a_warning(run: Path, tmp_path: Path) -> None:
    """The reader brings a cloud to the unit sphere: one number far outside of the others leaves all the rest at 0."""
    shutil.copytree(run, tmp_path / "run")
    reaching = {"fields": {"points": [-1.0, 1.0, 12.0]}}
    (tmp_path / "run/checks.json").write_text(json.dumps({"reaching": reaching}))
    loaded = sightline.load_run(tmp_path / "run")
    points = np.random.default_rng(0).uniform(-1, 1, (64, 3))
    with open_app(loaded, World(), limits=PATIENT) as app, TestClient(app) as client:
        usual = client.post("/predict", json={"points": points.tolist()})
        points[5] = 1e18, 0, 0
        far = client.post("/predict", json={"points": points.tolist()})
    assert (usual.status_code, far.status_code) == (200, 200)
    assert "warning" not in usual.json()
    assert "points: lone numbers lie far outside of the others" in far.json()["warning"]


def test_health_and_info(client: TestClient) -> None:
    assert client.get("/health").json()["status"] == "ok"
    info = client.get("/info").json()
    assert (info["task"], info["model"], info["limits"]["max_bytes"]) == ("classify", "pointnet", 80_000)
    assert ".ply" in info["input"]["endings"]
    assert info["input"]["columns"] == ["x", "y", "z"]
    assert info["input"]["json"] == "points", "the key that this run takes"


def test_malformed_requests_get_one_sentence_and_no_5xx(client: TestClient) -> None:
    for name, request in MALFORMED.items():
        answer = client.request(**request)
        assert 400 <= answer.status_code < 500, (name, answer.status_code, answer.text)
        text = answer.json()["error"]
        assert "Traceback" not in text, name
        assert "\n" not in text, name
    assert client.get("/health").json()["status"] == "ok"


def test_no_text_of_a_client_names_a_file_of_the_server(client: TestClient, tmp_path: Path) -> None:
    secret = tmp_path / "secret.npy"
    np.save(secret, CLOUD)
    for name in (str(secret), f"../../../..{secret}", f"{secret}\0.npy", "/etc/passwd.npy"):
        answer = client.post("/predict", files={"file": (name, b"not an array")})
        assert answer.status_code == 422
        assert str(tmp_path) not in answer.text
        assert "sightline-serve" not in answer.text
    answer = client.post("/predict", json={"points": str(secret)})
    assert answer.status_code == 422
    assert client.post("/predict", json={"path": str(secret)}).status_code == 422


def test_requests_that_come_together_go_through_the_network_together(client: TestClient) -> None:
    """Same answers as alone; fewer batches than requests."""
    before = client.get("/health").json()
    alone = client.post("/predict", json={"points": CLOUD.tolist()}).json()["probability"]
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.post("/predict", json={"points": CLOUD.tolist()})))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 6
    assert all(answer.json()["probability"] == pytest.approx(alone, abs=1e-6) for answer in answers)
    after = client.get("/health").json()
    assert after["predicted"] - before["predicted"] == 7


def test_limits_of_time_and_number_are_answers(run: Path) -> None:
    loaded = sightline.load_run(run)
    with open_app(loaded, World(), limits=Limits(max_seconds=1e-4)) as app, TestClient(app) as client:
        answer = client.post("/predict", json={"points": CLOUD.tolist()})
        assert answer.status_code == 504
        assert "took more than" in answer.json()["error"]
    with open_app(loaded, World(), limits=Limits(max_requests=0)) as app, TestClient(app) as client:
        answer = client.post("/predict", json={"points": CLOUD.tolist()})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@run_each(
    "rows",
    [
        [["0.1", "0.2", "0.3"]] * 32,
        [[True, False, True]] * 32,
        [[0.5, 1, True]] * 32,
        [[0.5, 1, None]] * 32,
        [[0.5, 1, 2]] * 31 + [[0.5, 1, "2"]],
        ["123"] * 32,
        [{"1": 2}] * 32,
        "0.5",
    ],
)
def test_only_numbers_are_numbers(rows: Any, client: TestClient) -> None:
    """NumPy takes texts, true and false for numbers."""
    answer = client.post("/predict", json={"points": rows})
    assert answer.status_code == 422
    assert "numbers" in answer.json()["error"] or "found the shape" in answer.json()["error"]


@run_each("kind, size, limit", [("application/json", 12_000, 10_000), ("multipart/form-data", 90_000, 80_000)])
def test_a_body_that_is_too_large_is_read_to_its_end_and_gets_413(
    kind: str, size: int, limit: int, client: TestClient
) -> None:
    """Of JSON an eighth may come: its lists and numbers take many times their text."""
    answer = client.post("/predict", content=b" " * size, headers={"Content-Type": kind})
    assert answer.status_code == 413
    assert f"body: has more than {limit:,} bytes, the limit" in answer.json()["error"]


@pytest.fixture
def end_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """End the time of the last request that came, from any thread."""
    limits: list[tuple[asyncio.AbstractEventLoop, asyncio.Timeout]] = []
    own = asyncio.timeout

    def remember(seconds: float) -> asyncio.Timeout:
        limits.append((asyncio.get_running_loop(), own(seconds)))
        return limits[-1][1]

    def end() -> None:
        loop, limit = limits[-1]
        loop.call_soon_threadsafe(lambda: limit.reschedule(loop.time()))

    monkeypatch.setattr(asyncio, "timeout", remember)
    return end


def test_a_request_that_timed_out_keeps_its_place_until_its_thread_ends(
    run: Path, monkeypatch: pytest.MonkeyPatch, end_time: Callable[[], None]
) -> None:
    """So that the number of requests bounds the work; then good ones are answered again, and no input is left."""
    held = threading.Event()
    parse = inputs.parse_json

    def parse_slowly(text: bytes) -> Any:
        end_time()
        held.wait()
        return parse(text)

    monkeypatch.setattr(inputs, "parse_json", parse_slowly)
    limits = Limits(max_seconds=HANG_S, max_requests=1)
    with open_app(sightline.load_run(run), World(), limits=limits) as app, TestClient(app) as client:
        try:
            for expected in (504, 503, 503):
                answer = client.post("/predict", json={"points": CLOUD.tolist()})
                assert answer.status_code == expected
            assert answer.headers["retry-after"] == "1"
        finally:
            held.set()
        while app.state.slots:
            time.sleep(0.01)
        assert not list(app.state.folder.iterdir())


def find_nulls(value: Any, path: str = "answer") -> Iterator[str]:
    """Where an answer states nothing: what does not apply to a run is left out."""
    if value is None:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from find_nulls(inner, f"{path}.{key}")


@pytest.mark.parametrize("name", ["boxes3d", "contrast", "detect", "lidar", "parts", "pose", "scenes"])
def test_every_task_is_served(name: str, tmp_path: Path) -> None:
    path = copy_run(name, tmp_path / "copy")
    loaded = sightline.load_run(path, plugins=sorted((tmp_path / "copy").glob("*.py")))
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {}
    if name == "detect":
        body: dict[str, Any] = {}
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)).save(content, "PNG")
        upload = ("a.png", content.getvalue())
    elif name == "pose":
        depth = np.zeros((240, 320), dtype=np.float32)
        depth[100:140, 140:180] = 500.0
        body, upload = {}, ("a.npy", as_npy(depth))
    else:
        columns = {"boxes3d": ("remission",), "lidar": ("remission", "ring"), "parts": ("nx", "ny", "nz")}
        more = {**columns, "scenes": ("r", "g", "b")}.get(name, ())
        cloud = rng.random((96, 3 + len(more))) * 0.5
        if name == "lidar":
            cloud[:, 4] = np.argsort(np.argsort(-cloud[:, 2])) * 64 // 96  # the highest beam is 0
        if name == "parts":
            cloud[:, 3:] /= np.linalg.norm(cloud[:, 3:], axis=1, keepdims=True)
        options = {"columns": ("x", "y", "z", *more)} if name in ("parts", "scenes") else {}
        body, upload = {"points": cloud.tolist()}, ("a.npy", as_npy(cloud))
    category = {"category": str(loaded.facts["category_names"][0])} if name == "parts" else {}
    with open_app(loaded, World(), options=options, limits=PATIENT) as app, TestClient(app) as client:
        by_json = client.post("/predict", json={**body, **category})
        assert by_json.status_code == (200 if body else 415), by_json.text
        for answer in (client.post("/predict", files={"file": upload}, data=category), *([by_json] if body else [])):
            assert answer.status_code == 200, answer.text
            key = {"contrast": "encoding", "pose": "joints_mm", **dict.fromkeys(("boxes3d", "detect"), "boxes")}.get(
                name, "labels"
            )
            assert key in answer.json()
            assert ("category" in answer.json()) == (name == "parts")
            assert not [*find_nulls(answer.json())]
        if name == "parts":
            assert "is needed" in client.post("/predict", json={**body, "category": "../.."}).json()["error"]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("net") / "net.onnx"
    sightline.export(copy_run("plain", file.with_name("plain")), out=file)
    return file


def test_a_file_of_onnx_that_does_not_end_is_ended(
    net: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    end_time: Callable[[], None],
) -> None:
    """The place is free again, and the thread works for others; the log names the file."""
    write_endless(net, tmp_path / "endless.onnx")
    endless = open_run_or_file(tmp_path / "endless.onnx", max_seconds=0.5)
    compute = onnx_file.run_session

    def compute_in_vain(*given: Any, **named: Any) -> Any:
        end_time()
        return compute(*given, **named)

    monkeypatch.setattr(onnx_file, "run_session", compute_in_vain)
    with open_app(endless, World(), limits=PATIENT) as app, TestClient(app) as client:
        for _ in range(2):
            assert client.post("/predict", json={"points": 2 * CLOUD.tolist()}).status_code == 504
        with limited():
            while app.state.slots:
                time.sleep(0.01)
    assert "endless.onnx: computes one batch for more than 0.5 s" in caplog.text
