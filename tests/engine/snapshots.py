"""A small snapshot for tests of checkpoints, and how to compare two to the bit."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.runs.checkpoint import Snapshot


def snapshot_of(step: int, *, attempt: int = 0) -> Snapshot:
    """A small snapshot that differs in every file from step to step and from attempt to attempt."""
    weight = torch.arange(6.0).reshape(2, 3) + step + attempt / 2
    buffers = {"running_mean": torch.full((3,), float(step)), "seen": torch.tensor(step)}
    return Snapshot(
        step=step,
        model={"weight": weight, "tied": weight, **buffers},
        optimizer={"weight/exp_avg": weight * 2, "weight/step": torch.tensor(float(step))},
        ema={"weight": weight.clone() / 3},
        state={"best": {"value": step / 7, "name": "accuracy"}, "random": ["AAAA", "BBBB"], "attempt": attempt},
    )


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def assert_same(found: Snapshot, expected: Snapshot) -> None:
    for part in ("model", "optimizer", "ema"):
        mine, theirs = getattr(found, part), getattr(expected, part)
        assert (mine is None) == (theirs is None)
        assert {n: bits(t) for n, t in (mine or {}).items()} == {n: bits(t) for n, t in (theirs or {}).items()}
    assert found.step == expected.step
    assert found.state == expected.state
