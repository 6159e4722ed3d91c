"""Profiles of real steps: the run keeps its bits, tables add up, and time and memory are where they were spent."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

from sightline.config import read_config
from sightline.contract.errors import RunError
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.instrument.memory import peak_rise
from sightline.workbench.describe.profiling import NUM_WARM, compute_costs, profile_steps, run_steps
from tests.command import run_here, succeed

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = ("data.num_points=64", "data.train_size=96", "data.test_size=24", "train.batch_size=8")


def built_of(*overrides: str, name: str = "classify/synthetic_shapes_dgcnn") -> TrainingSetup:
    return build(read_config(CONFIGS / f"{name}.yaml", [*SMALL, *overrides]), World())


@pytest.mark.parametrize("workers", [0, 1])
def test_the_run_keeps_its_bits(workers: int) -> None:
    plain, traced = (built_of(f"loader.workers={workers}").job for _ in range(2))
    torch.manual_seed(7)  # dropout
    run_steps(plain, World(), NUM_WARM + 3, lambda record: None)
    torch.manual_seed(7)
    profile_steps(traced, World(), num_steps=3)
    for ours, theirs in zip(traced.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in traced.model.modules())


def test_modules_and_operators_are_measured_and_the_trace_is_a_file_for_viewers(tmp_path: Path) -> None:
    job = built_of("train.micro_batches=2").job
    found = profile_steps(job, World(), num_steps=2, trace=tmp_path / "trace.json.gz")
    assert 0 < sum(row["seconds"] for row in found["modules"]) < found["step_s"]
    assert 0 < sum(row["seconds"] for row in found["operators"]) < found["step_s"]
    assert all(row["calls"] == 2 for row in found["modules"]), "one for each micro-batch"
    assert next(row["class"] for row in found["modules"] if row["path"] == "edges.0") == "EdgeConv"
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert {"module: edges.0", "end of data", "ProfilerStep#2"} <= {event["name"] for event in events}


def test_a_trace_that_the_disk_cuts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "export_chrome_trace", lambda self, path: Path(path).write_text('{"traceEvents": ['))
    with pytest.raises(RunError, match="could not write its trace; free some space"):
        profile_steps(built_of().job, World(), num_steps=1, trace=tmp_path / "trace.json.gz")


class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        time.sleep(0.03)
        return values.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        time.sleep(0.05)
        return gradient


class Asleep(nn.Module):
    """Takes 30 ms forward, 50 ms backward, and more on a busy machine."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = Slow.apply(self.inner(values))
        return out


class Hoard(nn.Module):
    """Saves 8 MB for its backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.inner(values)
        many = out.flatten()[:1].expand(2_000_000) * 1.0
        return out + 0.0 * many.exp().sum()


def test_time_and_memory_are_where_they_were_spent() -> None:
    job = built_of().job
    head = job.model.get_submodule("head")
    assert isinstance(head, nn.Sequential)
    head[0], head[2] = Asleep(head[0]), Hoard(head[2])
    plain_bytes = profile_steps(built_of().job, World(), num_steps=1)["peak_bytes"]
    found = profile_steps(job, World(), num_steps=2)
    rows = {row["path"]: row for row in found["modules"]}
    asleep = rows["head.0"]
    assert asleep["class"] == "Asleep"
    assert asleep["seconds_backward"] >= 0.05
    assert asleep["seconds"] - asleep["seconds_backward"] >= 0.03
    assert found["step_s"] >= asleep["seconds_with_inner"] >= asleep["seconds"]
    assert found["peak_bytes"] >= plain_bytes + 8_000_000


def event(name: str, start: float, end: float, around: Any = None, *, number: int = -1, **more: Any) -> Any:
    """Make an event as torch's profiler lists it, with the time that it takes beyond inner ones in `alone`."""
    span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    own = {"self_cpu_time_total": end - start, "self_device_time_total": 0.0, "thread": 1, "sequence_nr": number}
    if around is not None:
        around.self_cpu_time_total -= end - start
    kind = SimpleNamespace(name="CPU")
    return SimpleNamespace(name=name, time_range=span, cpu_parent=around, device_type=kind, **(own | more))


NODE = "autograd::engine::evaluate_function: "


def make_step(**of_product: Any) -> list[Any]:
    """Make the events of a step of 1,000 us: a module in the model forward, and the backward pass of both."""
    step = event("ProfilerStep*", 0, 1000)
    model = event("module: ", 110, 300, step)
    inner = event("module: a", 120, 220, model)
    linear = event("aten::addmm", 130, 200, inner, number=5, **of_product)
    relu = event("aten::relu", 290, 295, model, number=6)
    nodes = [event(f"{NODE}ReluBackward0", 400, 430, step, number=6)]
    nodes.append(event(f"{NODE}AddmmBackward0", 440, 540, step, number=5))
    product = event("aten::mm", 450, 530, nodes[1], **of_product)
    summed = event(f"{NODE}torch::autograd::AccumulateGrad", 550, 560, step)
    return [step, model, inner, linear, relu, *nodes, product, summed]


def test_times_of_a_step_by_hand() -> None:
    found = compute_costs(make_step(), num_steps=1, on_gpu=False)
    assert found["step_s"] == pytest.approx(1000e-6)
    model, inner = found["modules"]
    assert [model["path"], inner["path"], model["calls"], inner["calls"]] == ["", "a", 1, 1]
    assert model["seconds"] == pytest.approx(120e-6)  # 190 - 100 forward, 30 backward
    assert inner["seconds_backward"] == pytest.approx(110e-6)  # and its gradient, added up right after
    assert inner["seconds"] == pytest.approx(210e-6)
    assert model["seconds_with_inner"] == pytest.approx(330e-6)
    assert [row["operator"] for row in found["operators"]] == ["aten::mm", "aten::addmm", "aten::relu"]
    assert found["operators"][0]["seconds"] == pytest.approx(80e-6)


def test_times_of_a_gpu_are_those_of_its_kernels() -> None:
    found = compute_costs(make_step(self_device_time_total=400.0, thread=2), num_steps=2, on_gpu=True)
    assert [row["seconds"] for row in found["modules"]] == pytest.approx([0.0, 400e-6])
    assert found["modules"][1]["seconds_backward"] == pytest.approx(200e-6)
    with pytest.raises(RunError, match="no complete step"):
        compute_costs(make_step()[1:], num_steps=1, on_gpu=False)


def test_the_peak_is_the_largest_rise_in_the_order_of_time() -> None:
    def change(at: int, size: int, kind: str = "CPU") -> Any:
        named = SimpleNamespace(name=kind)
        return SimpleNamespace(
            name=lambda: "[memory]", device_type=lambda: named, start_ns=lambda: at, nbytes=lambda: size
        )

    changes = [change(3, 300), change(1, 100), change(2, -50), change(4, -200), change(2, 9000, "CUDA")]
    assert peak_rise(changes, torch.device("cpu")) == 350
    assert peak_rise([], torch.device("cpu")) == 0


def test_a_step_that_fails_before_the_trace_ends_the_profiler_unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    """To stop in the warm-up would begin a trace, with which a GPU's profiler crashes; the next profile is whole."""
    started = []
    monkeypatch.setattr(profile, "start_trace", lambda self: started.append(self))
    with monkeypatch.context() as patch:
        built = built_of()
        patch.setattr(type(built.job.task), "losses", lambda *_: 1 / 0)
        with pytest.raises(RunError, match="a training step failed: ZeroDivisionError"):
            profile_steps(built.job, World(), num_steps=1)
    assert not started
    monkeypatch.undo()
    assert profile_steps(built_of().job, World(), num_steps=1)["modules"]


def test_arms_are_timed_beside_the_config(tmp_path: Path) -> None:
    """Four times the points take longer forward; the optimiser's share is that of the weights."""
    words = ("profile", CONFIGS / "classify/synthetic_shapes_pointnet.yaml", *SMALL, "--steps", 2, "--device", "cpu")
    out = succeed(*words, "--arm", "many=data.num_points=512 train.batch_size=16", "--json", tmp_path / "arms.json")
    arms = json.loads((tmp_path / "arms.json").read_text())["arms"]
    assert {name: each["num_samples"] for name, each in arms.items()} == {"config": 8, "many": 16}
    assert all(sum(each["parts"].values()) <= 1.05 * each["step_s"] for each in arms.values())
    assert "many" in out.out
    for more in (("--find-rate",), ("--trace", tmp_path / "trace.json.gz")):
        assert "--arm" in run_here(*words, "--arm", "many=data.num_points=512", *more).err
    assert "its own" in run_here(*words, "--arm", "a=seed=1", "--arm", "a=seed=2").err
