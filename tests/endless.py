"""A file of ONNX whose network does not end: its first output goes through a loop without a last turn."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

__all__ = ["write_endless"]


def write_endless(sound: Path, path: Path) -> None:
    """Write the sound file with such a loop, and a description that fits it."""
    model = onnx.load_model_from_string(sound.read_bytes())
    graph, output = model.graph, model.graph.output[0].name
    for node in graph.node:
        for names in (node.input, node.output):
            for place in [place for place, name in enumerate(names) if name == output]:
                names[place] = "before_the_loop"
    turn, goes_on, value = ("turn", TensorProto.INT64, []), ("goes_on", TensorProto.BOOL, []), TensorProto.FLOAT
    body = helper.make_graph(
        [helper.make_node("Identity", ["goes_on"], ["still"]), helper.make_node("Neg", ["value"], ["negative"])],
        "body",
        [*(helper.make_tensor_value_info(*each) for each in (turn, goes_on, ("value", value, None)))],
        [helper.make_tensor_value_info("still", *goes_on[1:]), helper.make_tensor_value_info("negative", value, None)],
    )
    graph.initializer.append(helper.make_tensor("always", TensorProto.BOOL, [], [True]))
    graph.node.append(helper.make_node("Loop", ["", "always", "before_the_loop"], [output], body=body))
    path.write_bytes(model.SerializeToString())
    description = json.loads(sound.with_name(f"{sound.name}.json").read_text())
    description["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.json").write_text(json.dumps(description))
