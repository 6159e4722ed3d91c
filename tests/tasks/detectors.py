"""The task of detection around any model, as a config builds it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from sightline.contract import registry
from sightline.contract.binding import AvailableKeys
from sightline.contract.types import ComponentConfig

__all__ = ["make_task"]


def make_task(model: nn.Module, losses: Iterable[str], outputs: Iterable[str], **block: Any) -> Any:
    """Build the task `detect` for a model with these outputs, with these losses."""
    facts = {
        "model": model,
        "losses": {name: registry.losses.build(ComponentConfig(name), facts={}) for name in losses},
        "batch_keys": AvailableKeys("data", {"image", "boxes", "label", "is_ignored", "box_offsets"}),
        "output_keys": AvailableKeys("model", outputs),
    }
    return registry.tasks.build(ComponentConfig("detect", block), facts=facts)
