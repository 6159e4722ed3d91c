"""Exported files in int8: static quantisation by onnxruntime, calibrated on training samples, and measured.

A weight has a scale a channel and signed codes, an input of a layer one scale and unsigned codes, as processors with
VNNI multiply them. Where a network's policy of `compress` keeps a layer in float, so does the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sightline.config import RunConfig
from sightline.contract.errors import RunError, summarise_error
from sightline.engine.build import DataSubset
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun, open_run
from sightline.runs.run_directory import read_processor
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.export.formats import make_session, run_session

NUM_CALIBRATED = 64
"""Training samples whose activations choose the scales, by default."""
_LAYERS = ("Conv", "MatMul", "Gemm")
"""Operations that are computed in int8."""
_TIMED_RUNS = 15
_FAST = 1.1
"""Ratio of times below which int8 is named as not faster."""


@dataclass(frozen=True)
class FileMeasure:
    """What a file takes and gives: its bytes, milliseconds a sample on one thread, and the metrics on the test split."""

    num_bytes: int
    milliseconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Quantised:
    """An int8 file beside the float one, with the layers that stay float, and the processor of the times."""

    content: bytes
    num_layers: int
    kept_float: tuple[str, ...]
    num_calibrated: int


def quantise(content: bytes, inputs: Sequence[tuple[Tensor, ...]], *, keep_float: Sequence[str] = ()) -> Quantised:
    """Quantise the layers of an ONNX file but those of the weights `keep_float`; scales are of these inputs.

    Batch norms behind a matrix are folded into it first. Raises RunError if onnxruntime cannot quantise the file.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Inputs(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            values = next(self._left, None)
            return None if values is None else {name: v.numpy() for name, v in zip(names, values, strict=True)}

    with tempfile.TemporaryDirectory(prefix="sightline-") as folder, _quiet():
        source, plain, target = (Path(folder) / name for name in ("float.onnx", "plain.onnx", "int8.onnx"))
        source.write_bytes(content)
        kept = _nodes_of(onnx.load(source).graph, keep_float)
        try:
            quant_pre_process(str(source), str(plain), skip_symbolic_shape=True)
            model = onnx.load(plain)
            fold_batch_norms(model.graph)
            onnx.save(model, plain)
            names = [value.name for value in model.graph.input]
            layers = [node.name for node in model.graph.node if node.op_type in _LAYERS and node.name not in kept]
            quantize_static(
                str(plain),
                str(target),
                Inputs(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=list(_LAYERS),
                nodes_to_quantize=layers,
            )
        except Exception as error:
            raise RunError(f"export --int8: onnxruntime cannot quantise this network: {summarise_error(error)}") from error
        return Quantised(target.read_bytes(), len(layers), tuple(keep_float), len(inputs))


def layers_in_float(config: RunConfig) -> list[str]:
    """List the weights of a compressed run that its policy leaves in float: those without bits."""
    if config.compress is None:
        return []
    return [name for name, rule in config.compress.policy.items() if "bits" not in rule]


def measure(run: TrainedRun, exported: TrainedRun, content: bytes, inputs: Sequence[Tensor]) -> FileMeasure:
    """Measure a file: the metrics of `exported`, which computes by it, on the run's test split, and its time."""
    opened = open_run(run.files, config=run.config)
    part = opened.data.test
    reader = BatchReader(part.dataset, exported.transforms)
    evaluator = dataclasses.replace(opened.evaluator(), reader=reader)
    metrics = evaluator(exported.model, World()).metrics
    return FileMeasure(len(content), time_file(content, inputs), metrics)


def time_file(content: bytes, inputs: Sequence[Tensor]) -> float:
    """Return the median milliseconds of one call on one thread."""
    session = make_session(content, num_threads=1)
    feeds = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    outputs = [value.name for value in session.get_outputs()]
    seconds = []
    for _ in range(_TIMED_RUNS + 2):
        start = time.perf_counter()
        run_session(session, outputs, feeds)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[2:])


# --- the graph --------------------------------------------------------------------------------------------------------


def fold_batch_norms(graph: Any) -> int:
    """Fold batch norms of rows into the matrix in front of them, which becomes one Gemm with a bias.

    x (..., K) @ W + b, flattened to rows, normalised and given its shape again, is a Gemm of rows. Returns how many.
    """
    from onnx import helper, numpy_helper

    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}

    def maker(name: str, kind: str) -> Any:
        """Return the node of a kind that makes a tensor which nothing else reads."""
        node = makers.get(name)
        fits = node is not None and node.op_type == kind and len(readers[name]) == 1 and name not in outputs
        return node if fits else None

    folded = 0
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        flat = maker(norm.input[0], "Reshape")
        add = None if flat is None else maker(flat.input[0], "Add")
        product = None if add is None else next((m for name in add.input if (m := maker(name, "MatMul"))), None)
        bias_name = None if product is None else next((name for name in add.input if name in weights), None)
        if product is None or bias_name is None or product.input[1] not in weights:
            continue
        matrix, bias = weights[product.input[1]], weights[bias_name]
        gamma, beta, mean, variance = (weights[name] for name in norm.input[1:])
        shape = weights.get(flat.input[1])
        if matrix.ndim != 2 or shape is None or len(shape) != 2 or shape[1] != len(gamma):
            continue
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        scale = gamma / np.sqrt(variance + epsilon)
        made = [(f"{norm.name}_rows", np.array([-1, matrix.shape[0]])), (f"{norm.name}_matrix", matrix * scale)]
        made += [(f"{norm.name}_bias", (bias - mean) * scale + beta)]
        graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in made)
        rows, by, shift = (name for name, _ in made)
        reshape = helper.make_node("Reshape", [product.input[0], rows], [f"{rows}_out"], name=f"{rows}_node")
        gemm = helper.make_node("Gemm", [reshape.output[0], by, shift], [norm.output[0]], name=product.name)
        place = list(graph.node).index(norm)
        for node in (reshape, gemm):
            graph.node.insert(place, node)
            place += 1
        for node in (product, add, flat, norm):
            graph.node.remove(node)
        folded += 1
    return folded


def _nodes_of(graph: Any, weights: Sequence[str]) -> set[str]:
    """Return the layers that read these weights, directly or turned."""
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type in ("Transpose", "Identity")}
    found = set()
    for node in graph.node:
        if node.op_type in _LAYERS:
            name = node.input[1]
            name = turned.get(name, name).removeprefix("model.")
            if name in weights:
                found.add(node.name)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice of onnxruntime's quantiser, which it logs by the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
