"""The point-wise step against torch's convolution of size 1, and the joining of channels."""

from __future__ import annotations

import torch
from torch import nn

from sightline.layers.cloud import join_channels
from sightline.layers.mlp import LinearNorm


def test_is_a_convolution_of_size_one_with_batch_norm() -> None:
    ours = LinearNorm(in_channels=5, out_channels=7, has_bias=True, activation=nn.ReLU()).double()
    conv, norm = nn.Conv2d(5, 7, 1).double(), nn.BatchNorm2d(7).double()
    conv.load_state_dict({"weight": ours.linear.weight[:, :, None, None], "bias": ours.linear.bias})
    values = torch.randn(3, 4, 6, 5).double()
    expected = norm(conv(values.permute(0, 3, 1, 2))).relu().permute(0, 2, 3, 1)
    # Sums of 5 and of 72 terms in another order, divided by a standard deviation near 1.
    torch.testing.assert_close(ours(values), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(ours.norm.running_var, norm.running_var, rtol=1e-13, atol=0)


def test_channels_follow_the_coordinates() -> None:
    points, features = torch.randn(2, 4, 3), torch.randn(2, 4, 2)
    joined = join_channels(points, features, in_channels=5)
    assert torch.equal(joined[..., :3], points)
    assert torch.equal(joined[..., 3:], features)
    assert join_channels(points, None, in_channels=3) is points
