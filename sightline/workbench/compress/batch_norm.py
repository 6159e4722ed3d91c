"""Re-estimation of batch norm statistics for changed weights."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sightline.engine.batches.sampler import evaluation_keys
from sightline.engine.batches.stream import read_batches
from sightline.engine.device.numerics import Precision
from sightline.engine.device.transfer import to_device
from sightline.engine.run_loading import OpenRun
from sightline.engine.step import compute_batch_losses
from sightline.instrument.random_state import preserve_random_state


def reestimate_batch_norm(model: nn.Module, run: OpenRun, *, num_batches: int) -> int:
    """Re-estimate running statistics as means over random training batches; return the number of batches.

    All batches are complete, unless the split is smaller than one. Forward passes in training mode, without gradients.
    Source: Yu and Huang 2019 (slimmable networks), section 3.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms or num_batches == 0:
        return 0
    config, part = run.config, run.data.train
    size = config.train.num_samples
    indices = np.random.Generator(np.random.PCG64(config.seed)).permutation(part.indices)  # sets are sorted by class
    num_complete = min(num_batches, max(1, len(indices) // size))
    keys = evaluation_keys(indices[: num_complete * size], size, epoch=0, seed=config.seed)
    precision = Precision(config.train.precision)
    momenta = [module.momentum for module in norms]
    batches = read_batches(part.reader, iter(keys), 0)
    model.train()
    try:
        with torch.no_grad(), preserve_random_state(), contextlib.closing(batches):
            for number, batch in enumerate(batches, start=1):
                for module in norms:
                    module.momentum = 1 / number  # the mean of all so far
                compute_batch_losses(run.task, model, to_device(batch, run.world.device), run.world.device, precision)
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
        model.eval()
    return len(keys)
