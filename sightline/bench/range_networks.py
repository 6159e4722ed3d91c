"""A training step of a network over range images, as users write it and with 16 bits and channels together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.bench.agreement import allclose
from sightline.bench.case import Case, Run, Variant
from sightline.models.range_image.salsanext import SalsaNext

__all__ = ["cases"]

_NUM_CLASSES = 20
_NEAR_IN_16_BITS = 0.15
"""Of the largest logit: eight bits through forty normalised layers are off by 0.08; another computation is off by 1."""
_SMOOTH = 8
"""Pixels between independent values: on white noise an untrained network has little but rounding left."""


def cases() -> list[Case]:
    return [
        Case(
            suite="models",
            label="salsanext_step_{scans}x{rows}x{columns}",
            size={"scans": 1, "rows": 64, "columns": 1024},
            quick={"scans": 2, "rows": 32, "columns": 64},
            make=_inputs,
            baseline=Variant("plain", _step(channels_last=False, is_half=False), allclose(1e-4)),
            variants=(
                Variant("channels_last", _step(channels_last=True, is_half=False), allclose(1e-3)),
                Variant("sightline_bf16", _step(channels_last=True, is_half=True), allclose(_NEAR_IN_16_BITS)),
            ),
        )
    ]


def _inputs(*, scans: int, rows: int, columns: int) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SalsaNext(num_classes=_NUM_CLASSES, in_channels=5, dropout=0.0)
        coarse = torch.randn(scans, 5, rows // _SMOOTH, columns // _SMOOTH)
        image = F.interpolate(coarse, (rows, columns), mode="bilinear")
        label = torch.randint(_NUM_CLASSES, (scans, rows, columns))
    return {"model": model, "image": image, "label": label}


def _step(*, channels_last: bool, is_half: bool) -> Callable[[dict[str, Any]], AbstractContextManager[Run]]:
    """Forward, cross-entropy, backward and SGD; the logits are compared."""

    @contextmanager
    def opened(inputs: dict[str, Any]) -> Iterator[Run]:
        model = copy.deepcopy(inputs["model"]).train()
        model.channels_last = channels_last
        if channels_last:
            model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

        def run() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
                logits = model(image=inputs["image"])["logits"]
            F.cross_entropy(logits.float().permute(0, 3, 1, 2), inputs["label"]).backward()
            optimizer.step()
            return logits.detach().float()

        yield run

    return opened
