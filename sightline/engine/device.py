"""Transfer of nested batches to a device.

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
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.compute.waits import send
from sightline.config.run_config import Cudnn
from sightline.contract.errors import RunError


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
        names = [f.name for f in dataclasses.fields(value)]
        moved = {n: to_device(getattr(value, n), device, float_dtype=float_dtype, path=f"{path}.{n}") for n in names}
        return dataclasses.replace(value, **moved)
    raise TypeError(
        f"{path}: a batch holds tensors, numbers and text in dicts, lists, tuples and dataclasses; "
        f"this is a {type(value).__name__}"
    )


@dataclass(frozen=True)
class Precision:
    """Number format of parameters and batches, and of the operations that autocast lowers.

    `bf16` and `fp16` keep float32 weights and run matrix products lower; `fp16` scales the loss so that small
    gradients survive. Source: Micikevicius et al. 2018, section 3.
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


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed the global generators of Python, NumPy and torch; processes draw different numbers (dropout)."""
    seeds = np.random.SeedSequence((seed, rank)).generate_state(4)
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.manual_seed(int(seeds[2]) << 31 | int(seeds[3]) >> 1)


def set_determinism(level: str) -> None:
    """Set determinism: `off` chooses kernels by timing, `seeded` does not, `strict` refuses nondeterministic ones."""
    torch.backends.cudnn.benchmark = level == "off"
    torch.backends.cudnn.deterministic = level == "strict"
    if level == "strict":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Not torch.use_deterministic_algorithms, which imports a compiler.
    torch.set_deterministic_debug_mode("error" if level == "strict" else "default")


def set_backends(*, determinism: str, cudnn: Cudnn) -> None:
    """Set the kernels of this process according to `train.determinism` and `train.cudnn`.

    `all_but_batch_norm` leaves cuDNN on here: the batch norms of the model turn it off for themselves.
    """
    set_determinism(determinism)
    torch.backends.cudnn.enabled = cudnn != "off"


@contextlib.contextmanager
def cudnn_enabled(level: Cudnn) -> Iterator[None]:
    """Context with cuDNN enabled, or disabled if `level` is `off`; the previous setting is restored."""
    previous = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = level != "off"
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = previous


def describe_nondeterminism(error: RuntimeError) -> RunError | None:
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
