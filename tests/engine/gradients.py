"""Gradients of each process of a small world, summed early and summed after the pass; started by the test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sightline.contract.errors import RunError
from sightline.engine import gradients
from sightline.engine.distributed import World, start_world
from tests.limits import ENDLESS_S, HANG_S

SIZE = 5
BUCKET_BYTES = 64
"""Room for the gradients of a bias and part of a weight: every parameter of `Chain` travels by itself."""


@contextmanager
def reduce_afterwards(world: World, model: nn.Module, *, is_last_micro_batch: bool) -> Iterator[None]:
    """The form without overlap: once the pass has ended, bucket after bucket, each waited for."""
    yield
    if world.size == 1 or not is_last_micro_batch:
        return
    for bucket in gradients.make_buckets([p for p in model.parameters() if p.requires_grad]):
        flat = gradients.flatten_gradients(bucket)
        dist.all_reduce(flat)
        gradients.set_gradients(bucket, flat)


class Chain(nn.Module):
    """Layers that are called in the order of a list of indices, any of them several times or never."""

    def __init__(self, num_layers: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(num_layers))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, values: Tensor, order: list[int]) -> Tensor:
        for index in order:
            values = self.layers[index](values).tanh()
        return values.square().sum()


Pass = Callable[[World, Chain, Tensor], Tensor]


def values_of(rank: int, step: int = 0) -> Tensor:
    return torch.randn(3, SIZE, generator=torch.Generator().manual_seed(10 * rank + step))


def use_all(world: World, model: Chain, values: Tensor) -> Tensor:
    return model(values, [0, 1, 2, 3])


def use_some(world: World, model: Chain, values: Tensor) -> Tensor:
    """Layer 2 on the second process alone, layer 1 on all others, layer 3 nowhere."""
    return model(values, [0, 2] if world.rank == 1 else [0, 1])


def use_twice(world: World, model: Chain, values: Tensor) -> Tensor:
    return model(values, [3, 0, 1, 3, 2])


def use_in_turn(world: World, model: Chain, values: Tensor) -> Tensor:
    """Another order in each step and on each process, told by the values."""
    order = torch.randperm(4, generator=torch.Generator().manual_seed(int(1000 * values.abs().sum())))
    return model(values, order.tolist())


def use_frozen(world: World, model: Chain, values: Tensor) -> Tensor:
    return model(values, [0, 1, 2, 3])


def use_reentrant(world: World, model: Chain, values: Tensor) -> Tensor:
    """A part computed again in a backward pass of its own, inside the pass."""
    hidden = model.layers[0](values)
    hidden = checkpoint(lambda inner: model.layers[1](inner).tanh(), hidden, use_reentrant=True)
    return model(hidden, [2, 3])


PASSES: tuple[Pass, ...] = (use_all, use_some, use_twice, use_in_turn, use_frozen, use_reentrant)


def train_both(world: World, use: Pass) -> dict[str, Any]:
    """Three steps of two micro-batches, summed early and afterwards: gradients of both, and what was sent early."""
    found: dict[str, Any] = {}
    for name, reduce in (("early", world.reduce_gradients), ("afterwards", reduce_with(world))):
        model = Chain()
        if use is use_frozen:
            model.layers[1].requires_grad_(False)
        of_steps = []
        for step in range(3):
            model.zero_grad()
            for index, is_last in enumerate((False, True)):
                # Layer 3 is used by the first micro-batch, whichever the last one uses.
                loss = (use if is_last else use_twice)(world, model, values_of(world.rank, 2 * step + index))
                with reduce(model, is_last_micro_batch=is_last):
                    loss.backward()
            of_steps.append([None if p.grad is None else p.grad.tolist() for p in model.parameters()])
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * (0 if parameter.grad is None else parameter.grad)
        found[name] = of_steps
    return found


def reduce_with(world: World) -> Callable[..., Any]:
    return lambda model, **named: reduce_afterwards(world, model, **named)


def list_sent(world: World) -> list[str]:
    """The parameters of each bucket as it is sent, and the end of the pass."""
    events: list[str] = []
    original = gradients.GradientReduction._send_next

    def send(reduction: Any) -> None:
        bucket = reduction._buckets[len(reduction._sent)]
        events.append(" ".join(reduction._names[parameter] for parameter in bucket))
        original(reduction)

    gradients.GradientReduction._send_next = send  # type: ignore[method-assign]
    try:
        for use in (use_all, use_some):
            model = Chain()
            loss = use(world, model, values_of(world.rank))
            with world.reduce_gradients(model, is_last_micro_batch=True):
                loss.backward()
                events.append("end of pass")
            assert all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    finally:
        gradients.GradientReduction._send_next = original  # type: ignore[method-assign]
    return events


class Normed(nn.Module):
    """Batch norms, whose backward passes sum over processes, between layers that not every process uses."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = Chain()
        self.norms = nn.ModuleList(nn.BatchNorm1d(SIZE) for _ in range(3))

    def forward(self, values: Tensor, rank: int) -> Tensor:
        for index, norm in enumerate(self.norms):
            values = norm(values)
            if (index + rank) % 2:
                values = self.chain.layers[index](values)
        return self.chain.layers[3](values).square().sum()


def norm_both(world: World) -> dict[str, Any]:
    found = {}
    for name, reduce in (("early", world.reduce_gradients), ("afterwards", reduce_with(world))):
        torch.manual_seed(0)
        model = world.convert_sync_batchnorm(Normed())
        loss = model(values_of(world.rank), world.rank)
        with reduce(model, is_last_micro_batch=True):
            loss.backward()
        found[name] = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    return found


def change_late(world: World) -> str:
    """A layer in two reentrant parts: its gradient is complete only after the second, when it has been sent."""
    model = Chain()
    hidden = values_of(world.rank).requires_grad_()
    for _ in range(2):
        hidden = checkpoint(lambda inner: model.layers[3](inner).tanh(), hidden, use_reentrant=True)
    try:
        with world.reduce_gradients(model, is_last_micro_batch=True):
            hidden.sum().backward()
    except RunError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    gradients._BUCKET_BYTES = BUCKET_BYTES
    with start_world(device="cpu", timeout_s=HANG_S) as world:
        found: dict[str, Any] = {use.__name__: train_both(world, use) for use in PASSES}
        found |= {"norms": norm_both(world), "sent": list_sent(world), "late": change_late(world)}
        torch.optim.SGD(Chain().parameters(), lr=1.0).step()  # imports what any training imports
    (folder / f"{world.rank}.json").write_text(json.dumps(found))


class _Broken(torch.autograd.Function):
    """The identity, whose backward pass fails."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ValueError("the pass broke")


def break_off(port: int, rank: int, log: str) -> None:
    """A process of two; the second one's backward pass breaks when half of the buckets are sent."""
    import os

    from tests.processes import print_to

    print_to(log)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    gradients._BUCKET_BYTES = BUCKET_BYTES
    with start_world(device="cpu", timeout_s=ENDLESS_S) as world:
        model = Chain()
        hidden = model.layers[1](model.layers[0](values_of(rank)))
        loss = model(_Broken.apply(hidden) if rank == 1 else hidden, [2, 3])
        with world.reduce_gradients(model, is_last_micro_batch=True):
            loss.backward()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
