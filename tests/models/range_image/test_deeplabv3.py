"""DeepLabV3: its published counts, the dilations of its blocks, its sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sightline


@pytest.mark.parametrize(
    ("depth", "num_classes", "count"), [(50, 20, 39_644_884), (101, 20, 58_637_012), (50, 4, 39_640_772)]
)
def test_parameters_are_as_published(depth: int, num_classes: int, count: int) -> None:
    """Of four classes by hand: 16 classes less are 16 * 257 weights less."""
    model = sightline.build_model("deeplabv3", num_classes=num_classes, in_channels=5, depth=depth)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


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
