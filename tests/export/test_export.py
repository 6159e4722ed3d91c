"""Runs as files: what they compute, what stands beside them, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sightline
from sightline import ops
from sightline.areas.boxes3d.pointpillars import PillarEncoder
from sightline.contract.errors import RunError, UserError
from sightline.contract.types import SampleKey
from sightline.engine.run_loading import open_run
from sightline.parts.tasks.supervised import Supervised
from sightline.workbench.export import onnx_file
from sightline.workbench.export.checking import check_file, check_parts
from sightline.workbench.export.formats import load_written, write_onnx
from sightline.workbench.export.graph import MAX_POINTS, GraphNetwork
from sightline.workbench.export.onnx_file import open_run_or_file
from sightline.workbench.export.recorded_graph import record_graph
from sightline.workbench.predict.prediction import predict_files
from tests.command import refuse, succeed
from tests.endless import write_endless
from tests.limits import ENDLESS_S, limited
from tests.marks import long_but
from tests.models.small_models import make_inputs, small_model
from tests.trained import copy_run

pytestmark = pytest.mark.usefixtures("torchlib_once")
RUNS = ("boxes3d", "classify", "contrast", "detect", "lidar", "parts", "pose", "scenes")
OPTIONS: dict[str, dict[str, Any]] = {
    "boxes3d": {"score": 0.0125},
    "detect": {"score": 0.02},
    "parts": {"columns": ("x", "y", "z", "nx", "ny", "nz")},
    "scenes": {"columns": ("x", "y", "z", "r", "g", "b")},
}


class Exported(NamedTuple):
    """A file of a run, what `--json` said of it, and what was printed."""

    file: Path
    document: dict[str, Any]
    told: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[Path]]]:
    """A copy of each run, and its plugins."""
    made: dict[str, tuple[Path, list[Path]]] = {}

    def get(name: str) -> tuple[Path, list[Path]]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = copy_run(name, folder / "copy"), sorted((folder / "copy").glob("*.py"))
        return made[name]

    return get


@pytest.fixture(scope="module")
def exported(runs: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """The file of a run, its document and what the command told, made once."""

    @cache
    def get(name: str) -> Exported:
        path, plugins = runs(name)
        file = tmp_path_factory.mktemp(f"exported_{name}") / "net.onnx"
        more = [word for plugin in plugins for word in ("--plugin", plugin)]
        done = succeed("export", path, "--out", file, *more, "--json", file.with_name("done.json"))
        return Exported(file, json.loads(file.with_name("done.json").read_text()), done.err)

    return get


def write_samples(run: Any, folder: Path) -> list[Path]:
    """Samples of the run's test split as files."""
    dataset = open_run(run.files, config=run.config).data.test.dataset
    files = []
    for index in range(2):
        sample = dataset[SampleKey(index, 0, 0)]
        if "image" in sample and "boxes" in sample:
            files.append(folder / f"{index}.png")
            Image.fromarray(np.asarray(sample["image"]).astype(np.uint8)).save(files[-1])
            continue
        files.append(folder / f"{index}.npy")
        names = [name for name in ("points", *run.files.inputs.features, "ring") if name in sample]
        columns = [np.asarray(sample[name]).reshape(len(sample["points"]), -1) for name in names]
        np.save(files[-1], np.concatenate(columns, axis=1) if columns else np.asarray(sample["depth"]))
    return files


def rows(prediction: Any) -> np.ndarray:
    """The numbers of a prediction."""
    if hasattr(prediction, "detections"):
        return np.concatenate([prediction.detections.boxes, prediction.detections.scores[:, None]], axis=1)
    if hasattr(prediction, "table"):
        assert len(prediction.table) > 3
        return np.column_stack([prediction.table.boxes, prediction.table.score])
    for name in ("peaks", "encoding", "probability"):
        if hasattr(prediction, name):
            return np.asarray(getattr(prediction, name))
    raise AssertionError(f"{prediction} has no numbers")


@pytest.mark.parametrize("name", long_but(["boxes3d", "classify", "detect", "scenes"], RUNS))
def test_a_file_predicts_what_its_run_predicts(name: str, runs: Any, exported: Any, tmp_path: Path) -> None:
    """In float32, to the rounding of a small network: 1e-5 of the largest value (some 80 eps)."""
    path, plugins = runs(name)
    loaded = sightline.load_run(path, plugins=plugins)
    file, document, _ = exported(name)
    assert document["check"]["equal"]
    assert document["check"]["inputs"] >= 11  # 20 where the data has as many
    files, options = write_samples(loaded, tmp_path), OPTIONS.get(name, {})
    if name == "parts":
        options = {**options, "category": str(loaded.facts["category_names"][0])}
    expected = loaded.predict(files, **options)
    found = sightline.load_run(file, plugins=plugins).predict(files, **options)
    assert not found.refused
    assert not expected.refused
    for one, other in zip(found.predicted, expected.predicted, strict=True):
        scale = np.abs(rows(other)).max(initial=1e-6)
        np.testing.assert_allclose(rows(one), rows(other), rtol=0, atol=1e-5 * scale + 1e-5)


def test_an_exported_file_is_not_exported_again(exported: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"net\.onnx: is an exported file already; export the run"):
        sightline.export(exported("classify").file, out=tmp_path / "again.onnx")


def test_the_description_is_enough_to_run_the_file(runs: Any, exported: Any) -> None:
    """Detections of the file, by its description alone, are those of the task: the same boxes, classes and scores."""
    path, _ = runs("detect")
    file, _, told = exported("detect")
    assert "within rounding of torch on 14 inputs" in told
    description = json.loads(file.with_name("net.onnx.json").read_text())
    assert description["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert description["inside"] == ["normalize_image"]
    assert description["before"][0]["name"] == "fit_image"
    assert "100 highest-scoring" in description["after"][0]
    (entry,) = description["inputs"]
    assert (entry["name"], entry["shape"]) == ("image", ["batch", 3, 192, 256])

    loaded = sightline.load_run(path)
    sample = open_run(loaded.files, config=loaded.config).data.test.reader([SampleKey(0, 0, 0), SampleKey(1, 0, 0)])
    task = open_run(loaded.files, config=loaded.config).task
    with torch.no_grad():
        expected = task.predict(loaded.model, sample)
    spans = expected["detection_offsets"].tolist()
    pixels = raw_pixels(sample["image"])
    session = onnxruntime.InferenceSession(str(file))
    (detections,) = session.run(["detections"], {"image": pixels.numpy()})
    for image in range(2):
        of_image = detections[detections[:, 0] == image]
        top = of_image[np.argsort(-of_image[:, 5], kind="stable")][:100]
        of_task = expected["detections"][spans[image] : spans[image + 1]].numpy()
        assert len(top) == len(of_task)
        np.testing.assert_allclose(top[:, 5], of_task[:, 4], atol=1e-5)
        np.testing.assert_array_equal(np.sort(top[:, 6]), np.sort(of_task[:, 5]))


def test_the_description_is_enough_for_3d_boxes(runs: Any, exported: Any) -> None:
    """Pillars are gathered and boxes decoded by its numbers alone, in NumPy; beside a frame without a point."""
    path, _ = runs("boxes3d")
    file, document, told = exported("boxes3d")
    assert document["check"]["inputs"] == 15
    assert "and one without points" in told
    description = json.loads(file.with_name("net.onnx.json").read_text())
    assert [entry["shape"][:2] for entry in description["inputs"]] == [["batch", "pillars"]] * 3
    gathering, numbers = description["before"][-1]["arguments"], description["numbers"]
    assert gathering["columns"] == ["x", "y", "z", "remission"]
    run = sightline.load_run(path)
    opened = open_run(run.files, config=run.config)
    batch = opened.data.test.reader([SampleKey(0, 0, 0)])
    with torch.no_grad():
        expected = opened.task.predict(run.model, batch)["detections3d"].numpy()

    values = np.column_stack([batch["points"], batch["features"]])
    pillars, cells = gather_pillars(values, gathering)
    width = len(pillars)
    tables = {
        "pillars": np.zeros((2, width, gathering["max_points"], values.shape[1]), dtype=np.float32),
        "num_points": np.zeros((2, width), dtype=np.int64),
        "cells": np.full((2, width, 2), -1, dtype=np.int64),
    }
    tables["cells"][0] = cells
    for number, rows in enumerate(pillars):
        tables["pillars"][0, number, : len(rows)] = rows
        tables["num_points"][0, number] = len(rows)
    session = onnxruntime.InferenceSession(str(file))
    logits, codes, direction = session.run(["logits", "codes", "direction"], tables)
    nothing = session.run(["logits"], {name: table[:1, :0] for name, table in tables.items()})[0]
    np.testing.assert_allclose(logits[1:], nothing, atol=1e-6)

    scores = 1 / (1 + np.exp(-logits[0].astype(np.float64)))
    boxes = decode_anchors(numbers, codes[0].astype(np.float64), direction[0].argmax(axis=1))
    rows = (scores.max(axis=1) >= numbers["score"]).nonzero()[0]
    highest = torch.from_numpy(scores[rows].max(axis=1))
    labels = torch.from_numpy(scores[rows].argmax(axis=1)) if numbers["per_class"] else None
    threshold, before = numbers["iou_threshold"], numbers["before"]
    chosen = ops.box3d_nms(torch.from_numpy(boxes[rows]), highest, threshold, labels, max_candidates=before)
    chosen = rows[chosen[: numbers["most"]].numpy()]
    top = 10  # of scores that are further apart than rounding
    found = np.column_stack([boxes, scores.max(axis=1), scores.argmax(axis=1)])[chosen[:top]]
    found[:, 6] += np.round((expected[:top, 6] - found[:, 6]) / (2 * np.pi)) * 2 * np.pi
    np.testing.assert_allclose(found, expected[:top], atol=1e-4)


def gather_pillars(values: np.ndarray, numbers: dict[str, Any]) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """Points of each pillar and its cell, as the description says."""
    low, high = np.float32(numbers["extent_m"][:3]), np.float32(numbers["extent_m"][3:])
    of_cell: dict[tuple[int, int], list[np.ndarray]] = {}
    for row in values:
        if not ((row[:3] >= low) & (row[:3] < high)).all():
            continue
        column, line = np.floor((row[:2] - low[:2]) / np.float32(numbers["pillar_m"])).astype(int)
        of_cell.setdefault((line, column), [])
        if len(of_cell[line, column]) < numbers["max_points"]:
            of_cell[line, column].append(row)
    kept = list(of_cell)[: numbers["max_pillars"]]
    return [of_cell[cell] for cell in kept], np.array(kept)


def decode_anchors(numbers: dict[str, Any], codes: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Boxes (A, 7) at the anchors, as the description says."""
    anchors = [
        [x, y, entry["z_m"], *entry["size_m"], yaw]
        for y in numbers["anchors"]["y_m"]
        for x in numbers["anchors"]["x_m"]
        for entry in numbers["anchors"]["classes"]
        for yaw in numbers["anchors"]["yaw_rad"]
    ]
    x, y, z, dx, dy, dz, yaw = np.array(anchors).T
    diagonal, offset = np.hypot(dx, dy), numbers["direction_offset_rad"]
    yaw = (yaw + codes[:, 6] - offset) % np.pi + offset + np.pi * direction
    middles = [x + diagonal * codes[:, 0], y + diagonal * codes[:, 1], z + dz * codes[:, 2]]
    return np.stack([*middles, *(np.array([dx, dy, dz]) * np.exp(codes[:, 3:6].T)), yaw], axis=1)


def raw_pixels(image: Tensor) -> Tensor:
    """Colours of 0..255 from those that ImageNet's mean and deviation normalised."""
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((image * std + mean) * 255).round().to(torch.uint8)


class Offset(nn.Module):
    """Network of a row of numbers for each cloud."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 4)

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        return {"logits": self.map(points).amax(dim=1)}


class NoTask(Supervised):
    """Task without anything that files contain."""

    def __init__(self) -> None: ...


def test_the_check_finds_a_file_that_is_off_by_a_thousandth() -> None:
    example = {"points": torch.rand(4, 16, 3)}
    network = GraphNetwork(Offset(), NoTask(), example).eval()
    (values,) = network.arrange(example)
    call = load_written(write_onnx(record_graph(network, values), ("logits",), suppression=None), ("logits",))
    assert check_file(call, network, [values], is_batch_free=True, source="made").is_equal

    def off(*given: Tensor) -> dict[str, Tensor]:
        return {"logits": call(*given)["logits"] * 1.001}

    wrong = check_file(off, network, [values], is_batch_free=True, source="made")
    assert not wrong.is_equal
    assert "NOT within rounding" in wrong.describe()


@pytest.fixture
def pillars() -> tuple[GraphNetwork, dict[str, Tensor]]:
    """A small network of pillars and its batch of six frames."""
    model = small_model("pointpillars").float()
    batch = {name: value.float() for name, value in make_inputs(model, 6).items()}
    return GraphNetwork(model, NoTask(), batch).eval(), batch


def test_the_check_tries_other_numbers_of_pillars_than_the_recorded(pillars: Any) -> None:
    """Files that are right for as many pillars as were recorded, or for any but none, or for one frame alone."""
    network, batch = pillars
    inputs = [*network.arrange(batch), *network.arrange_nothing(batch)]
    shapes = [tuple(tables[0].shape[:2]) for tables in inputs]
    assert shapes[-1] == (1, 0)
    assert shapes[0][1] > shapes[1][1] > 0
    num_recorded = shapes[0][1]

    def call(*tables: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            outputs: dict[str, Tensor] = network(*tables)
        return outputs

    def has_fixed_count(*tables: Tensor) -> dict[str, Tensor]:
        return call(*(table[:, : num_recorded - 2] for table in tables))

    def fails_of_none(*tables: Tensor) -> dict[str, Tensor]:
        return {name: value + (tables[0].shape[1] == 0) for name, value in call(*tables).items()}

    def mixes_frames(*tables: Tensor) -> dict[str, Tensor]:
        return {name: value[:1].expand_as(value) for name, value in call(*tables).items()}

    for run, is_equal in ((call, True), (has_fixed_count, False), (fails_of_none, False), (mixes_frames, False)):
        check = check_file(run, network, inputs, is_batch_free=True, source="made")
        assert check.is_equal == is_equal, (run, check.describe())
        assert check.num_inputs == 7


def test_parts_that_are_not_the_network_are_refused(pillars: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of tables without the distance to the middle: the file would be that of the parts, and pass."""
    network, batch = pillars
    check_parts(network, batch)
    encode = PillarEncoder.encode_tables

    def shifted(encoder: Any, tables: Tensor, num_points: Tensor, middles: Tensor) -> Tensor:
        return encode(encoder, tables, num_points, middles + 1e-3)

    monkeypatch.setattr(PillarEncoder, "encode_tables", shifted)
    with pytest.raises(RunError, match=r"PointPillars\.split_for_graph: its parts compute another 'logits' than"):
        check_parts(network, batch)


def test_large_scenes_are_thinned_for_the_check_and_small_ones_kept() -> None:
    """The plain forms of neighbours hold all pairs: 15,000 points took 6.5 GB. First and last point stay."""
    sizes = (MAX_POINTS + 5, 3, 3 * MAX_POINTS)
    points = torch.arange(sum(sizes)).repeat(3, 1).T.float()
    offsets = torch.tensor([0, *np.cumsum(sizes).tolist()])
    example = {"points": points, "offsets": offsets}
    arranged = GraphNetwork(Offset(), NoTask(), example).arrange(example)
    for (cloud,), start, size in zip(arranged, offsets.tolist(), sizes, strict=False):
        assert cloud.shape == (1, min(size, MAX_POINTS), 3)
        chosen = cloud[0, :, 0]
        assert (chosen[0], chosen[-1]) == (start, start + size - 1)
        assert (chosen.diff() > 0).all()


class Branching(Offset):
    """Network whose operations depend on values, which no graph can hold."""

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        return {"logits": self.map(points.mean(dim=1) if points.sum().item() > 0 else points.amax(dim=1))}


def test_a_network_that_no_graph_can_hold_is_refused_in_one_line() -> None:
    example = {"points": torch.rand(4, 16, 3)}
    network = GraphNetwork(Branching(), NoTask(), example).eval()
    with pytest.raises(RunError, match="cannot record this network") as refused:
        record_graph(network, network.arrange(example)[0])
    assert "\n" not in str(refused.value)


def read_elsewhere(model: Any) -> None:
    """A function that no node of the graph calls, whose constant lies in a file of the machine."""
    node = model.functions.add(name="F", domain="x").node.add(op_type="Constant", output=["b"])
    tensor = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t
    tensor.data_type, tensor.data_location = onnx.TensorProto.FLOAT, onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")


def need_input(*sizes: int | str) -> Callable[[Any], None]:
    return lambda model: model.graph.input.append(onnx.helper.make_tensor_value_info("more", 1, ["batch", *sizes]))


FORGERIES: list[tuple[Callable[[Any], Any], str]] = [
    (read_elsewhere, "keeps weights in other files"),
    (need_input("free"), r"needs an input 'more' of \['free'\], which this run has not; export it again"),
    (lambda model: model.graph.ClearField("output"), "computes none of feature_transform, logits; export"),
]
"""Changes of a file whose description vouches for it, and what is said."""


def test_what_is_no_file_of_ours_is_refused(exported: Any, tmp_path: Path) -> None:
    """Each with its own reason, and before its weights are used."""
    sound = exported("classify").file
    cloud = tmp_path / "cloud.npy"
    np.save(cloud, np.random.default_rng(0).random((32, 3)))
    copy, beside = tmp_path / "net.onnx", tmp_path / "net.onnx.json"
    assert "there is no such file" in refuse("predict", copy, cloud)
    copy.write_bytes(sound.read_bytes())
    assert "has no description beside it" in refuse("predict", copy, cloud)
    description = json.loads(sound.with_name("net.onnx.json").read_text())
    beside.write_text(json.dumps({**description, "run": {"documents": {}}}))
    assert "is not a description" in refuse("predict", copy, cloud)
    documents = {**description["run"]["documents"], "facts.json": "{}"}
    beside.write_text(json.dumps({**description, "run": {**description["run"], "documents": documents}}))
    told = refuse("predict", copy, cloud)
    assert re.search(r"net\.onnx: its description: run/config\.yaml:\d+: model: .* needs num_classes", told), told
    beside.write_text(json.dumps(description))
    assert succeed("predict", copy, cloud).code == 0
    for path in (copy, beside):
        shutil.copy(path, tmp_path / path.name.replace("net.onnx", "NET.ONNX"))
    assert succeed("predict", tmp_path / "NET.ONNX", cloud).code == 0
    copy.write_bytes(sound.read_bytes()[:-7])
    assert "is not a file of ONNX" in refuse("predict", copy, cloud)
    model = onnx.load_model_from_string(sound.read_bytes())
    onnx.save_model(model, copy, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert "keeps weights in other files" in refuse("predict", copy, cloud)
    for change, said in FORGERIES:
        model = onnx.load_model_from_string(sound.read_bytes())
        change(model)
        copy.write_bytes(model.SerializeToString())
        beside.write_text(json.dumps({**description, "sha256": hashlib.sha256(copy.read_bytes()).hexdigest()}))
        told = refuse("predict", copy, cloud)
        assert re.search(said, told), told
    model.doc_string = "changed"
    copy.write_bytes(model.SerializeToString())
    assert "is not the file that its description is about" in refuse("predict", copy, cloud)
    assert "holds the weights of one checkpoint" in refuse("predict", copy, cloud, "--checkpoint", "best")


def test_a_file_that_does_not_end_is_ended_by_its_limit_and_by_ctrl_c(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud, endless = tmp_path / "cloud.npy", tmp_path / "endless.onnx"
    np.save(cloud, np.random.default_rng(0).random((32, 3)))
    write_endless(exported("classify").file, endless)
    with pytest.raises(RunError, match=r"endless\.onnx: computes one batch for more than 0\.3 s, and may never end"):
        predict_files(open_run_or_file(endless, max_seconds=0.3), [cloud])
    run = open_run_or_file(endless, max_seconds=ENDLESS_S)
    compute = onnx_file.run_session

    def compute_and_interrupt(*given: Any, **named: Any) -> Any:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return compute(*given, **named)

    monkeypatch.setattr(onnx_file, "run_session", compute_and_interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits none
    try:
        with limited(), pytest.raises(KeyboardInterrupt):
            predict_files(run, [cloud])
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_file_of_more_than_2_gib_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "net.onnx", "wb") as file:
        file.truncate(2**31)  # a hole: it takes no room on the disk
    with pytest.raises(UserError, match="at most 2,147,483,647 are read"):
        sightline.load_run(tmp_path / "net.onnx")


def test_files_take_the_place_of_data_that_is_not_at_hand(runs: Any, tmp_path: Path) -> None:
    run, _ = runs("plain")
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", np.random.default_rng(index).random((64, 3)) - 0.5)
    result = sightline.export(run, out=tmp_path / "net.onnx", inputs=[tmp_path])
    assert (result.check.num_inputs, result.check.source) == (3, "3 files")
