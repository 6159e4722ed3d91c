"""The point-wise step against torch's convolution of size 1, and the joining of channels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from sightline.layers.mlp import JoinedLinearNorm, LinearNorm, as_packed, concat_channels, dense_channels
from tests.cases import run_each
from tests.layers.passes import BOUND, assert_passes_agree, run, unsettle


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
    joined = concat_channels(points, features, in_channels=5)
    assert torch.equal(joined[..., :3], points)
    assert torch.equal(joined[..., 3:], features)
    assert concat_channels(points, None, in_channels=3) is points


def test_dense_clouds_are_packed_one_after_another() -> None:
    points, features = torch.randn(2, 4, 3), torch.randn(2, 4, 2)
    rows, more, offsets = as_packed(points, features, None)
    assert offsets.tolist() == [0, 4, 8]
    assert more is not None
    for cloud in range(2):
        assert torch.equal(rows[offsets[cloud] : offsets[cloud + 1]], points[cloud])
        assert torch.equal(more[offsets[cloud] : offsets[cloud + 1]], features[cloud])


def test_channels_of_packed_clouds_are_those_of_dense_ones() -> None:
    points, features = torch.randn(2, 4, 3), torch.randn(2, 4, 2)
    packed = dense_channels(points.flatten(0, 1), features.flatten(0, 1), torch.tensor([0, 4, 8]), in_channels=5)
    assert torch.equal(packed, dense_channels(points, features, None, in_channels=5))


@run_each("is_training", [True, False])
@run_each("has_bias", [True, False])
@run_each("first", ["whole", "each"])
def test_what_a_cloud_has_in_common_need_not_be_repeated(
    first: Literal["whole", "each"], has_bias: bool, is_training: bool
) -> None:
    """Both forms give the same pass; the plain one is a `LinearNorm` over rows put together by hand."""
    plain, fused = (
        JoinedLinearNorm(in_channels=7, out_channels=6, has_bias=has_bias, first=first, fused=fused).double()
        for fused in (False, True)
    )
    unsettle(plain)
    fused.load_state_dict(plain.state_dict())
    given = {"global_features": torch.randn(3, 4).double(), "each": torch.randn(3, 5, 3).double()}
    weight = torch.randn(3, 5, 6).double()
    found, expected = (run(layer.train(is_training), given, weight) for layer in (fused, plain))
    assert_passes_agree(found, expected, BOUND)
    repeated = given["global_features"][:, None].repeat(1, 5, 1)
    parts = (repeated, given["each"]) if first == "whole" else (given["each"], repeated)
    by_hand = LinearNorm.forward(plain.eval(), torch.cat(parts, dim=-1))
    assert torch.equal(plain(**given), by_hand)
