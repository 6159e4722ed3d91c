"""What each process of a small world gets from every collective, as JSON; started once per process by the test."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.errors import RunError, UserError
from sightline.engine.distributed import World, start_world
from tests.limits import HANG_S

DTYPES = ("uint8", "int16", "int32", "int64", "float32", "float64", "bfloat16")
ROWS = {2: [(3, 1), (0, 4), (0, 0)], 3: [(2, 0, 5), (0, 0, 1), (4, 4, 4)]}
TEXTS = {2: ["é\n", "Grüße, 世界"], 3: ["", "abc", "d" * 1000]}
PARTS = {2: (5, 3), 3: (1, 0, 6)}


class Uneven(nn.Module):
    """Parameters that all processes use, that some do, that none does; of two formats."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Parameter(torch.ones(3, 2))
        self.some = nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.nowhere = nn.Parameter(torch.ones(2))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, factor: float, *, uses_some: bool) -> Tensor:
        total = factor * self.used.sum()
        return total + factor * self.some.sum() if uses_some else total


class Buffers(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 3), float(rank)))
        for number, dtype in enumerate((torch.float32, torch.int64, torch.bool, torch.float64, torch.float32)):
            self.register_buffer(f"b{number}", torch.full((number, 2), 1 - min(rank, 1), dtype=dtype))


def network() -> nn.Module:
    """Two batch norms, over (B, C) and over (B, C, N), with something before each."""
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(
        nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3), nn.BatchNorm1d(3)
    )
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.double()


def whole_batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    batch = 3 + 2 * torch.randn(sum(PARTS[size]), 3, 2, generator=generator, dtype=torch.float64)
    return batch, torch.randn(sum(PARTS[size]), 3, generator=generator, dtype=torch.float64)


def random_numbers(rank: int) -> Tensor:
    return torch.randn(1000, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def sums(world: World) -> dict[str, Any]:
    ours = {name: torch.full((2, 3), world.rank + 1).to(getattr(torch, name)) for name in DTYPES}
    ours |= {
        "scalar": torch.tensor(0.5 * world.rank),
        "empty": torch.zeros(0),
        "turned": torch.eye(3)[:2].mT * world.rank,
    }
    before = {name: tensor.clone() for name, tensor in ours.items()}
    names = sorted(ours, reverse=bool(world.rank % 2))  # the order of the keys is nobody's business
    totals = world.all_reduce_sum({name: ours[name] for name in names}, operation="test sums")
    assert list(totals) == names
    assert all(torch.equal(ours[name], before[name]) for name in ours), "an argument was changed"
    numbers = world.all_reduce_sum({"numbers": random_numbers(world.rank)})["numbers"]
    return {name: [str(t.dtype), list(t.shape), t.double().tolist()] for name, t in totals.items()} | {
        "numbers": numbers.tolist()
    }


def rows(world: World) -> list[Any]:
    found = []
    for counts in ROWS[world.size]:
        for name in (*DTYPES, "bool"):
            for shape in ((), (2,), (2, 0)):
                mine = torch.full((counts[world.rank], *shape), world.rank + 1).to(getattr(torch, name))
                everyone, start = world.gather_rows(mine)
                found.append([str(everyone.dtype), list(everyone.shape), everyone.double().tolist(), start])
    turned, _ = world.gather_rows(torch.arange(6.0).view(2, 3).mT + world.rank)
    return [*found, turned.tolist()]


def gradients(world: World) -> list[Any]:
    model = Uneven()
    with world.reduce_gradients(model, is_last_micro_batch=False):
        model(1.0, uses_some=False).backward()
    alone = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    with world.reduce_gradients(model, is_last_micro_batch=True):
        model(10.0 ** (world.rank + 1), uses_some=world.rank == 1).backward()
    return [alone, [None if p.grad is None else p.grad.tolist() for p in model.parameters()]]


def statistics(world: World) -> dict[str, Any]:
    model = world.convert_sync_batchnorm(network())
    batch, weight = (part.split(PARTS[world.size])[world.rank] for part in whole_batch(world.size))
    batch.requires_grad_()
    with world.reduce_gradients(model, is_last_micro_batch=True):
        output = model(batch)
        (output * weight).sum().backward()
    return {
        "output": output.tolist(),
        "batch": batch.grad.tolist(),
        "gradients": {name: p.grad.tolist() for name, p in model.named_parameters()},
        "state": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
    }


def models(world: World) -> dict[str, Any]:
    equal, replica = Buffers(world.rank), Buffers(world.rank)
    world.broadcast_buffers(equal)
    returned = world.broadcast_weights(replica)
    assert returned is replica
    refusal = ""
    try:
        world.broadcast_weights(nn.Linear(2, 3 + world.rank))
    except UserError as error:
        refusal = str(error)
    as_lists = [{name: t.tolist() for name, t in model.state_dict().items()} for model in (equal, replica)]
    return {"equal": as_lists[0], "replica": as_lists[1], "refusal": refusal}


def disagreement(world: World) -> str:
    """Only in debug mode: without it, this would hang or abort."""
    try:
        if world.rank == 0:
            world.barrier("one thing")
        else:
            world.all_reduce_sum({"a": torch.ones(2), "b": torch.ones(1)}, operation="other things")
    except RunError as error:
        return str(error)
    return ""


def _list_threads(tasks: Path) -> list[str]:
    """Name the threads of this process; one that was joined is listed until the system has taken it away."""
    end = time.monotonic() + HANG_S
    while True:
        names = []
        for task in tasks.iterdir():
            with contextlib.suppress(OSError):  # it ended meanwhile
                names.append((task / "comm").read_text().strip())
        if time.monotonic() > end or not any("gloo" in name for name in names):
            return names
        time.sleep(0.01)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with start_world(device="cpu", timeout_s=HANG_S) as world:
        found: dict[str, Any] = {"rank": world.rank, "size": world.size}
        found |= {each.__name__: each(world) for each in (sums, rows, gradients, statistics, models)}
        found["texts"] = world.gather_text(TEXTS[world.size][world.rank])
        found["broadcast"] = world.broadcast_text(f"from {world.rank}")
        made: list[int] = []
        found["from first"] = world.broadcast_from_rank_zero(lambda: f"made by {made.append(world.rank) or world.rank}")
        found["on first"] = [made, world.rank_zero_only(int)("7", base=8)]
        torch.optim.SGD(network().parameters(), lr=1.0).step()  # imports what any training imports
        world.barrier("nearly done")
        found["disagreement"] = disagreement(world) if world.agreement is not None else ""
    tasks = Path("/proc/self/task")
    found["threads"] = _list_threads(tasks) if tasks.exists() else []
    (folder / f"{found['rank']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
