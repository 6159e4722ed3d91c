"""Correct modules, losses and batches of unusual kinds: all checks run or are left out, and nothing is found."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

import sightline
from sightline.contract.errors import UserError
from tests.marks import long_but
from tests.runtime.robust_loops import Dequantised, Graph, SparseWords, adjacency, network, rows

Program = tuple[nn.Module, Any, Any]
pytestmark = pytest.mark.filterwarnings("ignore")  # torch deprecates scripts, and calls compressed tensors a prototype
PROGRAMS: dict[str, Callable[[], Program]] = {}


def program(make: Callable[[], Program]) -> Callable[[], Program]:
    PROGRAMS[make.__name__] = make
    return make


# --- tensors without a number in memory for each place ----------------------------------------------------------------


def _graph(layout: torch.layout) -> Program:
    nodes = torch.randn(30, 8)
    return Graph(), F.cross_entropy, ((adjacency(layout), nodes), nodes[:, :4].argmax(1))


@program
def a_sparse_adjacency() -> Program:
    return _graph(torch.sparse_coo)


class OfMapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()

    def forward(self, batch: Any) -> Tensor:
        return self.graph(batch["nodes"], batch["edges"])


@program
def a_mapping_with_a_sparse_adjacency() -> Program:
    nodes = torch.randn(30, 8)
    batch = {"nodes": nodes, "edges": adjacency(torch.sparse_coo), "label": nodes[:, :4].argmax(1), "name": "a"}
    return OfMapping(), lambda outputs, batch: F.cross_entropy(outputs, batch["label"]), batch


@program
def sparse_inputs_outputs_and_targets() -> Program:
    counts, target = (torch.rand(32, 50) < 0.1).float(), F.one_hot(torch.arange(32) % 4).float()

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(outputs.to_dense(), target.to_dense())

    return SparseWords(), loss, (counts.to_sparse(), target.to_sparse())


class OfParts(nn.Module):
    """A model of samples with a number of rows each, which are a nested tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, parts: Tensor) -> Tensor:
        return torch.stack([part.mean(0) for part in self.layers(parts).unbind()])


def _nested(layout: torch.layout) -> Program:
    parts = [torch.randn(3 + index % 5, 8) for index in range(12)]
    return OfParts(), F.cross_entropy, (torch.nested.nested_tensor(parts, layout=layout), torch.arange(12) % 4)


@program
def a_jagged_tensor() -> Program:
    return _nested(torch.jagged)


@program
def a_nested_tensor() -> Program:
    return _nested(torch.strided)


@program
def quantised_rows() -> Program:
    inputs, label = rows()
    return Dequantised(), F.cross_entropy, (torch.quantize_per_tensor(inputs, 0.1, 10, torch.quint8), label)


@program
def packed_sequences() -> Program:
    packed = pack_sequence([torch.randn(3 + index % 5, 6) for index in range(16)], enforce_sorted=False)

    class OfPacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frames, self.classes = nn.GRU(6, 16), nn.Linear(16, 4)

        def forward(self, packed: Any) -> Tensor:
            return self.classes(self.frames(packed)[1][-1])

    return OfPacked(), F.cross_entropy, ((packed,), torch.arange(16) % 4)


@program
def a_target_of_numpy() -> Program:
    inputs, label = rows()
    return network(), lambda outputs, label: F.cross_entropy(outputs, torch.as_tensor(label)), (inputs, label.numpy())


@dataclasses.dataclass
class Inputs:
    rows: Tensor
    scale: float = 2.0


class OfObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, inputs: Inputs) -> Tensor:
        return self.layers(inputs.rows) * inputs.scale


@program
def inputs_in_an_object() -> Program:
    inputs, label = rows()
    return OfObject(), F.cross_entropy, (Inputs(inputs), label)


# --- models that torch runs itself ------------------------------------------------------------------------------------


@program
def a_traced_model_of_two_inputs() -> Program:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, points: Tensor, others: Tensor) -> Tensor:
            return self.layers(points + others)

    inputs, label = rows()
    others = 0.1 * torch.randn(32, 8)
    return torch.jit.trace(Sum(), (inputs, others)), F.cross_entropy, ((inputs, others), label)


@program
def a_scripted_part_and_loss() -> Program:
    model = nn.Sequential(nn.Linear(8, 8), torch.jit.script(network()))
    return model, torch.jit.script(nn.CrossEntropyLoss()), rows()


@program
def reentrant_checkpoints() -> Program:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layers = nn.Linear(8, 8), network()

        def forward(self, inputs: Tensor) -> Any:
            return checkpoint(self.layers, self.first(inputs), use_reentrant=True)

    return Checkpointed(), F.cross_entropy, rows()


# --- outputs of any form ----------------------------------------------------------------------------------------------


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


class Formed(nn.Module):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layers, self.form = network(), form

    def forward(self, inputs: Tensor) -> Any:
        return self.form(self.layers(inputs))


def _of_logits(outputs: Any, label: Tensor) -> Tensor:
    return F.cross_entropy(outputs.logits, label)


@program
def outputs_that_compute_a_field() -> Program:
    return Formed(Summed), _of_logits, rows()


@program
def outputs_with_slots() -> Program:
    return Formed(Slotted), _of_logits, rows()


@program
def outputs_with_functions_and_none() -> Program:
    model = Formed(lambda logits: {"logits": logits, "by": len, 3: None, "parts": [logits.detach(), "text"]})
    return model, lambda outputs, label: F.cross_entropy(outputs["logits"], label), rows()


# --- few samples ------------------------------------------------------------------------------------------------------


@program
def no_samples() -> Program:
    return network(), F.cross_entropy, (torch.randn(0, 8), torch.zeros(0, dtype=torch.long))


@program
def no_samples_in_the_first_batch() -> Program:
    return network(), F.cross_entropy, [(torch.randn(0, 8), torch.zeros(0, dtype=torch.long)), rows()]


@program
def one_sample() -> Program:
    inputs, label = rows()
    return network(), F.cross_entropy, (inputs[:1], label[:1])


KEPT = ("a_sparse_adjacency", "a_jagged_tensor", "a_scripted_part_and_loss", "reentrant_checkpoints", "no_samples")
KEPT += ("outputs_with_slots", "a_traced_model_of_two_inputs", "a_target_of_numpy")


@pytest.mark.parametrize("name", long_but(KEPT, PROGRAMS))
def test_a_correct_module_is_checked(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, loss, batch = PROGRAMS[name]()
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    report = sightline.check(model, loss, batch, optimizer=torch.optim.Adam(model.parameters()))
    assert [str(each) for each in report.findings if each.severity != "note"] == []
    assert "could not run" not in str(report)
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


# --- what is still found, and what is said ----------------------------------------------------------------------------


def _list_errors(model: nn.Module, batch: Any, loss: Any = F.cross_entropy) -> list[str]:
    report = sightline.check(model, loss, batch, optimizer=torch.optim.Adam(model.parameters()))
    return [each.code for each in report.findings if each.severity != "note"]


@pytest.mark.parametrize("wrap", [torch.jit.script, lambda model: torch.jit.trace(model, torch.randn(2, 8))])
def test_a_bug_of_a_scripted_model_is_found_by_its_outputs(wrap: Any) -> None:
    torch.manual_seed(0)
    assert _list_errors(wrap(nn.Sequential(network(), nn.Softmax(1))), rows()) == ["double-softmax"]


def test_a_bug_beside_a_sparse_tensor_is_found() -> None:
    torch.manual_seed(0)

    def compare(outputs: Tensor, label: Tensor) -> Tensor:
        return F.mse_loss(outputs[:, :1], label.float())

    model, _, batch = _graph(torch.sparse_csr)
    assert _list_errors(model, batch, compare) == ["loss-form"]


def test_a_bug_behind_a_reentrant_checkpoint_is_found() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layers = nn.Linear(8, 8), nn.Sequential(network(), nn.Softmax(1))

        def forward(self, inputs: Tensor) -> Any:
            return checkpoint(self.layers, self.first(inputs), use_reentrant=True)

    assert _list_errors(Twice(), rows()) == ["double-softmax"]


def test_a_model_that_cannot_be_copied_is_named() -> None:
    class Single(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
            raise RuntimeError("there is one of these")

    with pytest.raises(UserError, match=r"the model cannot be copied.*there is one of these"):
        sightline.check(nn.Sequential(network(), Single(4, 4)), F.cross_entropy, rows())
    model = network()
    model.lock = threading.Lock()  # the copy shares it
    assert _list_errors(model, rows()) == _list_errors(network(), rows())
    lazy = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(4))
    with pytest.raises(UserError, match=r"'0.weight' has no size yet; call the model with a batch first"):
        sightline.check(lazy, F.cross_entropy, rows())
    lazy(rows()[0])
    sightline.check(lazy, F.cross_entropy, rows())
