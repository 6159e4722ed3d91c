"""Files of ONNX: a recorded graph written as one, and sessions of onnxruntime that run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.contract.errors import RunError
from sightline.workbench.export.recorded_graph import RecordedGraph, explain, quiet

ENDING = ".onnx"
MAX_ONNX_BYTES = 2**31 - 1
"""Limit of protobuf: a file of ONNX without data beside it is smaller."""
_OPSET = 20


def write_onnx(recorded: RecordedGraph, outputs: Sequence[str], *, suppression: Mapping[str, Any] | None) -> bytes:
    """Write a recorded graph as ONNX, all in one file. Raises RunError for an operation that ONNX lacks.

    `suppression` has the `iou_threshold` and `most` boxes per class of a greedy suppression, which is added.
    """
    import onnx

    try:
        with quiet():  # not optimised: torch's optimiser takes an added 1e-8 for nothing, and onnxruntime has its own
            made = torch.onnx.export(
                recorded.program, (), None, dynamo=True, verbose=False, optimize=False, opset_version=_OPSET,
                input_names=list(recorded.names), output_names=list(outputs),
            )  # fmt: skip
    except Exception as error:
        raise RunError(
            f"export: ONNX cannot hold this network: {explain(error)}; 'sightline predict' and 'sightline serve' run it"
        ) from error
    assert made is not None
    model = made.model_proto
    _name_free_axes(model, recorded)
    if suppression is not None:
        _add_suppression(model, **suppression)
    if model.ByteSize() > MAX_ONNX_BYTES:
        raise RunError(f"export: the network has {model.ByteSize():,} bytes; one file of ONNX has {MAX_ONNX_BYTES:,}")
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _name_free_axes(model: Any, recorded: RecordedGraph) -> None:
    """Name the free sizes of inputs; those of outputs that are named by torch's symbols follow."""
    renamed = {}
    for value, axes in zip(model.graph.input, recorded.free_axes, strict=True):
        for axis, name in axes.items():
            renamed[value.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]


def _add_suppression(model: Any, *, iou_threshold: float, most: int) -> None:
    """Add greedy suppression: `detections` (D, 7), as image, left, top, right, bottom, score, class."""
    from onnx import TensorProto, helper

    def constant(name: str, values: list[Any], dtype: int, *, is_scalar: bool = False) -> str:
        model.graph.initializer.append(helper.make_tensor(name, dtype, [] if is_scalar else [len(values)], values))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        model.graph.node.append(helper.make_node(kind, inputs, [output], name=f"{output}_node", **attributes))
        return output

    limits = [
        constant("nms_most", [most], TensorProto.INT64),
        constant("nms_iou", [iou_threshold], TensorProto.FLOAT),
        constant("nms_score", [0.0], TensorProto.FLOAT),
    ]
    by_class = node("Transpose", ["scores"], "nms_scores", perm=[0, 2, 1])
    chosen = node("NonMaxSuppression", ["boxes", by_class, *limits], "nms_chosen")
    of_box = node("Gather", [chosen, constant("nms_box_columns", [0, 2], TensorProto.INT64)], "nms_of_box", axis=1)
    boxes = node("GatherND", ["boxes", of_box], "nms_boxes")
    scores = node("GatherND", [by_class, chosen], "nms_chosen_scores")
    last = constant("nms_last", [1], TensorProto.INT64)
    columns = [node("Cast", [chosen], "nms_numbers", to=TensorProto.FLOAT)]
    image = node("Gather", [columns[0], constant("nms_image", [0], TensorProto.INT64)], "nms_images", axis=1)
    label = node("Gather", [columns[0], constant("nms_class", [1], TensorProto.INT64)], "nms_classes", axis=1)
    score = node("Unsqueeze", [scores, last], "nms_score_column")
    node("Concat", [image, boxes, score, label], "detections", axis=1)
    model.graph.output.append(helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["detections", 7]))


def load_written(content: bytes, outputs: Sequence[str]) -> Callable[..., dict[str, Tensor]]:
    """Load a file that was written here a moment ago, as a function from its inputs to its outputs by name."""
    session = make_session(content)
    names = [value.name for value in session.get_inputs()]

    def call(*values: Tensor) -> dict[str, Tensor]:
        feeds = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        results = run_session(session, outputs, feeds)
        return {name: torch.from_numpy(result) for name, result in zip(outputs, results, strict=True)}

    return call


def make_session(content: bytes, *, num_threads: int | None = None) -> Any:
    """Make a session of onnxruntime on the CPU, by default with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def make_run_options() -> Any:
    """Make options of one run of a session; another thread ends the run by their `terminate`."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    options.log_severity_level = 4  # errors are raised, and need no line of their own
    return options


def run_session(session: Any, outputs: Sequence[str], feeds: Mapping[str, Any], *, options: Any = None) -> list[Any]:
    """Compute some outputs of a session, and nothing else."""
    results: list[Any] = session.run(list(outputs), dict(feeds), options or make_run_options())
    return results
