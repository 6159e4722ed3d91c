"""Two processes that train one model: `watch` with all that it takes adds no collective, and changes no bit."""

from __future__ import annotations

import pytest

from tests.processes import run_ranks

TRAINING = """
import contextlib, io, logging, sys
from functools import partial
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
import sightline
from sightline.doctor.budget import Budget
from sightline.doctor.evidence.data import statistics
from sightline.doctor.processes import leave_others_alone
from sightline.doctor.watch import watch as watch_room

logging.getLogger("sightline").setLevel(logging.CRITICAL)
dist.init_process_group("gloo")
watch_room.examine_models = partial(watch_room.examine_models, budget=Budget(0.1))
statistics._MAX_TRAIN_S = 0.05
rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
refused = 0

def net(norm=nn.Identity):
    return nn.Sequential(nn.Linear(10, 16), norm(), nn.ReLU(), nn.Linear(16, 4))

def with_norm():
    return net(partial(nn.BatchNorm1d, 16))

class Gathering(nn.Module):
    # Asks other processes in its own code, first as one does it, then without asking whether there are any.
    def __init__(self, asks):
        super().__init__()
        self.net, self.asks = net(), asks

    def forward(self, rows):
        global refused
        total = rows.mean()
        if not self.asks or dist.is_initialized():
            try:
                dist.all_reduce(total)
            except Exception:
                refused += 1
                raise
        return self.net(rows) + 0 * total

KINDS = {
    "DDP with a batch norm": (lambda: DistributedDataParallel(with_norm()), ""),
    "compiled DDP": (lambda: torch.compile(DistributedDataParallel(net()), backend="eager"), ""),
    "DDP that asks the others": (lambda: DistributedDataParallel(Gathering(True)), ""),
    "DDP that needs the others": (lambda: DistributedDataParallel(Gathering(False)), ""),
    "DDP inside": (lambda: nn.Sequential(DistributedDataParallel(net()), nn.Linear(4, 4)), "DistributedDataParallel"),
    "FSDP": (lambda: fully_shard(net(), mesh=mesh), "FSDP"),
    "tensors in parallel": (
        lambda: parallelize_module(net(), mesh, {"0": ColwiseParallel(), "3": RowwiseParallel()}), "DTensor"
    ),
}

def count():
    groups = {id(group): group for group in (dist.group.WORLD, mesh.get_group())}
    return sum(group._get_sequence_number_for_group() for group in groups.values())

def make_set(seed):
    rows = torch.randn(96, 10, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(rows, rows[:, :4].argmax(1))

def train(make, is_watched):
    torch.manual_seed(0)
    model, loader = make(), DataLoader(data := make_set(1), 8, sampler=DistributedSampler(make_set(1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    named = {"loss": F.cross_entropy, "loader": loader, "evaluation": DataLoader(make_set(2), 16)}
    before = count()
    with sightline.watch(model, optimizer=optimizer, **named) if is_watched else contextlib.nullcontext() as watch:
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            for rows, label in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(rows), label).backward()
                optimizer.step()
        total = label.sum()
        dist.all_reduce(total)
        if rank == 0 and not hasattr(next(model.parameters()), "to_local"):
            torch.save(model.state_dict(), io.BytesIO())
    own = [getattr(each, "to_local", lambda each=each: each)().detach() for each in model.parameters()]
    return [*own, *model.buffers(), total, torch.rand(4)], count() - before, watch

for name, (make, reason) in KINDS.items():
    plain, num_plain, _ = train(make, False)
    assert refused == 0
    watched, num_watched, watch = train(make, True)
    assert all(map(torch.equal, plain, watched)), name
    assert num_watched == num_plain > 0, (name, num_plain, num_watched)
    assert [each for each in watch.findings if each.severity != "note"] == [], (name, watch.findings)
    gaps = [line for line in watch._loop.failures if "the model before its first step" in line]
    assert len(gaps) == bool(reason) and all(reason in line for line in gaps), (name, gaps)
    assert (refused > 0) == (name == "DDP that needs the others"), (name, refused)
    refused = 0
with leave_others_alone():
    assert not dist.is_initialized()
    norm, rows = nn.SyncBatchNorm(10), torch.randn(8, 10)
    assert torch.equal(norm(rows), nn.BatchNorm1d(10)(rows))  # on a CPU torch refuses it where there are others
assert dist.is_initialized()
dist.destroy_process_group()
"""


@pytest.mark.processes
def test_no_collective_is_added() -> None:
    run_ranks(["-c", TRAINING], 2, timeout_s=300)
