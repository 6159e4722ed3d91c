"""Range images that are a full turn: every network turns with the sensor, and without `circular` its border stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sightline
from sightline.areas.scans.models.range_image_network import RangeImageNetwork
from sightline.contract.registry import models

NETWORKS: dict[str, dict[str, Any]] = {
    "deeplabv3": {"width": 4},
    "rangenet21": {"width": 4},
    "rangenet53": {"width": 4},
    "salsanext": {"width": 8},
    "squeezeseg": {"crf": True},
    "squeezesegv2": {"crf": True},
}
SHIFT = 32


def test_every_network_is_here() -> None:
    assert {name for name in models.names() if issubclass(models.get_entry(name).builder, RangeImageNetwork)} == set(
        NETWORKS
    )


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_turning_the_sensor_turns_the_logits(name: str, is_training: bool) -> None:
    """By 32 columns, the largest step of any network; with batch statistics too, for a turn does not change them."""
    arguments = {**NETWORKS[name], "dropout": 0.0}
    model = sightline.build_model(name, num_classes=4, in_channels=5, circular=True, **arguments).double()
    image = torch.randn(2, 5, 16, 128, dtype=torch.float64)
    model.train(is_training)
    still, turned = model(image=image)["logits"], model(image=image.roll(SHIFT, -1))["logits"]
    assert still.shape == (2, 16, 128, 4)
    torch.testing.assert_close(turned, still.roll(SHIFT, 2), rtol=1e-9, atol=1e-9)

    plain = sightline.build_model(name, num_classes=4, in_channels=5, **arguments).double()
    plain.load_state_dict(model.state_dict())
    border = plain.train(is_training)(image=image)["logits"]
    assert (border - still).abs().max() > 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_together_in_memory_change_nothing(name: str) -> None:
    arguments = {**NETWORKS[name], "num_classes": 4, "in_channels": 5}
    model, other = (
        sightline.build_model(name, channels_last=together, **arguments).double().eval() for together in (False, True)
    )
    other.load_state_dict(model.state_dict())
    image = torch.randn(1, 5, 16, 64, dtype=torch.float64)
    found = other(image=image)["logits"]
    torch.testing.assert_close(found, model(image=image)["logits"], rtol=1e-10, atol=1e-10)
