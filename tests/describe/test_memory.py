"""The estimate of the peak memory against two other ways to measure it, and its parts against hand-worked numbers."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from sightline.config import read_config
from sightline.contract.pytree import tree_leaves
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.engine.train import train_step
from sightline.instrument import record
from sightline.workbench.describe.memory import MemoryTracker, estimate_memory, first_samples, storage_bytes

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "classify"
SIZE = {"data.num_points": "128", "data.train_size": "96", "train.batch_size": "24"}


def built_of(name: str, *overrides: str) -> TrainingSetup:
    values = SIZE | dict(override.split("=", 1) for override in overrides)
    path = CONFIGS / f"synthetic_shapes_{name}.yaml"
    return build(read_config(path, [f"{key}={value}" for key, value in values.items()]), World())


class Laps:
    def end_phase(self, name: str) -> None:
        """Not of interest here."""


def held(built: TrainingSetup) -> Iterator[Tensor]:
    """What a run holds from step to step."""
    yield from built.job.model.parameters()
    yield from built.job.model.buffers()
    yield from (tensor for _, tensor in tree_leaves(list(built.job.optimizer.state.values())))
    if built.job.ema is not None:
        yield from built.job.ema.parameters()
        yield from built.job.ema.buffers()


def measured(built: TrainingSetup) -> int:
    """The peak of the second step of the run itself: what torch's allocator gave out, and what was held before.

    The profiler sees every request, those inside of operators too, and shares nothing with the estimate's counter.
    """
    job = built.job
    batch = job.stream.reader(first_samples(job, built.config.train.batch_size))
    train_step(job, job.model, [batch], World(), Laps())
    job.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    before = storage_bytes([*held(built), *(tensor for _, tensor in tree_leaves(batch))])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train_step(job, job.model, [batch], World(), Laps())
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return before + peak


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        pytest.param("pointnet", (), marks=pytest.mark.long),
        pytest.param("dgcnn", (), marks=pytest.mark.long),
        ("dgcnn", ("model.fused=false", "train.precision=bf16", "data.num_points=64")),
    ],
    ids=["pointnet", "dgcnn", "plain-bf16"],
)
def test_the_estimate_is_within_thirty_percent(name: str, overrides: tuple[str, ...]) -> None:
    """The issue's bound. What is missed are buffers inside of operators; nothing of the estimate was fitted to it."""
    built = built_of(name, *overrides)
    estimate = estimate_memory(built)
    peak = measured(built)
    assert abs(estimate.peak_bytes - peak) <= 0.3 * peak


@contextmanager
def counting(known: Iterable[Tensor]) -> Iterator[MemoryTracker]:
    counter = MemoryTracker(known)
    with record({}, operators=counter.note_operator):
        yield counter


def test_a_straight_line_from_six_samples_reaches_the_step_itself() -> None:
    """A whole step counted by the same counter. Nearly all is a multiple of the batch; buffers of kernels are not."""
    built = built_of("pointnet")
    job = built.job
    batch = job.stream.reader(first_samples(job, 24))
    train_step(job, job.model, [batch], World(), Laps())
    job.optimizer.zero_grad(set_to_none=True)
    before = [*held(built), *(tensor for _, tensor in tree_leaves(batch))]
    with counting(before) as counter:
        train_step(job, job.model, [batch], World(), counter)
    peak = storage_bytes(before) + max(stretch.peak for stretch in counter.stretches)
    assert estimate_memory(built).peak_bytes == pytest.approx(peak, rel=0.1)


def test_parts_by_hand() -> None:
    built = built_of("pointnet", "train.ema_decay=0.9", "data.num_points=32")
    memory = estimate_memory(built)
    numbers = sum(parameter.numel() for parameter in built.job.model.parameters())
    norms = [module for module in built.job.model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    buffers = sum(2 * 4 * norm.num_features + 8 for norm in norms)
    assert memory.parameters_bytes == memory.gradients_bytes == 4 * numbers
    assert memory.buffers_bytes == buffers
    assert memory.optimizer_bytes == 2 * 4 * numbers + 4 * len(list(built.job.model.parameters()))  # and Adam's steps
    assert memory.average_bytes == 4 * numbers + buffers
    assert memory.teacher_bytes == 0
    parts = "parameters buffers optimizer average teacher batch saved working".split()
    assert sum(getattr(memory, f"{part}_bytes") for part in parts) == memory.peak_bytes
    assert memory.batch_size == 24


def test_micro_batches_save_less() -> None:
    whole, split = (
        estimate_memory(built_of("pointnet", f"train.micro_batches={n}", "data.num_points=64")) for n in (1, 4)
    )
    assert split.batch_size == whole.batch_size
    assert split.batch_bytes == whole.batch_bytes
    assert split.saved_bytes < 0.5 * whole.saved_bytes


def test_what_lives_after_the_forward_pass_is_what_autograd_saved() -> None:
    """Counted by torch's own hooks, storage by storage, on a network whose only other tensor is its output."""
    layers = [torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 4)]
    model, values = torch.nn.Sequential(*layers), torch.rand(32, 8)
    known = [*model.parameters(), *model.buffers(), values]
    with counting(known) as counter:
        output = model(values)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    copied = copy.deepcopy(model)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        again = copied(values)
    for tensor in (*copied.parameters(), *copied.buffers(), values):
        saved.pop(tensor.untyped_storage()._cdata, None)
    assert counter.live == sum(saved.values()) + storage_bytes([output])
    assert again.shape == output.shape


def test_live_bytes_by_hand() -> None:
    """1,000 float32 numbers: a view adds nothing, a sum of two adds 4,000, what is dropped is gone."""
    known = torch.ones(1000)
    with counting([known]) as counter:
        first = known * 2
        view = first[10:20]
        assert counter.live == 4000
        second = (first + 1).neg()  # two at once beside the first, one after
        assert counter.live == 8000
        assert counter.stretches[-1].peak == 12000
        counter.enter("next")
        del first, second
        assert counter.live == 4000
        del view
        assert counter.live == 0
        assert counter.stretches[-1].peak == 8000
        outside = torch.from_numpy(known.numpy() * 2)
        outside.sum()
        assert counter.live == 4000


def test_nothing_of_the_run_is_changed() -> None:
    built = built_of("dgcnn", "data.num_points=32")
    before = copy.deepcopy(built.job.model.state_dict())
    state = torch.get_rng_state()
    estimate_memory(built)
    assert all(torch.equal(before[name], tensor) for name, tensor in built.job.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not built.job.optimizer.state
    assert built.job.step == 0
    assert all(parameter.grad is None for parameter in built.job.model.parameters())


CHILD = """
import gc, json, sys
from pathlib import Path
from tests.describe.test_memory import Laps, built_of, held
from sightline.contract.pytree import tree_leaves
from sightline.workbench.describe.memory import storage_bytes, estimate_memory, first_samples
from sightline.engine.distributed import World
from sightline.engine.train import train_step

def told(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

built = built_of("pointnet", "data.num_points=512", "train.batch_size=32")
job = built.job
small, batch = (job.stream.reader(first_samples(job, count)) for count in (3, 32))
train_step(job, job.model, [small], World(), Laps())
job.optimizer.zero_grad(set_to_none=True)
gc.collect()
before = told("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
train_step(job, job.model, [batch], World(), Laps())
grown = told("VmHWM") - before
resident = storage_bytes([*held(built), *(t for _, t in tree_leaves(batch))])
print(json.dumps([grown + resident, estimate_memory(built).peak_bytes]))
"""


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process its peak")
def test_the_estimate_is_within_thirty_percent_of_resident_memory() -> None:
    """In a process of its own: what a step made resident, beyond what a step of three samples left."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=120, cwd=CONFIGS.parents[1]
    )
    assert done.returncode == 0, done.stderr
    resident, estimate = json.loads(done.stdout.splitlines()[-1])
    assert abs(estimate - resident) <= 0.3 * resident
