"""Relations of plain objects alone, without the other checks and the fit of `sightline.check`: for many cases."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from sightline.doctor.batches import find_form
from sightline.workbench.watch.plain.counted import judge_counted
from sightline.workbench.watch.plain.loader import judge_loader
from sightline.workbench.watch.plain.loss import judge_loss, run_batch
from sightline.workbench.watch.plain.places import judge_places

CPU = torch.device("cpu")


def judge(model: nn.Module, loss: Any, data: Any) -> list[str]:
    """Return what the relations say of a batch, or of the batches of a loader and its data set."""
    batches = list(data)[:4] if isinstance(data, DataLoader) else [data]
    form = find_form(model, loss, batches[0], CPU)
    pairs, wrapped = [form.split(batch) for batch in batches], form.wrap(loss)
    passed = run_batch(model, wrapped, pairs[0], CPU)

    def rerun(place: int) -> Any:
        return run_batch(model, wrapped, pairs[place], CPU) if place < len(pairs) else None

    found = [
        *judge_loss(passed, model, wrapped, pairs),
        *judge_places(passed, wrapped, rerun),
        *judge_counted(passed, wrapped),
        *judge_loader(data, form, []),
    ]
    return [fault.summary for _, fault in found]
