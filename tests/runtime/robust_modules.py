"""Correct modules, losses and batches of unusual kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

from tests.runtime.blind_losses import Call, CallOfTwo
from tests.runtime.robust_loops import Graph, Parts, SparseWords, adjacency, dequantised, network, rows

Program = tuple[nn.Module, Any, Any]


def graph() -> Program:
    nodes = torch.randn(30, 8)
    return Graph(), F.cross_entropy, ((adjacency(torch.sparse_coo), nodes), nodes[:, :4].argmax(1))


def graph_in_a_mapping() -> Program:
    nodes = torch.randn(30, 8)
    batch = {"nodes": nodes, "edges": adjacency(torch.sparse_coo), "label": nodes[:, :4].argmax(1), "name": "a"}
    model = Call(lambda batch, graph: graph(batch["nodes"], batch["edges"]), Graph())
    return model, lambda outputs, batch: F.cross_entropy(outputs, batch["label"]), batch


def sparse_words() -> Program:
    counts, target = (torch.rand(32, 50) < 0.1).float(), F.one_hot(torch.arange(32) % 4).float()
    loss = lambda outputs, target: F.cross_entropy(outputs.to_dense(), target.to_dense())  # noqa: E731
    return SparseWords(), loss, (counts.to_sparse(), target.to_sparse())


def nested(layout: torch.layout) -> Program:
    parts = [torch.randn(3 + index % 5, 8) for index in range(12)]
    return Parts(), F.cross_entropy, (torch.nested.nested_tensor(parts, layout=layout), torch.arange(12) % 4)


def quantised_rows() -> Program:
    inputs, label = rows()
    return dequantised(), F.cross_entropy, (torch.quantize_per_tensor(inputs, 0.1, 10, torch.quint8), label)


def packed_sequences() -> Program:
    packed = pack_sequence([torch.randn(3 + index % 5, 6) for index in range(16)], enforce_sorted=False)
    model = Call(lambda packed, frames, head: head(frames(packed)[1][-1]), nn.GRU(6, 16), nn.Linear(16, 4))
    return model, F.cross_entropy, ((packed,), torch.arange(16) % 4)


def target_of_numpy() -> Program:
    inputs, label = rows()
    return network(), lambda outputs, label: F.cross_entropy(outputs, torch.as_tensor(label)), (inputs, label.numpy())


@dataclasses.dataclass
class Inputs:
    rows: Tensor
    scale: float = 2.0


def inputs_in_an_object() -> Program:
    inputs, label = rows()
    return Call(lambda x, layers: layers(x.rows) * x.scale, network()), F.cross_entropy, (Inputs(inputs), label)


def traced_model_of_two_inputs() -> Program:
    inputs, label = rows()
    pair = inputs, 0.1 * torch.randn(32, 8)
    return (
        torch.jit.trace(CallOfTwo(lambda one, two, layers: layers(one + two), network()), pair),
        F.cross_entropy,
        (pair, label),
    )


def scripted_part_and_loss() -> Program:
    model = nn.Sequential(nn.Linear(8, 8), torch.jit.script(network()))
    return model, torch.jit.script(nn.CrossEntropyLoss()), rows()


def reentrant_checkpoints() -> Program:
    run = lambda x, first, layers: checkpoint(layers, first(x), use_reentrant=True)  # noqa: E731
    return Call(run, nn.Linear(8, 8), network()), F.cross_entropy, rows()


@dataclasses.dataclass
class Summed:
    logits: Any
    total: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.total = self.logits.sum()


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def formed(form: Callable[[Tensor], Any]) -> Program:
    """Make a network whose outputs have a form of their own."""
    loss = lambda o, label: F.cross_entropy(o["logits"] if isinstance(o, dict) else o.logits, label)  # noqa: E731
    return Call(lambda x, layers: form(layers(x)), network()), loss, rows()


NO_ROWS = torch.randn(0, 8), torch.zeros(0, dtype=torch.long)
PROGRAMS: dict[str, Callable[[], Program]] = {
    "a_sparse_adjacency": graph,
    "a_mapping_with_a_sparse_adjacency": graph_in_a_mapping,
    "sparse_inputs_outputs_and_targets": sparse_words,
    "a_jagged_tensor": partial(nested, torch.jagged),
    "a_nested_tensor": partial(nested, torch.strided),
    "quantised_rows": quantised_rows,
    "packed_sequences": packed_sequences,
    "a_target_of_numpy": target_of_numpy,
    "inputs_in_an_object": inputs_in_an_object,
    "a_traced_model_of_two_inputs": traced_model_of_two_inputs,
    "a_scripted_part_and_loss": scripted_part_and_loss,
    "reentrant_checkpoints": reentrant_checkpoints,
    "outputs_that_compute_a_field": partial(formed, Summed),
    "outputs_with_slots": partial(formed, Slotted),
    "outputs_with_functions_and_none": partial(
        formed, lambda logits: {"logits": logits, "by": len, 3: None, "parts": [logits.detach(), "text"]}
    ),
    "no_samples": lambda: (network(), F.cross_entropy, NO_ROWS),
    "no_samples_in_the_first_batch": lambda: (network(), F.cross_entropy, [NO_ROWS, rows()]),
    "one_sample": lambda: (network(), F.cross_entropy, tuple(each[:1] for each in rows())),
}
