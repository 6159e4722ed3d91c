"""Loops whose numbers are on a GPU, or on several devices. The meta device stands in for a GPU: it mixes with no other
device, and a number of it cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import sightline
from sightline.contract import pytree
from sightline.doctor.watch import loop, numbers, passes, ranks
from tests.runtime import planted_loops
from tests.waits import counted_waits

_GPU, _NUM_STEPS = "meta", 12


class Event:
    """Event of torch that has not come; `marked` are the streams that one was recorded on."""

    marked: ClassVar[list[Any]] = []

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, stream: Any = None) -> None:
        self.marked.append(stream)

    def query(self) -> bool:
        return False


def test_numbers_of_a_gpu_are_read_once_its_own_queue_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may keep the first GPU as the current one, and train on the second."""
    Event.marked.clear()
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: device)
    monkeypatch.setattr(ranks, "take_sample", torch.clone)
    state = loop.Loop({}, every=1)
    board: Any = SimpleNamespace(rank=0)
    with FakeTensorMode():  # which has devices that the machine lacks
        values = torch.ones(3, device="cuda:1")
        loop.Reader(state).read(values.sum(), lambda value: ())
        call = loop.ForwardCall(nn.Identity(), ((values,), {}), {}, has_gradient=True)
        ranks.RankMonitor(state, board, lambda found: None).on_forward(state, call)
    assert Event.marked == [torch.device("cuda:1")] * 2


@pytest.fixture
def numbers_arrive_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers arrive when the next update begins, as those of a GPU do."""
    monkeypatch.setattr(torch, "Event", Arrived)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: device)
    monkeypatch.setattr(loop.Reader, "is_late", lambda reader, value: True)


class Arrived(Event):
    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


_READ = {"non-finite", "constant-output", "large-update", "no-update", "dead-units", "ema", "skipped-updates"}


@pytest.mark.usefixtures("numbers_arrive_late")
@pytest.mark.parametrize("name", [name for name, plant in planted_loops.PLANTS.items() if plant.code in _READ])
def test_a_bug_whose_numbers_arrive_late_has_the_same_cause(name: str) -> None:
    """By then weights may be NaN, which a later pass would be blamed for, and the loop may have ended."""
    torch.manual_seed(0)
    plant = planted_loops.PLANTS[name]
    findings = plant.run().findings
    assert [(each.code, each.cause) for each in findings[:1]] == [(plant.code, plant.cause)]
    assert (findings[0].where.step or 0) <= plant.step or plant.step == 0


@pytest.mark.usefixtures("numbers_arrive_late")
def test_a_layer_is_not_searched_with_weights_that_a_late_number_has_spoilt() -> None:
    torch.manual_seed(0)
    finding = planted_loops.train(planted_loops.Overflow(), bisect=True).findings[0]
    assert finding.evidence["stage"] == "forward"
    assert "layer" not in finding.evidence


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take tensors of the meta device as those of a GPU, whose numbers never arrive."""
    read = loop.Reader.read

    def read_on_host(reader: loop.Reader, value: Tensor, judge: loop.Judge) -> Iterable[loop.Found]:
        return read(reader, value, judge) if value.device.type == "cpu" else ()

    for module in (pytree, loop, passes):
        monkeypatch.setattr(module, "is_dense", lambda tensor: tensor.layout is torch.strided)
    monkeypatch.setattr(loop.Reader, "read", read_on_host)


def net(device: str) -> nn.Sequential:
    with torch.device(device):
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def train(
    model: nn.Module, compute: Callable[[], list[Tensor]], *, dtype: torch.dtype = torch.float32, ema: Any = None
) -> None:
    """Train with the losses that `compute` returns, and an average that is evaluated after each update."""
    model.to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with sightline.watch(model, optimizer=optimizer, ema=ema):
        for _ in range(_NUM_STEPS):
            optimizer.zero_grad()
            torch.autograd.backward(compute())
            optimizer.step()
            if ema is not None:
                with torch.no_grad():
                    ema.eval()(torch.randn(32, 8))


class TwoParts(nn.Module):
    """A part on each of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = net("cpu"), net(_GPU)

    def forward(self, values: Tensor, far_values: Tensor) -> tuple[Tensor, Tensor]:
        return self.near(values), self.far(far_values)


def compute_loss(model: nn.Module) -> list[Tensor]:
    values, labels = torch.randn(32, 8, device=_GPU), torch.randint(0, 4, (32,), device=_GPU)
    return [F.cross_entropy(model(values), labels)]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_spread_over_devices_is_watched(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    model = TwoParts()

    def compute() -> list[Tensor]:
        outputs = model(*(torch.randn(32, 8, dtype=dtype, device=device) for device in ("cpu", _GPU)))
        return [output.square().mean() for output in outputs]

    train(model, compute, dtype=dtype)
    assert caplog.messages == []


@pytest.mark.usefixtures("gpu")
def test_an_average_is_kept_on_the_host(caplog: pytest.LogCaptureFixture) -> None:
    model = net(_GPU)
    train(model, lambda: compute_loss(model), ema=net("cpu"))
    assert caplog.messages == []


@pytest.mark.usefixtures("gpu")
def test_the_scale_of_a_loss_is_not_read(caplog: pytest.LogCaptureFixture) -> None:
    """A GradScaler's is a number on the GPU."""
    model, scale = net(_GPU), torch.ones((), device=_GPU)
    train(model, lambda: [loss * scale for loss in compute_loss(model)])
    assert caplog.messages == []


@pytest.mark.parametrize("is_held", [False, True])
def test_updates_are_measured_without_a_wait(is_held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch norm that keeps what it has learned, the statistics are read once: at the first pass."""
    monkeypatch.setattr(loop.Reader, "read", lambda *_: ())
    monkeypatch.setattr(numbers, "_is_sound", lambda *_: False)  # as of numbers on a GPU, which it does not read
    model = net("cpu")
    model(torch.randn(32, 8))
    model[1].train(not is_held)
    with counted_waits(monkeypatch) as waits:
        train(model, lambda: [model(torch.randn(32, 8)).square().mean()])
    judged = {place: waits[place] for place in waits if place.endswith(("watch/modes.py", "watch/numbers.py"))}
    assert sum(judged.values()) == is_held, judged


def test_after_a_failed_kernel_the_loop_alone_speaks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the monitors still ask of the GPU fails the same way."""
    error = RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")

    def fail(*_: Any, waits: bool = False) -> NoReturn:
        raise error

    monkeypatch.setattr(loop.Reader, "poll", fail)
    model = net("cpu")
    with pytest.raises(RuntimeError, match="device-side assert"), sightline.watch(model):
        fail()
    assert caplog.messages == []
