"""Layers in plain NumPy against torch's, two origins that share nothing, and layers with bugs against them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.workbench.check.oracles.known_layers import examine_known, is_known, make_input, shrink_layer
from sightline.workbench.check.oracles.losses import cross_entropy, mean_square, orthogonality
from sightline.workbench.check.oracles.references import find_reference, relative_error, to_float64_array
from sightline.workbench.check.oracles.results import FORWARD, OracleResult
from tests.cases import run_each

LAYERS = [
    (nn.Linear(4, 3), (2, 5, 4)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7)),
    (nn.Conv2d(2, 3, (3, 2), padding=(2, 1), dilation=(2, 1), padding_mode="circular"), (2, 2, 5, 6)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", bias=False), (2, 2, 5, 6)),
    (nn.Conv2d(2, 3, (5, 3), padding="same"), (2, 2, 5, 6)),
    (nn.Conv2d(4, 8, 3, groups=4), (1, 4, 5, 4)),
    (nn.Conv3d(1, 2, 7, padding=3), (1, 1, 7, 8, 9)),
    (nn.ConvTranspose2d(4, 6, 3, 2, padding=1, output_padding=1, groups=2, dilation=2), (2, 4, 3, 4)),
    (nn.ConvTranspose3d(2, 3, 2, 2), (2, 2, 3, 4, 2)),
    (nn.BatchNorm1d(3), (4, 3)),
    (nn.BatchNorm2d(3, affine=False), (4, 3, 2, 3)),
    (nn.BatchNorm3d(3, eps=1e-3), (2, 3, 2, 3, 4)),
    (nn.LayerNorm((3, 4)), (2, 3, 4)),
    (nn.LayerNorm(4, elementwise_affine=False), (2, 3, 4)),
    (nn.GroupNorm(2, 4), (2, 4, 3)),
    (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 2, 6, 7)),
    (nn.MaxPool2d(2, 1, dilation=2), (1, 1, 6, 7)),
    (nn.MaxPool3d(2, 2), (1, 2, 5, 4, 6)),
    (nn.AvgPool1d(2), (1, 2, 5)),
    (nn.AvgPool2d(3, 2, 1), (1, 2, 5, 6)),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (1, 2, 6, 6)),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (1, 2, 6, 6)),
    (nn.AdaptiveAvgPool2d((2, None)), (1, 2, 5, 3)),
    (nn.AdaptiveMaxPool1d(3), (1, 2, 5)),
    (nn.Softmax(1), (2, 3, 4)),
    (nn.LogSoftmax(-1), (2, 3)),
    (nn.GELU("tanh"), (3, 4)),
    *(
        (kind(), (3, 4))
        for kind in (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
    ),
]


class Narrow(nn.Conv2d):
    """Pads less than it says."""

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(F.conv2d(input, self.weight, self.bias, padding=0), (1, 1, 1, 1))


class NarrowUp(nn.ConvTranspose3d):
    """Cuts the other end off."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(input).roll(1, dims=2)


class Biased(nn.BatchNorm3d):
    """Remembers the biased variance."""

    def forward(self, input: Tensor) -> Tensor:
        out = F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)
        if not self.training:
            return super().forward(input)
        with torch.no_grad():
            self.running_mean.lerp_(input.mean((0, 2, 3, 4)), self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(input.var((0, 2, 3, 4), correction=0), self.momentum)  # type: ignore[union-attr, arg-type]
        return out


class Unbiased(nn.BatchNorm1d):
    """Normalises by the unbiased variance."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        super().forward(input)
        normed = (input - input.mean(0)) / (input.var(0) + self.eps).sqrt()
        return normed * self.weight + self.bias


class Coarse(nn.LayerNorm):
    """Another epsilon than it says."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, eps=1e-3)


class Half(nn.Linear):
    """Sums in half precision."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.half().to(input.dtype), self.weight, self.bias)


class ForgetsBias(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight)


class NoBackward(nn.ReLU):
    """Lets every gradient through."""

    def forward(self, input: Tensor) -> Tensor:
        return input + (input.clamp(min=0) - input).detach()


@run_each("layer, shape", LAYERS)
def test_references_agree_with_torch(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer = copy.deepcopy(layer).double()
    values = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = find_reference(layer)
    assert found is not None
    expected = found[1](layer, to_float64_array(values))
    assert relative_error(layer(values), expected) < 1e-14


@run_each("layer, shape", LAYERS)
def test_torchs_own_layers_are_right(layer: nn.Module, shape: tuple[int, ...]) -> None:
    row = examine_known(layer, OracleResult(repr(layer), "layer"))
    assert row.verdict == "checked", row
    assert row.gradient_error is not None
    assert row.gradient_error < 1e-6


@run_each(
    "layer, told",
    [
        (Narrow(2, 3, 3, padding=1), ""),
        (NarrowUp(2, 3, 2, 2), ""),
        (Biased(8), "running variance"),
        (Unbiased(8), ""),
        (Coarse(8), ""),
        (ForgetsBias(4, 3), ""),
    ],
)
def test_layers_that_are_not_what_they_derive_from(layer: nn.Module, told: str) -> None:
    row = examine_known(layer, OracleResult(repr(layer), "layer"))
    assert row.is_wrong_forward
    assert row.verdict == "wrong"
    assert told in row.note


def test_half_precision_shows_in_both_formats() -> None:
    row = examine_known(Half(8, 8), OracleResult("Half", "layer"))
    assert row.forward is not None
    assert row.forward > 1e3 * FORWARD
    assert row.verdict == "wrong"


def test_a_right_forward_with_a_wrong_backward() -> None:
    row = examine_known(NoBackward(), OracleResult("NoBackward", "layer"))
    assert not row.is_wrong_forward
    assert row.is_wrong_backward
    assert row.weakest == "input"


@run_each(
    "layer",
    [
        nn.Linear(1024, 512, bias=False),
        nn.Conv3d(32, 64, 3, stride=2, padding=1),
        nn.Conv2d(12, 24, 3, groups=12),
        nn.ConvTranspose3d(64, 32, 2, 2),
        nn.BatchNorm3d(64),
        nn.BatchNorm1d(3, momentum=None),
        nn.BatchNorm1d(3, affine=False, track_running_stats=False),
        nn.LayerNorm(384),
        nn.GroupNorm(8, 32),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(3, 96, 16, 16),
    ],
)
def test_layers_shrink_and_keep_their_arguments(layer: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    small = shrink_layer(layer, generator)
    values = make_input(small, generator)
    assert type(small) is type(layer)
    assert sum(p.numel() for p in small.parameters()) <= 2 * 3 * 16 * 16 + 8
    assert values.abs().min() > 1e-4
    assert len(values.unique()) == values.numel()
    assert examine_known(layer, OracleResult(repr(layer), "layer")).verdict == "checked"
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_what_is_not_known() -> None:
    assert not is_known(nn.MultiheadAttention(4, 2))
    assert not is_known(nn.Sequential())


def test_cross_entropy_by_rows() -> None:
    """Against torch's, whose smoothing goes over all classes."""
    generator = np.random.default_rng(0)
    logits, label = generator.normal(size=(7, 4)), generator.integers(0, 4, 7)
    label[2] = 3
    weights = [1.0, 2.0, 0.5, 3.0]
    theirs = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(label), ignore_index=3)
    assert cross_entropy(logits, label, ignore_index=3) == pytest.approx(float(theirs), rel=1e-12)
    theirs = F.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(label), weight=torch.tensor(weights).double(), label_smoothing=0.2
    )
    ours = cross_entropy(logits, label, weights=weights, smoothing=0.2, over_others=False)
    assert ours == pytest.approx(float(theirs), rel=1e-12)


def test_squares_and_orthogonality_by_hand() -> None:
    assert mean_square(np.array([1.0, 2.0]), np.array([0.0, 4.0]), np.array([1.0, 0.5])) == pytest.approx(2.0)
    # 2 I times its transpose is 4 I, 3 I away from I: the norm of 3 I in two dimensions
    assert orthogonality(np.array([np.eye(2) * 2, np.eye(2)])) == pytest.approx(3 * 2**0.5 / 2)
