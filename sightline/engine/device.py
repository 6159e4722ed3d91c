"""Transfer of nested batches to a device, on a GPU while the step before runs.

Number formats, kernels and reproducibility: `train.precision`, `train.cudnn` and `train.determinism`.

Setting of glibc's malloc that keeps freed memory in the process, so that temporaries are not paged in each step.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sightline.config.run_config import Cudnn, Train
from sightline.contract.errors import RunError
from sightline.contract.pytree import tree_leaves
from sightline.contract.types import Batch
from sightline.instrument.formats import get_tf32_switch
from sightline.ops.waits import send


class PhaseTimer(Protocol):
    """Interface of a timer, called after each phase of a step: data, transfer, prepare, forward, backward, optimise."""

    def end_phase(self, name: str) -> None: ...


def to_device(
    value: Any, device: torch.device, *, float_dtype: torch.dtype = torch.float32, path: str = "batch"
) -> Any:
    """Move a nested structure to `device`, with every floating tensor as `float_dtype`.

    Dicts, lists, tuples, named tuples and dataclasses keep their types; numbers, text and None stay as they are.
    Raises TypeError, with its path, for a leaf of any other type.
    """
    if isinstance(value, Tensor):
        dtype = float_dtype if value.is_floating_point() else value.dtype
        return send(value, device, dtype)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return type(value)(
            (k, to_device(v, device, float_dtype=float_dtype, path=f"{path}[{k!r}]")) for k, v in value.items()
        )
    if isinstance(value, list | tuple):
        items = [to_device(v, device, float_dtype=float_dtype, path=f"{path}[{i}]") for i, v in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.init]
        moved = {n: to_device(getattr(value, n), device, float_dtype=float_dtype, path=f"{path}.{n}") for n in names}
        return dataclasses.replace(value, **moved)
    raise TypeError(
        f"{path}: a batch holds tensors, numbers and text in dicts, lists, tuples and dataclasses; "
        f"this is a {type(value).__name__}"
    )


class CopyStream:
    """Stream of a GPU whose copies run beside the work of a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def select(self) -> AbstractContextManager[Any]:
        """Return a context in which copies are queued to this stream."""
        return torch.cuda.stream(self._stream)

    def is_idle(self) -> bool:
        """Return True if the GPU has done all that was queued to it."""
        return torch.cuda.current_stream(self._device).query()

    def hand_over(self, batches: Any) -> None:
        """Let the current stream wait for the copies, and keep their memory until it has used them."""
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for _, tensor in tree_leaves(batches):
            tensor.record_stream(current)


class BatchTransfer:
    """Transfer of each step's micro-batches to a device, with the time of its phases.

    With a copy stream, `read_ahead` reads those of the next step and starts their copies, while the device works on
    what is queued: a phase of its own, `ahead`, or `data` if the device was done before. Without, as on a CPU, it does
    nothing. An error in reading is raised when that step receives them.
    """

    def __init__(
        self, steps: Iterator[Sequence[Batch]], device: torch.device, dtype: torch.dtype, copies: CopyStream | None
    ) -> None:
        self._steps = steps
        self._device = device
        self._dtype = dtype
        self._copies = copies
        self._ahead: list[Batch] | Exception | None = None

    def receive(self, clock: PhaseTimer) -> list[Batch]:
        """Return the micro-batches of the next step, on the device."""
        ahead, self._ahead = self._ahead, None
        if isinstance(ahead, Exception):
            raise ahead
        if ahead is None:
            micro_batches = next(self._steps)
            clock.end_phase("data")
            ahead = self._send(micro_batches)
        else:
            assert self._copies is not None
            self._copies.hand_over(ahead)
        clock.end_phase("transfer")
        return ahead

    def read_ahead(self, clock: PhaseTimer) -> None:
        """Read the micro-batches of the next step, if there is one, and start their copies."""
        if self._copies is None or self._ahead is not None:
            return
        clock.end_phase("optimise")
        try:
            micro_batches = next(self._steps, None)
            if micro_batches is not None:
                with self._copies.select():
                    self._ahead = self._send(micro_batches)
        except Exception as error:  # noqa: BLE001 - raised by `receive`: the step under way is not to blame
            self._ahead = error
        clock.end_phase("data" if self._copies.is_idle() else "ahead")

    def _send(self, micro_batches: Sequence[Batch]) -> list[Batch]:
        return [to_device(batch, self._device, float_dtype=self._dtype) for batch in micro_batches]


@dataclass(frozen=True)
class Precision:
    """Number format of parameters and batches, and of the operations that autocast lowers.

    `bf16` and `fp16` keep float32 weights and run matrix products lower; `fp16` scales the loss so that small
    gradients survive. `tf32` is float32 for all but the kernels of a GPU, which `set_backends` sets.
    Source: Micikevicius et al. 2018, section 3.
    """

    name: str

    @property
    def parameter_dtype(self) -> torch.dtype:
        return torch.float64 if self.name == "float64" else torch.float32

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        lowered = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)
        return torch.autocast(device.type, dtype=lowered) if lowered else contextlib.nullcontext()

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Build the loss scaler: active under fp16, else without effect."""
        return torch.amp.GradScaler(device.type, enabled=self.name == "fp16")


def is_memory_bound(device: torch.device) -> bool:
    """Return True for a GPU, whose memory is full at a certain size of batches; a host would begin to swap."""
    return device.type == "cuda"


def resolve_precision(name: str, device: torch.device) -> str:
    """Return the number format that `auto` stands for on this machine: bf16 if the device computes in it, else float32.

    Other names stay as they are.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_instructions else "float32"


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed the global generators of Python, NumPy and torch; processes draw different numbers (dropout)."""
    seeds = np.random.SeedSequence((seed, rank)).generate_state(4)
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.manual_seed(int(seeds[2]) << 31 | int(seeds[3]) >> 1)


def seed_torch(seed: int) -> None:
    """Seed torch's generators as `torch.manual_seed` does, on GPUs if this process uses them.

    For devices that it does not use, `torch.manual_seed` keeps each call with a stack trace, for a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def set_determinism(level: str) -> None:
    """Set determinism: `off` chooses kernels by timing, `seeded` does not, `strict` refuses nondeterministic ones."""
    torch.backends.cudnn.benchmark = level == "off"
    torch.backends.cudnn.deterministic = level == "strict"
    if level == "strict":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Not torch.use_deterministic_algorithms, which imports a compiler.
    torch.set_deterministic_debug_mode("error" if level == "strict" else "default")


def set_backends(train: Train) -> None:
    """Set the kernels of this process according to `train.determinism`, `train.cudnn` and `train.precision`.

    `all_but_batch_norm` leaves cuDNN on here: the batch norms of the model turn it off for themselves. Only under
    `tf32` may a GPU round the factors of matrix products; torch lets it do so for those of convolutions always.
    """
    set_determinism(train.determinism)
    torch.backends.cudnn.enabled = train.cudnn != "off"
    switch = get_tf32_switch(torch.backends.cuda.matmul)
    setattr(*switch[:2], switch.rounded if train.precision == "tf32" else switch.exact)


@contextlib.contextmanager
def cudnn_enabled(level: Cudnn) -> Iterator[None]:
    """Context with cuDNN enabled, or disabled if `level` is `off`; the previous setting is restored."""
    previous = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = level != "off"
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = previous


def describe_nondeterminism(error: Exception) -> RunError | None:
    """Convert torch's error under `strict` to one that names the operation; None for any other error."""
    text = str(error)
    if "does not have a deterministic implementation" not in text:
        return None
    operation = text.split(" does not have")[0].split()[-1]
    return RunError(
        f"train.determinism: strict: the operation '{operation}' has no deterministic form on this device; use seeded"
    )


# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Make glibc's malloc reuse large blocks instead of mapping new ones; return True if it accepted the settings.

    Results do not change. A PointNet step at 32 x 256 points on two cores spent a third of its time in the kernel
    before, under 1 % after; the peak grows by about a quarter (docs/inside/decisions/freed_memory.md). Elsewhere than
    under glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    agreed = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 2**28)]
    return all(agreed)
