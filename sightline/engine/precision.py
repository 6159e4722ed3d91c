"""Number formats, kernels and reproducibility: `train.precision`, `train.cudnn` and `train.determinism`."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from sightline.config.run_config import Cudnn
from sightline.errors import RunError

__all__ = [
    "Precision",
    "cudnn_enabled",
    "describe_nondeterminism",
    "seed_everything",
    "set_backends",
    "set_determinism",
]


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
