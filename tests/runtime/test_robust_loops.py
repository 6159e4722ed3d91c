"""Correct loops of unusual tensors and models: nothing fails, nothing is found, and the run has the same bits."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from sightline.contract.pytree import is_dense
from tests.runtime.robust_loops import LOOPS, Graph, adjacency, network, rows


def _take_bits(models: Sequence[nn.Module]) -> list[Any]:
    """The numbers of all parameters and buffers, and the states of the global generators."""
    tensors = [tensor.detach() for model in models for tensor in model.state_dict().values()]
    dense = [tensor if tensor.layout is torch.strided else tensor.to_dense() for tensor in tensors]
    return [
        *(tensor.contiguous().flatten().view(torch.uint8).tolist() for tensor in dense),
        torch.get_rng_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),
    ]


def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOOPS)
def test_a_correct_loop_is_watched(name: str, caplog: pytest.LogCaptureFixture) -> None:
    _seed()
    program = LOOPS[name]()
    program.train()
    plain = _take_bits(program.models)
    _seed()
    program = LOOPS[name]()
    caplog.set_level(logging.WARNING, logger="sightline")
    with sightline.watch(program.models, optimizer=program.optimizers) as watch:
        program.train()
    assert [each.getMessage() for each in caplog.records if each.name.startswith("sightline")] == []
    assert [str(each) for each in watch.findings if each.severity != "note"] == []
    assert _take_bits(program.models) == plain


def test_what_has_numbers_in_memory_is_dense() -> None:
    inputs = torch.randn(4, 3)
    assert all(map(is_dense, (inputs, inputs.T, inputs[:0], torch.tensor(1), nn.Parameter(inputs), inputs.bool())))
    jagged = torch.nested.nested_tensor([inputs, inputs[:2]], layout=torch.jagged)
    others = [inputs.to_sparse(), inputs.to_sparse_csr(), jagged, inputs.to("meta"), nn.LazyLinear(2).weight]
    assert not any(map(is_dense, others))
    inside: list[bool] = []

    def observe(row: Tensor) -> Tensor:
        inside.extend((is_dense(row), is_dense(inputs)))
        return row

    torch.func.vmap(observe)(inputs)
    torch.func.grad(lambda row: observe(row).sum())(inputs)
    assert inside == [False, True, False, True]


def _watch_graph(change: Any) -> list[str]:
    """Train a graph network of a sparse adjacency; `change` plants a bug where the outputs are."""
    torch.manual_seed(0)
    model, edges = Graph(), adjacency(torch.sparse_csr)
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(20):
            nodes = torch.randn(30, 8)
            optimizer.zero_grad()
            F.cross_entropy(change(model(edges, nodes)), nodes[:, :4].argmax(1)).backward()
            optimizer.step()
    return [each.code for each in watch.findings if each.severity != "note"]


def test_bugs_beside_sparse_tensors_are_found() -> None:
    assert _watch_graph(lambda outputs: outputs) == []
    assert _watch_graph(lambda outputs: outputs.softmax(1)) == ["double-softmax"]
    assert "non-finite" in _watch_graph(lambda outputs: outputs / 0)


@pytest.mark.parametrize("is_constant", [True, False])
def test_constant_outputs_of_words_are_found(is_constant: bool) -> None:
    """The first input has one axis."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(10):
            words = torch.randint(0, 50, (32,))
            optimizer.zero_grad()
            F.cross_entropy(model(words), words % 4).backward()
            optimizer.step()
            with torch.no_grad():
                model[0].weight *= 0.0 if is_constant else 1.0
    assert ("constant-output" in {each.code for each in watch.findings}) == is_constant


def test_the_same_words_again_and_again_are_found() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    words = torch.randint(0, 50, (32,))
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(10):
            optimizer.zero_grad()
            F.cross_entropy(model(words), words % 4).backward()
            optimizer.step()
    assert [each.code for each in watch.findings if each.severity != "note"] == ["same-batch"]


@pytest.mark.parametrize("clears", [True, False])
def test_a_bug_in_a_thread_of_its_own_is_found(clears: bool) -> None:
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train() -> None:
        for _ in range(12):
            inputs, target = rows()
            if clears:
                optimizer.zero_grad()
            F.cross_entropy(model(inputs), target).backward()
            optimizer.step()

    with sightline.watch(model, optimizer=optimizer) as watch:
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert {each.code for each in watch.findings if each.severity != "note"} == (
        {*()} if clears else {"gradients-kept"}
    )
    assert all(f"{each.where.file}" == __file__ for each in watch.findings)


def test_two_threads_that_train_at_once_are_watched_apart() -> None:
    """Both are in the step of their optimiser at the same time; one of them never clears its gradients.

    A watch begins and ends while no other thread is in a step: torch reads its hooks of all optimisers without a lock.
    """
    torch.manual_seed(0)
    barrier, codes = threading.Barrier(2), dict[bool, set[str]]()

    class Meeting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            barrier.wait()
            return super().step(closure)

    def train(*, clears: bool) -> None:
        model = network()
        optimizer = Meeting(model.parameters(), lr=0.01)
        with sightline.watch(model, optimizer=optimizer) as watch:
            barrier.wait()  # torch's list of hooks must not change while another thread's step reads it
            for _ in range(12):
                if clears:
                    optimizer.zero_grad()
                inputs, target = rows()
                F.cross_entropy(model(inputs), target).backward()
                optimizer.step()
            barrier.wait()
        codes[clears] = {each.code for each in watch.findings if each.severity != "note"}
        assert watch.report.figures == {"updates": 12}

    threads = [threading.Thread(target=train, kwargs={"clears": clears}) for clears in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {True: set(), False: {"gradients-kept"}}


@pytest.mark.parametrize("value", [1.0, 1e25])
def test_a_running_variance_of_infinity_is_found_at_the_end(value: float) -> None:
    """Of one batch with a huge number: loss, gradients and weights are finite at every update."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step in range(8):
            rows = torch.randn(6, 4)
            rows[0, 0] = value if step == 5 else 1.0
            optimizer.zero_grad()
            F.cross_entropy(model(rows), torch.arange(6) % 3).backward()
            optimizer.step()
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    found = [finding for finding in watch.findings if finding.severity != "note"]
    assert [finding.code for finding in found] == ["non-finite"] * (value > 1), found
    assert all("'1.running_var' is not finite" in finding.summary for finding in found)
