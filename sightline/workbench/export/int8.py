"""Exported files in int8: static quantisation by onnxruntime, calibrated on training samples, and measured.

A weight has a scale a channel and signed codes of 7 bits, an input of a layer one scale and unsigned codes of 8. So a
file is the same function on every processor: those without VNNI add two products in 16 bits, in which 2 x 255 x 64 fits
and 2 x 255 x 127 would not. A layer that a packed run stores without codes, by the policy of `compress`, stays float.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sightline.compression.packed_file import read_packed
from sightline.contract.errors import RunError, summarise_error
from sightline.engine.run_loading import TrainedRun
from sightline.runs.process_folder import process_folder
from sightline.runs.trained_weights import PACKED_FILE
from sightline.workbench.export.formats import make_session, run_session

NUM_CALIBRATED = 64
"""Training samples whose activations choose the scales, by default."""
_LAYERS = ("Conv", "MatMul", "Gemm")
"""Operations that are computed in int8."""
_NUM_TIMED, _MAX_ROUNDS = 20, 3
_MAX_SPREAD = 1.25
"""Ratio of the quartiles of a speed-up up to which it is a figure: a machine that others use has given 2 to 20."""


@dataclass(frozen=True)
class FileMeasure:
    """Bytes of a file, processor time of a call on one thread, median in milliseconds, and metrics on the test split.

    The time is None where repeated calls differ too much.
    """

    num_bytes: int
    milliseconds: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Timing:
    """Processor time of two files in calls that took turns.

    `milliseconds` holds the median of each, `speedup` the lower quartile, median and upper quartile of how many times
    as fast the second was than the first in the call before it.
    """

    milliseconds: tuple[float, float]
    speedup: tuple[float, float, float]

    @property
    def is_steady(self) -> bool:
        """True if the speed-up is about the same in all calls."""
        lower, _, upper = self.speedup
        return upper <= _MAX_SPREAD * lower


@dataclass(frozen=True)
class Int8Report:
    """Measures of a float file and of its int8 file, on one machine, and what was quantised.

    `num_layers` are in int8, those of the weights `kept_float` are not; `num_calibrated` samples chose the scales. A
    call takes `batch` samples. `speedup` is how many times as fast the int8 file is, None where repeated calls differ;
    `speedup_quartiles` always says how far they did.
    """

    float32: FileMeasure
    int8: FileMeasure
    num_layers: int
    kept_float: tuple[str, ...]
    num_calibrated: int
    batch: int
    processor: str
    speedup: float | None
    speedup_quartiles: tuple[float, float]

    def rows(self) -> list[tuple[str, str, str]]:
        """Rows of a table: what, float32, int8."""
        pairs = [("bytes", f"{self.float32.num_bytes:,}", f"{self.int8.num_bytes:,}")]
        if self.float32.milliseconds is not None:
            plain, coded = (f"{file.milliseconds:.2f}" for file in (self.float32, self.int8))
            pairs.append((f"ms of processor time a call of {self.batch}", plain, coded))
        known = self.int8.metrics
        return pairs + [(k, f"{v:.4f}", f"{known[k]:.4f}") for k, v in self.float32.metrics.items() if k in known]

    def describe(self) -> str:
        """Describe the result in one line."""
        speedup = self.speedup
        if speedup is None:
            times = "the speed is left out (see the warning)"
        else:
            times = f"{speedup:.2f} times as fast" if speedup >= 1 else f"SLOWER: {1 / speedup:.2f} times"
        float_note = f", {len(self.kept_float)} stay float by the policy" if self.kept_float else ""
        return (
            f"int8: {self.num_layers} layers{float_note}, scales of {self.num_calibrated} training samples; {times} on "
            f"one thread of {self.processor}"
        )

    def list_warnings(self) -> list[str]:
        """List what a user should know: why a figure is left out."""
        if self.speedup is not None:
            return []
        lower, upper = self.speedup_quartiles
        return [
            f"int8: half of the calls were outside of {lower:.2f} to {upper:.2f} times as fast: other work on this "
            "machine disturbs the measurement, and the description has no speed; export again when it is idle"
        ]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        document = dataclasses.asdict(self)
        for name in ("float32", "int8"):
            metrics = document[name]["metrics"]
            document[name]["metrics"] = {key: v if math.isfinite(v) else None for key, v in metrics.items()}
        return document


def quantise(
    content: bytes, inputs: Sequence[tuple[Tensor, ...]], *, keep_float: Sequence[str] = ()
) -> tuple[bytes, int]:
    """Quantise the layers of an ONNX file but those of the weights `keep_float`; scales are of these inputs.

    Batch norms behind a matrix are folded into it first. Returns the file and the number of layers in int8. Raises
    RunError if onnxruntime cannot quantise the file.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Inputs(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            values = next(self._left, None)
            return None if values is None else {name: v.numpy() for name, v in zip(names, values, strict=True)}

    with process_folder("int8") as folder, _quiet():
        source, plain, target = (folder / name for name in ("float.onnx", "plain.onnx", "int8.onnx"))
        source.write_bytes(content)
        names: list[str] = []
        excluded_nodes = _nodes_of(onnx.load(source).graph, keep_float)
        try:
            quant_pre_process(str(source), str(plain), skip_symbolic_shape=True)
            model = onnx.load(plain)
            fold_batch_norms(model.graph)
            onnx.save(model, plain)
            names += [value.name for value in model.graph.input]
            layers = [
                node.name for node in model.graph.node if node.op_type in _LAYERS and node.name not in excluded_nodes
            ]
            quantize_static(
                str(plain),
                str(target),
                Inputs(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                op_types_to_quantize=list(_LAYERS),
                nodes_to_quantize=layers,
            )
        except Exception as error:
            raise RunError(
                f"export --int8: onnxruntime cannot quantise this network: {summarise_error(error)}"
            ) from error
        made = onnx.load(target)
        quantise_before_maxima(made.graph)
        return made.SerializeToString(), len(layers)


def weights_in_float(run: TrainedRun) -> list[str]:
    """List the matrices and kernels that a packed run stores without codes; of other runs none."""
    if run.checkpoint.name != PACKED_FILE:
        return []
    return [entry.name for entry in read_packed(run.checkpoint).entries if len(entry.shape) >= 2 and not entry.bits]


def time_files(plain: bytes, quantised: bytes, inputs: Sequence[Tensor]) -> Timing:
    """Time two files on one thread, in turns, again while the calls differ; processor time of this thread alone."""
    sessions = [make_session(content, num_threads=1) for content in (plain, quantised)]
    feeds = {value.name: tensor.numpy() for value, tensor in zip(sessions[0].get_inputs(), inputs, strict=True)}
    outputs = [value.name for value in sessions[0].get_outputs()]
    calls = [functools.partial(run_session, session, outputs, feeds) for session in sessions]
    for call in calls:
        call()  # allocates what later ones use again
    return time_in_turns(*calls)


def time_in_turns(first: Callable[[], object], second: Callable[[], object]) -> Timing:
    """Time two calls in turns, 20 times; up to three times as often while the calls differ. The last 20 count."""
    for _ in range(_MAX_ROUNDS):
        seconds = np.array([[_measure_seconds(call) for call in (first, second)] for _ in range(_NUM_TIMED)])
        milliseconds = np.median(1e3 * seconds, axis=0)
        quartiles = np.quantile(seconds[:, 0] / np.maximum(seconds[:, 1], 1e-9), (0.25, 0.5, 0.75))
        timing = Timing(tuple(milliseconds.tolist()), tuple(quartiles.tolist()))
        if timing.is_steady:
            break
    return timing


def _measure_seconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


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
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}

    def maker(name: str, kind: str) -> Any:
        """Return the node of a kind that makes a tensor which nothing else reads."""
        node = makers.get(name)
        fits = node is not None and node.op_type == kind and len(readers[name]) == 1 and name not in outputs
        return node if fits else None

    folded = 0
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        flat = maker(norm.input[0], "Reshape")
        add = maker(flat.input[0], "Add") if flat is not None else None
        if flat is None or add is None:
            continue
        product = next((node_before for name in add.input if (node_before := maker(name, "MatMul")) is not None), None)
        bias_name = next((name for name in add.input if name in weights), None)
        if product is None or bias_name is None or product.input[1] not in weights:
            continue
        matrix, bias = weights[product.input[1]], weights[bias_name]
        gamma, beta, mean, variance = (weights[name] for name in norm.input[1:])
        if matrix.ndim != 2 or matrix.shape[1] != len(gamma) or ranks.get(norm.input[0]) != 2:
            continue
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        scale = gamma / np.sqrt(variance + epsilon)
        made = [(f"{norm.name}_rows", np.array([-1, matrix.shape[0]])), (f"{norm.name}_matrix", matrix * scale)]
        made += [(f"{norm.name}_bias", (bias - mean) * scale + beta)]
        graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in made)
        rows, by, shift = (name for name, _ in made)
        reshape = helper.make_node("Reshape", [product.input[0], rows], [f"{rows}_out"], name=f"{rows}_node")
        gemm = helper.make_node("Gemm", [reshape.output[0], by, shift], [norm.output[0]], name=product.name)
        position = list(graph.node).index(norm)
        for node in (reshape, gemm):
            graph.node.insert(position, node)
            position += 1
        for node in (product, add, flat, norm):
            graph.node.remove(node)
        folded += 1
    read = {name for node in graph.node for name in node.input} | outputs
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    return folded


def quantise_before_maxima(graph: Any) -> int:
    """Quantise the inputs of maxima whose results are quantised: the same codes, of a fifth of the time.

    Codes grow with values, so that the largest code is that of the largest value. Returns how many were changed.
    """
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    changed = 0
    for maximum in [node for node in graph.node if node.op_type == "ReduceMax"]:
        after = readers.get(maximum.output[0], [])
        if len(after) != 1 or after[0].op_type != "QuantizeLinear":
            continue
        quantiser = after[0]
        values, result = maximum.input[0], quantiser.output[0]
        quantiser.input[0], quantiser.output[0] = values, f"{result}_of_all"
        maximum.input[0], maximum.output[0] = quantiser.output[0], result
        graph.node.remove(quantiser)
        graph.node.insert(list(graph.node).index(maximum), quantiser)
        changed += 1
    return changed


def _nodes_of(graph: Any, weights: Sequence[str]) -> set[str]:
    """Return the layers that read these weights, directly or turned."""
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type in ("Transpose", "Identity")}
    names = set()
    for node in graph.node:
        if node.op_type in _LAYERS:
            name = node.input[1]
            name = turned.get(name, name).removeprefix("model.")
            if name in weights:
                names.add(node.name)
    return names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice of onnxruntime's optimiser and quantiser, which logs by the root logger."""
    import onnxruntime

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)
        root.setLevel(level)
