"""Processes that work together: the only module that knows ranks and imports torch.distributed."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sightline.engine.memory import keep_freed_memory
from sightline.engine.run_directory import RunDirectory
from sightline.engine.watchdog import Watchdog
from sightline.errors import UserError
from sightline.layers.batch_norm import synchronise

__all__ = ["World", "start_world"]


@dataclass(frozen=True)
class World:
    """This process among all of a run. A world of one makes no collective calls and needs no network."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watchdog: Watchdog | None = None

    def all_reduce_sum(self, tensors: Mapping[str, Tensor], *, what: str = "sums") -> dict[str, Tensor]:
        """The sum of each tensor over all processes, in new tensors; one collective per dtype."""
        if self.size == 1:
            return dict(tensors)
        totals: dict[str, Tensor] = {}
        for dtype in sorted({tensor.dtype for tensor in tensors.values()}, key=str):
            names = sorted(name for name, tensor in tensors.items() if tensor.dtype == dtype)
            flat = torch.cat([tensors[name].detach().reshape(-1).to(self.device) for name in names])
            with self._waiting(f"all_reduce of {what} ({', '.join(names[:5])})"):
                dist.all_reduce(flat)
            parts = flat.split([tensors[name].numel() for name in names])
            totals |= {n: part.view_as(tensors[n]) for n, part in zip(names, parts, strict=True)}
        return {name: totals[name] for name in tensors}

    def gather_rows(self, rows: Tensor, *, what: str = "rows") -> tuple[Tensor, int]:
        """Everyone's rows in rank order, and the place where ours begin; ranks may hold different numbers of rows."""
        if self.size == 1:
            return rows.detach(), 0
        sizes = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(rows)
        with self._waiting(f"all_reduce of the number of {what}"):
            dist.all_reduce(sizes)
        counts = sizes.tolist()
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows.detach()
        everyone = [torch.empty_like(padded) for _ in counts]
        with self._waiting(f"all_gather of {what}"):
            dist.all_gather(everyone, padded)
        joined = torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])
        return joined, sum(counts[: self.rank])

    def gather_text(self, text: str, *, what: str = "text") -> list[str]:
        """Everyone's text, in rank order."""
        if self.size == 1:
            return [text]
        encoded = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        joined, _ = self.gather_rows(encoded, what=what)
        sizes, _ = self.gather_rows(torch.tensor([len(encoded)], device=self.device), what=f"lengths of {what}")
        return [bytes(part.tolist()).decode() for part in joined.split(sizes.tolist())]

    def broadcast_text(self, text: str, *, what: str = "text") -> str:
        """The first process's text, on every process."""
        return self.gather_text(text if self.rank == 0 else "", what=what)[0]

    def replicate(self, model: nn.Module) -> nn.Module:
        """The model to run forward in training: wrapped so that gradients are averaged over processes."""
        if self.size == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        with self._waiting("making the model's replicas"):
            return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)

    def reduce_gradients(self, replica: nn.Module, *, now: bool) -> AbstractContextManager[None]:
        """Inside this context a backward pass reduces gradients over processes only where `now` is true."""
        if self.size == 1 or not isinstance(replica, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._waiting("reducing gradients") if now else replica.no_sync()

    def synchronise_batch_norm(self, model: nn.Module) -> nn.Module:
        """Batch norms whose statistics are those of the batch over all processes."""
        return model if self.size == 1 else synchronise(model, self._differentiable_sum)

    def make_equal(self, model: nn.Module) -> None:
        """Give every process the buffers of the first (batch statistics differ between them while training)."""
        if self.size == 1:
            return
        for dtype in sorted({buffer.dtype for buffer in model.buffers()}, key=str):
            buffers = [buffer for buffer in model.buffers() if buffer.dtype == dtype]
            flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
            with self._waiting("broadcast of the model's buffers"):
                dist.broadcast(flat, src=0)
            for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))

    def barrier(self, name: str) -> None:
        """Wait until every process is here; a time-out says which are missing and where they are."""
        if self.size > 1:
            self.all_reduce_sum({"here": torch.ones((), dtype=torch.int64)}, what=f"barrier '{name}'")

    def run_directory(self, path: Path) -> RunDirectory:
        """The run's folder: it writes on the first process and is a silent twin elsewhere."""
        return RunDirectory(path, is_writer=self.rank == 0)

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def close(self) -> None:
        """Leave the process group in good order."""
        if self.size > 1:
            if self.watchdog is not None:
                self.watchdog.stop()
            dist.destroy_process_group()

    def _waiting(self, what: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self.watchdog is None else self.watchdog.waiting(what)

    def _differentiable_sum(self, tensor: Tensor) -> Tensor:
        return _SumOverProcesses.apply(tensor, self)


class _SumOverProcesses(torch.autograd.Function):
    """y = sum over processes of x; so the gradient of each x is the sum over processes of the gradient of y."""

    @staticmethod
    def forward(ctx, tensor: Tensor, world: World) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.world = world
        return world.all_reduce_sum({"statistics": tensor}, what="batch statistics")["statistics"]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        total = ctx.world.all_reduce_sum({"gradient": gradient.contiguous()}, what="gradients of batch statistics")
        return total["gradient"], None


@contextlib.contextmanager
def start_world(*, device: str = "auto", timeout_s: float = 600.0) -> Iterator[World]:
    """Join the processes that the launcher's environment describes, or be a world of one.

    Raises UserError for an environment that is incomplete or a device that this machine lacks.
    """
    rank, size, local_rank = _place_in_launch()
    chosen = _device(device, local_rank)
    if chosen.type == "cpu":
        keep_freed_memory()
    if size == 1:
        yield World(device=chosen)
        return
    backend = "cuda:nccl,cpu:gloo" if chosen.type == "cuda" else "gloo"
    # Our watchdog reports a hang at `timeout_s`; torch's own limit only has to come after it.
    patience = datetime.timedelta(seconds=2 * timeout_s + 30)
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=patience)
    store = dist.distributed_c10d._get_default_store()
    watchdog = Watchdog(store=store, rank=rank, size=size, timeout_s=timeout_s)
    world = World(rank, size, chosen, watchdog)
    watchdog.start()
    yield world
    world.close()


def _place_in_launch() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, from torchrun's or SLURM's variables."""
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", 0))
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in environment:
        if "MASTER_ADDR" not in environment:
            raise UserError(
                "SLURM started several tasks but MASTER_ADDR is not set; export MASTER_ADDR=<first host> and MASTER_PORT, "
                "or start torchrun under srun (docs/distributed.md)"
            )
        environment.setdefault("MASTER_PORT", "29500")
        return tuple(int(environment[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS", "LOCALID"))  # type: ignore[return-value]
    return 0, 1, 0


def _device(name: str, local_rank: int) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device: found '{name}', allowed are auto, cpu, cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no CUDA device on this machine; use --device cpu, or install a CUDA wheel"
        )
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU of its own: {torch.cuda.device_count()} are visible; "
            "start at most one process per GPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
