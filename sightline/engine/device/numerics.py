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

from sightline.config.run_config import Cudnn, Train
from sightline.contract.errors import RunError
from sightline.instrument.formats import get_tf32_switch


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
        """The dtype of weights: float64 for `float64`, float32 for all others."""
        return torch.float64 if self.name == "float64" else torch.float32

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """Return the context of a forward pass."""
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
