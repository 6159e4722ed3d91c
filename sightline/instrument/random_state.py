"""Global random states of Python, NumPy and PyTorch: put back, and seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Put the global random states of Python, NumPy and PyTorch back, those of GPUs if this process uses them."""
    states = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.cuda.set_rng_state_all(of_gpus)


def seed_all(seed: int) -> None:
    """Seed the global random numbers of Python, NumPy and torch; those of GPUs if this process uses them.

    `torch.manual_seed` would also seed GPUs that are first used later, and that cannot be put back.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
