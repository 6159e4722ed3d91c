"""Norms of detectors: frozen ones, frozen parts, and group norms."""

from __future__ import annotations

import torch
from torch import nn

from sightline.layers.images import ConvNorm
from sightline.layers.norms import FrozenBatchNorm, freeze_module, make_group_norm
from tests.cases import run_each


def a_batch_norm(channels: int = 3) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).double()
    norm(torch.randn(4, channels, 5, 5, dtype=torch.float64) * 3 + 1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def test_a_frozen_norm_is_the_norm_of_evaluation_in_training_too() -> None:
    norm, image = a_batch_norm(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    frozen = FrozenBatchNorm(3).double().train()
    frozen.load_state_dict(norm.state_dict())
    torch.testing.assert_close(frozen(image), norm.eval()(image), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, norm.state_dict()[name]) for name, value in frozen.state_dict().items())
    assert not list(frozen.parameters())
    norm.load_state_dict(frozen.state_dict())  # and back


def test_a_frozen_part_keeps_its_state_and_loses_its_parameters() -> None:
    part = nn.Sequential(ConvNorm(in_channels=3, out_channels=4, kernel_size=3), nn.Conv2d(4, 2, 1)).double()
    part(torch.randn(4, 3, 5, 5, dtype=torch.float64))
    image, before = torch.randn(2, 3, 5, 5, dtype=torch.float64), part.state_dict()
    expected = part.eval()(image).detach()
    freeze_module(part)
    assert not list(part.parameters())
    found = part.train()(image)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not found.requires_grad
    after = part.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@run_each("channels, groups", [(256, 32), (64, 32), (32, 16), (16, 8), (48, 8), (6, 1), (5, 1), (1, 1)])
def test_group_norm_has_groups_for_any_width(channels: int, groups: int) -> None:
    assert make_group_norm(channels).num_groups == groups
