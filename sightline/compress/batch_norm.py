"""Running statistics of batch norms, estimated anew for weights that changed."""

from __future__ import annotations

import contextlib

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sightline.engine.device import to_device
from sightline.engine.loading import OpenRun
from sightline.engine.precision import Precision
from sightline.engine.records import kept_random_state
from sightline.engine.step import run_batch
from sightline.engine.stream import evaluation_keys, read_batches

__all__ = ["reestimate"]


def reestimate(model: nn.Module, run: OpenRun, *, num_batches: int) -> int:
    """Replace the running statistics by the means over the first training batches; how many batches were read.

    Forward passes in training mode, without gradient. Source: Yu and Huang 2019 (slimmable networks), section 3.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms or num_batches == 0:
        return 0
    config, part = run.config, run.data.train
    keys = evaluation_keys(
        part.spread(num_batches * config.train.batch_size), config.train.batch_size, epoch=0, seed=config.seed
    )
    precision = Precision(config.train.precision)
    momenta = [module.momentum for module in norms]
    model.train()
    with torch.no_grad(), kept_random_state(), contextlib.closing(read_batches(part.reader, iter(keys), 0)) as batches:
        for number, batch in enumerate(batches, start=1):
            for module in norms:
                module.momentum = 1 / number  # the mean of all so far
            run_batch(run.task, model, to_device(batch, run.world.device), run.world.device, precision)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    model.eval()
    return len(keys)
