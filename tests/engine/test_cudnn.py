"""`train.cudnn`: the switch of the backend, and batch norms that leave cuDNN alone, seen by a spy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sightline.config.run_config import Train
from sightline.engine.device.numerics import cudnn_enabled, set_backends
from sightline.instrument.formats import is_tf32_allowed
from sightline.layers.native_batch_norm import disable_cudnn_batch_norm
from tests.runs.small import PLAIN, small_run


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    before = torch.backends.cudnn.enabled
    yield
    set_backends(Train(epochs=1, batch_size=1))
    torch.backends.cudnn.enabled = before


@pytest.mark.parametrize(("level", "is_enabled"), [("on", True), ("off", False), ("all_but_batch_norm", True)])
def test_the_switch(level: Any, is_enabled: bool) -> None:
    set_backends(Train(epochs=1, batch_size=1, cudnn=level))
    assert torch.backends.cudnn.enabled is is_enabled
    with cudnn_enabled("off"):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled is is_enabled


def test_matrix_products_round_their_factors_only_under_tf32() -> None:
    for precision, is_rounded in (("float32", False), ("tf32", True), ("bf16", False)):
        set_backends(Train(epochs=1, batch_size=1, precision=precision))
        assert is_tf32_allowed(torch.backends.cuda, "matmul") is is_rounded


def spied(call: Callable[..., Any], *given: Any, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether cuDNN was allowed, in every call of torch's batch norm."""
    allowed: list[bool] = []
    original = torch.batch_norm
    monkeypatch.setattr(torch, "batch_norm", lambda *args: allowed.append(args[8]) or original(*args))
    call(*given)
    return allowed


def test_batch_norm_alone_leaves_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    batch = torch.randn(3, 2, 6, 6)
    plain = copy.deepcopy(model)
    assert spied(model, batch, monkeypatch=monkeypatch) == [True, True]
    spared = disable_cudnn_batch_norm(copy.deepcopy(plain))
    assert spied(spared, batch, monkeypatch=monkeypatch) == [False, False]
    assert torch.backends.cudnn.enabled
    assert spared.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(spared(batch), plain(batch), rtol=0, atol=0)
    assert isinstance(spared[1], nn.BatchNorm2d)
    assert isinstance(copy.deepcopy(spared)[1], nn.BatchNorm2d)
    assert disable_cudnn_batch_norm(spared) is spared


def test_a_run_takes_it_from_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    built = small_run(*PLAIN, "train.cudnn=all_but_batch_norm")
    batch = built.job.stream.reader([part for part in built.job.stream.plan.step_keys(0)[0][0]][:4])
    allowed = spied(built.job.task.outputs, built.job.model, batch, monkeypatch=monkeypatch)
    assert allowed
    assert not any(allowed)


def test_tf32_on_a_cpu_is_float32_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    built = small_run("train.precision=tf32")
    assert "tf32 rounds products on NVIDIA GPUs alone; on this cpu it is float32" in caplog.text
    assert {parameter.dtype for parameter in built.job.model.parameters()} == {torch.float32}
