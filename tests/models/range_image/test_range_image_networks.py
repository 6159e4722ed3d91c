"""Networks over range images: their authors' numbers, and what each claims of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sightline
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig
from tests.lidar_parity import assert_parity, load_lidar_golden

# --- DeepLabV3: the dilations of its blocks, its sizes ----------------------------------------------------------------


def test_stages_are_dilated_as_in_torchvision() -> None:
    """`replace_stride_with_dilation=[False, True, True]`: (stride, dilation) of the 3 x 3 kernel of every block."""
    model = sightline.build_model("deeplabv3", num_classes=2, in_channels=5, width=4)
    kernels = [[block.layers[1].conv for block in stage] for stage in model.backbone.stages]
    assert [[(conv.stride[0], conv.dilation[0]) for conv in stage] for stage in kernels] == [
        [(1, 1)] * 3,
        [(2, 1)] + [(1, 1)] * 3,
        [(1, 1)] + [(1, 2)] * 5,
        [(1, 2)] + [(1, 4)] * 2,
    ]


@pytest.mark.parametrize(("stem_rows", "rows"), [(2, 8), (1, 16)])
def test_the_stem_keeps_rows_on_request(stem_rows: int, rows: int) -> None:
    model = sightline.build_model("deeplabv3", num_classes=2, in_channels=5, width=4, stem_rows=stem_rows).eval()
    image = torch.randn(1, 5, 64, 100)
    assert model.backbone(image).shape[2:] == (rows, 13)
    assert model(image=image)["logits"].shape == (1, 64, 100, 2)


def test_the_pooled_branch_reads_the_mean_of_each_image() -> None:
    pyramid = sightline.build_model("deeplabv3", num_classes=2, in_channels=5, width=4).eval().pyramid
    inputs: list[torch.Tensor] = []
    pyramid.mean.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    values = torch.randn(2, pyramid.mean.conv.in_channels, 3, 5)
    pyramid(values)
    assert np.allclose(inputs[0][..., 0, 0], values.numpy().reshape(2, -1, 15).sum(axis=2) / 15, atol=1e-6)


def test_a_training_batch_of_one_is_refused_with_a_reason() -> None:
    model = sightline.build_model("deeplabv3", num_classes=2, in_channels=5, width=4)
    with pytest.raises(ValueError, match=r"training batch of one image.*train\.batch_size of at least 2"):
        model(image=torch.randn(1, 5, 16, 64))
    model(image=torch.randn(2, 5, 16, 64))
    model.eval()(image=torch.randn(1, 5, 16, 64))


# --- RangeNet: the numbers of its authors' code -----------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("depth", [21, pytest.param(53, marks=pytest.mark.long)])
def test_numbers_of_rangenet_are_those_of_the_authors_code(shared: Path, depth: int) -> None:
    golden = load_lidar_golden(shared, f"lb_darknet{depth}")
    assert_parity(golden, f"lidar_bonnetal_darknet{depth}", ComponentConfig(f"rangenet{depth}", {"detach_skips": True}))


def test_columns_that_cannot_be_halved_are_named() -> None:
    model = sightline.build_model("rangenet21", num_classes=2, in_channels=5, width=2)
    with pytest.raises(ValueError, match=r"16 x 70 .* 70 columns are not a multiple of 32; .* width of 64 or 96"):
        model(image=torch.zeros(1, 5, 16, 70))
    with pytest.raises(ValueError, match=r"expected \(S, 5, H, W\)"):
        model(image=torch.zeros(1, 6, 16, 64))


# --- SalsaNext: the numbers of its authors' code ----------------------------------------------------------------------


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="width: is 15, must be even"):
        sightline.build_model("salsanext", num_classes=4, in_channels=5, width=15)


@pytest.mark.shared
def test_numbers_of_salsanext_are_those_of_the_authors_code(shared: Path) -> None:
    assert_parity(load_lidar_golden(shared, "salsanext"), "salsanext", ComponentConfig("salsanext", {}))


# --- SqueezeSeg in both versions, with and without its CRF: the numbers of the authors' code --------------------------


@pytest.mark.shared
@pytest.mark.parametrize("crf", [False, True])
@pytest.mark.parametrize("name", ["squeezeseg", "squeezesegv2"])
def test_numbers_of_squeezeseg_are_those_of_the_authors_code(shared: Path, name: str, crf: bool) -> None:
    """Their faults switched on: no gradient through the skips, and so none of the convolution that is nothing else."""
    end = "_crf" if crf else ""
    arguments = {"detach_skips": True, "crf": crf, "compat": "as_published"}
    model = assert_parity(
        load_lidar_golden(shared, f"lb_{name}{end}"), f"lidar_bonnetal_{name}{end}", ComponentConfig(name, arguments)
    )
    assert [key for key, value in model.named_parameters() if value.grad is None][:2] == [
        "whole.conv.weight", "whole.conv.bias"
    ]  # fmt: skip


def test_the_columns_start_interpolated() -> None:
    """A ramp of doubled columns is a ramp: (x_i + 3 x_i+1) / 4 and (3 x_i + x_i+1) / 4 between its pixels."""
    model = sightline.build_model("squeezeseg", num_classes=2, in_channels=5)
    ramp = torch.arange(8.0).expand(1, 64, 1, 8)
    doubled = model.up[0].upsample(ramp)[0, 0, 0]
    torch.testing.assert_close(doubled[1:-1], torch.arange(1, 15) / 2 - 0.25)


def test_a_random_field_without_coordinates_is_refused() -> None:
    with pytest.raises(ConfigError, match="crf: needs x, y and z"):
        sightline.build_model("squeezeseg", num_classes=2, in_channels=2, crf=True)
