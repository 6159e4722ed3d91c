"""Files in int8: the same network up to the size of a step, what stays float, and the measures beside float."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

import sightline
from sightline.compression.packed_file import read_packed
from sightline.parts.tasks.supervised import Supervised
from sightline.workbench.export import export
from sightline.workbench.export.formats import make_session, run_session, write_onnx
from sightline.workbench.export.graph import GraphNetwork
from sightline.workbench.export.int8 import Timing, fold_batch_norms, quantise, time_in_turns, weights_in_float
from sightline.workbench.export.recorded_graph import record_graph
from tests.command import refuse, succeed
from tests.trained import copy_run

pytestmark = pytest.mark.usefixtures("torchlib_once")


class Points(nn.Module):
    """Rows through matrices and batch norms, their maximum, and a head: the body of a PointNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 16), nn.Linear(16, 32), nn.Linear(32, 4)
        self.norms = nn.ModuleList([nn.BatchNorm1d(16), nn.BatchNorm1d(32)])
        for norm in self.norms:
            assert isinstance(norm, nn.BatchNorm1d)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        rows = points
        for layer, norm in zip((self.first, self.second), self.norms, strict=True):
            rows = layer(rows)
            rows = torch.relu(norm(rows.flatten(0, 1)).unflatten(0, rows.shape[:2]))
        return {"logits": self.head(rows.amax(dim=1))}


class NoTask(Supervised):
    """Task without anything that files contain."""

    def __init__(self) -> None: ...


@pytest.fixture(scope="module")
def floats_and_inputs() -> tuple[bytes, list[tuple[Tensor, ...]]]:
    """A file of float numbers, and inputs."""
    torch.manual_seed(0)
    example = {"points": torch.randn(4, 50, 3)}
    network = GraphNetwork(Points(), NoTask(), example).eval()
    recorded = record_graph(network, network.arrange(example)[0])
    return write_onnx(recorded, ("logits",), suppression=None), [(torch.randn(4, 50, 3),) for _ in range(8)]


def logits(content: bytes, values: tuple[Tensor, ...]) -> Any:
    return run_session(make_session(content), ["logits"], {"points": values[0].numpy()})[0]


def test_folded_batch_norms_change_nothing_but_rounding(floats_and_inputs: Any, tmp_path: Path) -> None:
    content, inputs = floats_and_inputs
    (tmp_path / "net.onnx").write_bytes(content)
    quant_pre_process(str(tmp_path / "net.onnx"), str(tmp_path / "plain.onnx"), skip_symbolic_shape=True)
    model = onnx.load(tmp_path / "plain.onnx")
    assert fold_batch_norms(model.graph) == 2
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    found, expected = logits(model.SerializeToString(), inputs[0]), logits(content, inputs[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_quantised_file_differs_by_steps_and_its_maxima_are_of_codes(floats_and_inputs: Any) -> None:
    content, inputs = floats_and_inputs
    quantised, num_layers = quantise(content, inputs)
    assert num_layers == 3
    expected, found = (np.stack([logits(file, values) for values in inputs]) for file in (content, quantised))
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    nodes = onnx.load_model_from_string(quantised).graph.node
    makers = {name: node.op_type for node in nodes for name in node.output}
    (maximum,) = [node for node in nodes if node.op_type == "ReduceMax"]
    assert makers[maximum.input[0]] == "QuantizeLinear"


def test_two_products_of_codes_fit_in_16_bits(floats_and_inputs: Any) -> None:
    """Processors without VNNI add two of them so: what does not fit is cut, and the file another function there."""
    content, inputs = floats_and_inputs
    tensors = onnx.load_model_from_string(quantise(content, inputs)[0]).graph.initializer
    codes = [onnx.numpy_helper.to_array(t) for t in tensors if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
    assert len(codes) == 3
    largest = max(int(np.abs(array.astype(np.int64)).max()) for array in codes)
    assert largest > 32
    assert 2 * 255 * largest < 2**15


def test_a_layer_that_stays_float_has_no_codes(floats_and_inputs: Any) -> None:
    content, inputs = floats_and_inputs
    _, every = quantise(content, inputs)
    quantised, num_layers = quantise(content, inputs, keep_float=("first.weight", "head.weight"))
    assert num_layers == every - 2
    codes = [
        t for t in onnx.load_model_from_string(quantised).graph.initializer if t.data_type == onnx.TensorProto.INT8
    ]
    assert (16, 32) in {tuple(t.dims) for t in codes} or (32, 16) in {tuple(t.dims) for t in codes}
    assert not {(3, 16), (16, 3), (32, 4), (4, 32)} & {tuple(t.dims) for t in codes}


def test_a_packed_run_keeps_in_float_what_it_stores_without_codes(tmp_path: Path) -> None:
    run = sightline.load_run(copy_run("packed", tmp_path))
    coded = {entry.name for entry in read_packed(run.checkpoint).entries if entry.bits}
    kept = weights_in_float(run)
    assert coded
    assert not coded & set(kept)
    assert coded | set(kept) >= {name for name, value in run.model.state_dict().items() if value.ndim >= 2}
    assert weights_in_float(sightline.load_run(copy_run("classify", tmp_path / "plain"))) == []


DURATIONS = {
    "even": ([[4.0, 2.0]] * 20, True, (4.0, 2.0), 2.0),
    "one call of each disturbed": ([[90.0, 2.0], [4.0, 90.0], *[[4.0, 2.0]] * 18], True, (4.0, 2.0), 2.0),
    "both slower at times": ([[4.0, 2.0], [8.0, 4.0]] * 10, True, (6.0, 3.0), 2.0),
    "even at last": ([*[[4.0, 2.0], [40.0, 2.0]] * 10, *[[4.0, 2.0]] * 20], True, (4.0, 2.0), 2.0),
    "never even": ([[4.0, 2.0], [40.0, 2.0]] * 30, False, (22.0, 2.0), 11.0),
    "slower": ([[2.0, 4.0]] * 20, True, (2.0, 4.0), 0.5),
}
"""Milliseconds of both files in each turn; what is found: whether they are steady, medians, how many times as fast."""


@pytest.mark.parametrize("name", DURATIONS)
def test_a_speed_is_the_median_of_turns_that_are_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, is_steady, medians, speedup = DURATIONS[name]
    clock, durations = [0.0], iter(milliseconds for turn in turns for milliseconds in turn)

    def call() -> None:
        clock[0] += next(durations) / 1e3

    monkeypatch.setattr(time, "thread_time", lambda: clock[0])
    timing = time_in_turns(call, call)
    assert timing.is_steady == is_steady
    assert timing.milliseconds == pytest.approx(medians)
    assert timing.speedup[1] == pytest.approx(speedup)
    assert next(durations, None) is None


def test_a_run_is_quantised_measured_and_predicts(tmp_path: Path) -> None:
    run, file = copy_run("classify", tmp_path), tmp_path / "net.onnx"
    done = succeed("export", run, "--int8", "--calibrate", 8, "--out", file, "--json", tmp_path / "done.json")
    document = json.loads((tmp_path / "done.json").read_text())["int8"]
    assert document == json.loads((tmp_path / "net.onnx.json").read_text())["int8"]
    assert document["num_calibrated"] == 8
    assert document["int8"]["num_bytes"] == file.stat().st_size < document["float32"]["num_bytes"] / 3
    succeed("evaluate", run, "--device", "cpu", "--json", tmp_path / "evaluated.json")
    evaluated = json.loads((tmp_path / "evaluated.json").read_text())["metrics"]
    assert document["float32"]["metrics"]["overall_accuracy"] == evaluated["overall_accuracy"]
    assert document["int8"]["metrics"].keys() == document["float32"]["metrics"].keys()
    assert document["processor"] in done.err
    assert document["speedup_quartiles"][0] <= (document["speedup"] or math.inf)
    assert "int8 beside float" in done.out
    cloud = tmp_path / "cloud.npy"
    np.save(cloud, np.random.default_rng(0).normal(size=(40, 3)))
    by_file, by_run = (sightline.load_run(path).predict([cloud]).predicted[0] for path in (file, run))
    np.testing.assert_allclose(by_file.probability, by_run.probability, atol=0.05)
    assert "--calibrate: chooses the scales of int8" in refuse("export", run, "--calibrate", 8, "--out", file)
    with mock.patch.object(export, "time_files", return_value=Timing((20.0, 1.0), (19.0, 20.0, 21.0))):
        succeed("export", run, "--int8", "--calibrate", 8, "--out", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == file.read_bytes()


def test_what_is_left_out_of_the_measures_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Votes: the normalisation inside would undo what they vary after it. A speed that is not steady."""
    monkeypatch.setattr(export, "time_files", lambda *files: Timing((20.0, 1.0), (2.0, 11.0, 20.2)))
    run, file = copy_run("plain", tmp_path), tmp_path / "net.onnx"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["evaluate"]["votes"] = 4
    config["transforms"] |= {
        "evaluate": [{"name": "normalize_unit_sphere"}],
        "vote": [{"name": "scale", "low": 0.2, "high": 4.0, "isotropic": True}],
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    done = succeed("export", run, "--int8", "--calibrate", 4, "--out", file, "--json", tmp_path / "done.json")
    document = json.loads((tmp_path / "done.json").read_text())["int8"]
    for name in ("float32", "int8"):
        assert not [key for key in document[name]["metrics"] if "vote" in key]
    assert "one pass a sample: evaluate.votes (4) is not applied" in done.err
    assert document["speedup"] is document["float32"]["milliseconds"] is document["int8"]["milliseconds"] is None
    assert "warning: int8: half of the calls were outside of 2.00 to 20.20 times as fast: other work" in done.err
    assert "ms of processor time" not in done.out
