"""Dead units: layers of which most units get no gradient from any sample."""

from __future__ import annotations

from torch import nn

from sightline.workbench.check.core.finding import Fault

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers with a unit for each output channel."""


def make_dead_fault(layer: str, share: float, num_units: int) -> Fault:
    """Make the fault of a layer in which a share of the units is dead; the caller adds what it expects."""
    return Fault(
        f"{share:.0%} of the units of '{layer}' are dead: no sample gives them a gradient",
        layer=layer,
        measured=f"the gradient is exactly 0 for {round(share * num_units)} of {num_units} units",
    )
