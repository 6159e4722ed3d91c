"""Search for the largest batch whose steps fit into the memory of a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from sightline.contract.errors import RunError, UserError, summarise_error
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.train import TrainState

_TRIAL_STEPS = 6
"""Steps of a trial: the optimiser makes its state in the first, and a graph is captured by the last."""


def find_batch_size(
    build_alone: Callable[[int], TrainState], world: World, num_samples: int, *, micro_batches: int, is_cut: bool
) -> int:
    """Find the largest batch size, over all processes, of which each process can train its share.

    Every process searches alone, by steps of the states of a single process that `build_alone` makes, of at least two
    samples a micro-batch and at most the training part; the smallest share counts. Unless the last batch of an epoch
    `is_cut`, sizes that leave a part of it a single sample are passed over, as batch norm cannot train on one.
    Raises RunError if not even two samples a micro-batch fit.
    """
    smallest = 2 * micro_batches
    largest = max(smallest, num_samples // world.size)
    share = find_largest(lambda size: _fits(build_alone, size), smallest, largest)
    share = min(map(int, world.gather_text(str(share), operation="sizes of batches")))
    if not share:
        raise RunError(
            f"train.batch_size: auto: a step of {smallest} samples, two a micro-batch, does not fit into the GPU's "
            "memory; take a smaller network or input, train.precision=bf16, or a GPU with more memory"
        )
    parts = smallest * world.size
    sizes = range(share, 0, -1)
    share = next((size for size in sizes if is_cut or not 0 < num_samples % (size * world.size) < parts), share)
    return share * world.size


def find_largest(fits: Callable[[int], bool], smallest: int, largest: int) -> int:
    """Return the largest number from `smallest` to `largest` that fits, by doubling and bisection; 0 if none does."""
    fitting, size = 0, smallest
    while fits(size):
        fitting = size
        if size == largest:
            return size
        size = min(2 * size, largest)
    while fitting and size - fitting > 1:
        middle = (fitting + size) // 2
        fitting, size = (middle, size) if fits(middle) else (fitting, middle)
    return fitting


def _fits(build_alone: Callable[[int], TrainState], size: int) -> bool:
    """Return True if a few steps of this many samples fit into the memory. Raises RunError if they fail otherwise."""
    try:
        job = build_alone(size)
        job.num_steps = _TRIAL_STEPS
        train(job, World(device=job.device), lambda record, stop_requested: stop_requested)
        is_fitting = True
    except torch.OutOfMemoryError:
        is_fitting = False
    except (UserError, RunError):
        raise
    except Exception as error:
        raise RunError(
            f"train.batch_size: auto: a training step of {size} samples failed: {summarise_error(error)}; `sightline "
            f"check` with train.batch_size={size} names the cause"
        ) from error
    job = None  # type: ignore[assignment]  # its tensors would stay until the next one is built
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return is_fitting
