"""Loops that go on from a file: what it holds beside the weights is there again, or is left in it."""

from __future__ import annotations

import copy
import gc
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import sightline
from tests.doctor.rows.run import table_model, tables

_NUM_STEPS = 12


def make(rate: float = 1e-2) -> tuple[nn.Module, Any, Any]:
    model = table_model()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 8, 0.5)


def train(model: nn.Module, optimizer: Any, schedule: Any, average: nn.Module | None = None) -> None:
    for values, labels in tables(_NUM_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(values), labels).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for kept, own in zip(average.parameters() if average else (), model.parameters(), strict=False):
                kept.lerp_(own, 0.1)


def begin(path: Path | io.BytesIO) -> None:
    """Train the first part, and save all of it."""
    model, optimizer, schedule = make()
    average = copy.deepcopy(model)
    train(model, optimizer, schedule, average)
    parts: dict[str, Any] = {"net": model, "average": average, "optim": optimizer, "schedule": schedule}
    torch.save({**{name: part.state_dict() for name, part in parts.items()}, "epoch": 3}, path)


def go_on(bug: bool, *, lost: str, where: str = "before", settings: str = "same") -> None:
    """Resume all but one part; in the loop, before it, or in a function that keeps nothing of the file, which
    may be in memory.

    Of other settings, the weights start another training, which needs no more of the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt" if where != "from memory" else io.BytesIO()
        begin(path)
        model, optimizer, schedule = make(1e-2 if settings == "same" else 1e-4)
        average = copy.deepcopy(model)
        parts: dict[str, Any] = {"net": model, "average": average, "optim": optimizer, "schedule": schedule}
        wanted = {*parts} - ({lost} if bug else set()) if settings == "same" else {"net"}

        def resume() -> dict[str, Any]:
            path.seek(0) if isinstance(path, io.BytesIO) else None
            saved: dict[str, Any] = torch.load(path)
            for name in wanted:
                parts[name].load_state_dict(saved[name])
            return saved

        kept = resume() if where == "before" else None
        resume() if where in ("in a function", "from memory") else None
        gc.collect()  # torch.load leaves what it has read in a cycle
        with sightline.watch(model, optimizer=optimizer):
            kept = resume() if where == "in the loop" else kept
            train(model, optimizer, schedule, average)
            with torch.no_grad():
                average(tables(1)[0][0])


def two_stages(*, in_memory: bool) -> None:
    """Train on with an optimizer of its own, beside what the first part has left in memory or in a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "first.pt"
        model, optimizer, schedule = make()
        train(model, optimizer, schedule)
        first = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        if not in_memory:
            torch.save(first, path)
            first = {}
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        with sightline.watch(model, optimizer=optimizer):
            train(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 8, 0.5))
        first.clear()


LOOPS: dict[str, tuple[str, Callable[[bool], None]]] = {
    **{
        f"an optimizer's state left in its file, loaded {where}": (
            "optim.state ckpt.incomplete_state",
            partial(go_on, lost="optim", where=where),
        )
        for where in ("before", "in the loop", "in a function", "from memory")
    },
    "a schedule's steps left in their file": (
        "optim.scheduler ckpt.incomplete_state",
        partial(go_on, lost="schedule"),
    ),
    "an average left in its file": ("ckpt.incomplete_state ckpt.stale", partial(go_on, lost="average")),
}
HEALTHY: dict[str, Callable[[], None]] = {
    "weights of a file start another training": partial(go_on, False, lost="", settings="other"),
    "a second stage beside the state of the first": partial(two_stages, in_memory=True),
    "a second stage from a file of the first": partial(two_stages, in_memory=False),
}
