"""Loops of unusual tensors, models and threads have the same bits under `watch`, of which nothing is left."""

from __future__ import annotations

import gc
import logging
import pickle
import random
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from sightline.contract.pytree import is_dense
from sightline.doctor.objects import read_variables
from sightline.doctor.watch.loss_graph import is_misread
from sightline.doctor.watch.scores import ScoreMonitor
from tests.cases import run_each
from tests.runtime.odd_healthy_loops import mlp
from tests.runtime.robust_loops import LOOPS, network, rows


def _take_bits(models: Sequence[nn.Module]) -> list[Any]:
    """The numbers of all parameters and buffers, and the states of the global generators."""
    tensors = [tensor.detach() for model in models for tensor in model.state_dict().values()]
    dense = [tensor if tensor.layout is torch.strided else tensor.to_dense() for tensor in tensors]
    bits = [tensor.contiguous().flatten().view(torch.uint8).tolist() for tensor in dense]
    return [*bits, torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]


def _seed() -> None:
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)


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


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")  # said once in a process
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


@run_each(
    "before, after, is_wrong",
    [
        ((2, 8, 4, 5), (2, 20, 8), True),
        ((2, 20, 8), (2, 8, 4, 5), True),
        ((2, 20, 8), (2, 4, 20, 2), True),
        ((2, 20, 8), (2, 20, 4, 2), False),
        ((2, 4, 5, 8), (2, 20, 8), False),
        ((2, 16, 4, 4), (2, 16, 16), False),
        ((2, 1, 4, 5), (2, 20, 1), False),
        ((16, 6, 8, 8), (16, 128, 3), True),  # two anchors of three classes, not moved to the end
        ((16, 6, 8, 3), (16, 48, 3), False),  # rows of three pixels, in their order
    ],
)
def test_maps_are_moved_before_they_are_read_as_rows(
    before: tuple[int, ...], after: tuple[int, ...], is_wrong: bool
) -> None:
    assert is_misread(before, after) == is_wrong


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


def test_an_error_of_the_profile_is_a_failed_check_and_none_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("of the profile")

    def measure(scores: Tensor, labels: Tensor) -> float:
        return float((scores.argmax(1) == labels).float().mean())

    monkeypatch.setattr(ScoreMonitor, "_record", fail)
    model = mlp(8, 16, 4)
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer, check=False) as watch:
        inputs, label = rows()
        F.cross_entropy(model(inputs), label).backward()
        optimizer.step()
        with torch.no_grad():
            figures = [measure(model(inputs), label) for _ in range(3)]
    assert len(figures) == 3
    assert sys.getprofile() is None
    assert "of the profile" in str(watch.report)


def test_variables_are_read_without_a_copy_that_stays() -> None:
    class Big:
        pass

    def program(*, is_looked_at: bool) -> tuple[bool, list[str]]:
        big = Big()
        reference = weakref.ref(big)
        looked = locals() if is_looked_at else {}
        variables = read_variables(sys._getframe())
        is_read = variables["big"] is big
        del big, variables
        return is_read and reference() is None, sorted(looked)

    assert program(is_looked_at=False) == (True, [])
    assert "big" in program(is_looked_at=True)[1], "what the program holds is not emptied"


def test_nothing_is_left_in_a_model_after_its_loop() -> None:
    """A saved model needs no sightline, and neither the watch nor the optimiser lives on with it."""
    torch.manual_seed(0)
    model, average = mlp(8, 16, 4), mlp(8, 16, 4)
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer, ema=average) as watch:
        for inputs, label in (rows() for _ in range(8)):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), label).backward()
            optimizer.step()
    for module in (*model.modules(), *average.modules()):
        assert {name: value for name, value in vars(module).items() if "hooks" in name and value} == {}
    assert b"sightline" not in pickle.dumps(model)
    left = [weakref.ref(watch), weakref.ref(optimizer)]
    del watch, optimizer
    for _ in range(2):  # the first closes what has a finalizer in a cycle, the second frees the rest of the cycle
        gc.collect()
    assert [each() for each in left] == [None, None]
