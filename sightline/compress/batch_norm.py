"""Running statistics of batch norms, estimated anew for weights that changed."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sightline.engine.batch_stream import evaluation_keys, read_batches
from sightline.engine.device import to_device
from sightline.engine.precision import Precision
from sightline.engine.records import preserve_rng_state
from sightline.engine.run_loading import OpenRun
from sightline.engine.step import compute_batch_losses

__all__ = ["reestimate_batch_norm"]


def reestimate_batch_norm(model: nn.Module, run: OpenRun, *, num_batches: int) -> int:
    """Replace the running statistics by the means over training batches, drawn anew; how many batches were read.

    Batches are whole, but for the only one of a smaller part. Forward passes in training mode, without gradient.
    Source: Yu and Huang 2019 (slimmable networks), section 3.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms or num_batches == 0:
        return 0
    config, part = run.config, run.data.train
    size = config.train.batch_size
    drawn = np.random.Generator(np.random.PCG64(config.seed)).permutation(part.indices)  # sets are sorted by class
    num_whole = min(num_batches, max(1, len(drawn) // size))
    keys = evaluation_keys(drawn[: num_whole * size], size, epoch=0, seed=config.seed)
    precision = Precision(config.train.precision)
    momenta = [module.momentum for module in norms]
    batches = read_batches(part.reader, iter(keys), 0)
    model.train()
    try:
        with torch.no_grad(), preserve_rng_state(), contextlib.closing(batches):
            for number, batch in enumerate(batches, start=1):
                for module in norms:
                    module.momentum = 1 / number  # the mean of all so far
                compute_batch_losses(run.task, model, to_device(batch, run.world.device), run.world.device, precision)
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
        model.eval()
    return len(keys)
