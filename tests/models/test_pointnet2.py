"""PointNet++ against its published sizes, the authors' port, and the symmetries it claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.losses.classification import CrossEntropy
from sightline.models.pointnet2 import PointNet2, PointNet2MultiScale
from sightline.published.translation import convert_state_dict, translate_key
from tests.golden_parity import (
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    each_mode,
    load_golden,
    stored_part,
)
from tests.layers.passes import BOUND, assert_passes_agree, run
from tests.marks import long_but

GOLDEN = {
    "pointnet2_ssg_cls_xyz": ("yanx27_pointnet2_ssg_cls", PointNet2),
    "pointnet2_ssg_cls_normal": ("yanx27_pointnet2_ssg_cls", PointNet2),
    "pointnet2_msg_cls": ("yanx27_pointnet2_msg_cls", PointNet2MultiScale),
}


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("num_classes", "in_channels", "expected"),
    [(40, 3, 1_475_688), (40, 6, 1_475_880), (15, 3, 1_469_263), (10, 3, 1_467_978)],
)
def test_size_is_the_published_one(num_classes: int, in_channels: int, expected: int) -> None:
    assert num_parameters(PointNet2(num_classes=num_classes, in_channels=in_channels)) == expected


def test_multi_scale_size_is_the_published_one() -> None:
    assert num_parameters(PointNet2MultiScale(num_classes=40, in_channels=3)) == 1_747_368


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "fused"),
    long_but(
        [("pointnet2_ssg_cls_xyz", True), ("pointnet2_ssg_cls_normal", False)],
        [*((name, True) for name in GOLDEN), ("pointnet2_ssg_cls_normal", False)],
    ),
)
def test_agrees_with_the_reference(shared: Path, name: str, fused: bool) -> None:
    layout, kind = GOLDEN[name]
    golden = load_golden(shared, name)
    channels, label = golden.tensor("in.x").mT, golden.tensor("in.label")
    features = channels[..., 3:] if channels.shape[-1] > 3 else None
    model = kind(num_classes=40, in_channels=channels.shape[-1], fused=fused).double()
    model.load_state_dict(convert_state_dict(golden.state(), layout))
    loss = CrossEntropy(num_classes=40)

    pooled: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, given: pooled.append(given[0]))
    centres: list[Tensor] = []
    for abstraction in model.abstractions:
        abstraction.register_forward_hook(lambda module, given, value: centres.append(value[0]))
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            logits = model(points=channels[..., :3], features=features)["logits"]
        outputs = {"logp": logits.log_softmax(dim=1), "global": pooled[-1][..., None]}
        mean_loss = loss(logits=logits, label=label) / loss.count(label=label)
        assert_outputs(golden, mode, outputs, mean_loss)
    mean_loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, layout))
    for mid in (label for label in golden.info["eval_mids"] if "centres" in label):
        level = int(mid.removeprefix("eval.mid.sa")[0]) - 1
        assert_near_largest(stored_part(golden, mid, centres[level].mT.contiguous()), golden.tensor(mid), 1e-10, mid)


KINDS = pytest.mark.parametrize("kind", [PointNet2, PointNet2MultiScale])


def small(kind: type[nn.Module], **changes: Any) -> nn.Module:
    arguments: dict[str, Any] = {"num_classes": 4, "in_channels": 3, "num_centres": (16, 8)}
    return kind(**arguments | changes).double().eval()


@KINDS
def test_plain_groups_give_the_same_step(kind: type[nn.Module]) -> None:
    """Outputs, gradients and running statistics of a step in training, float64, to 1e-9."""
    models = [small(kind, in_channels=5, fused=is_fused).train() for is_fused in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
    given = {"points": 0.3 * torch.randn(3, 40, 3).double(), "features": torch.randn(3, 40, 2).double()}
    weight = torch.randn(3, 4, dtype=torch.float64)
    found, expected = (run(model, given, weight) for model in models)
    assert_passes_agree(found, expected, BOUND)


def test_order_of_points_after_the_first_does_not_matter() -> None:
    """Where a ball holds all the points in it: sampling starts at the first, and a full ball keeps the first ones."""
    model, points = small(PointNet2, num_neighbours=(40, 40)), torch.rand(2, 40, 3, dtype=torch.float64)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(39)])
    # Maxima have no rounding; the maps before them are sums of at most 259 terms.
    torch.testing.assert_close(
        model(points=points[:, order])["logits"], model(points=points)["logits"], atol=1e-11, rtol=0
    )


@KINDS
def test_place_of_the_cloud_matters_only_through_its_last_layer(kind: type[nn.Module]) -> None:
    """Groups see differences alone: the results of the first abstraction do not change when the cloud is moved."""
    model, points = small(kind), torch.rand(2, 40, 3, dtype=torch.float64)
    _, here = model.abstractions[0](points, None)
    _, there = model.abstractions[0](points + 1, None)
    # A coordinate near 1 moves by less than 1e-15 in rounding, and no distance lies that near to a radius.
    torch.testing.assert_close(there, here, rtol=0, atol=1e-12)


@KINDS
def test_copies_of_one_point_give_numbers(kind: type[nn.Module]) -> None:
    """What `drop_points` leaves: most points are copies of the first; gradients are finite too."""
    model, points = small(kind).train(), torch.randn(2, 40, 3, dtype=torch.float64)
    points[:, 5:] = points[:, :1]
    logits = model(points=points)["logits"]
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_one_point_and_one_sample() -> None:
    logits = small(PointNet2, num_centres=(1, 1))(points=torch.randn(1, 1, 3, dtype=torch.float64))["logits"]
    assert logits.isfinite().all()


@KINDS
def test_fewer_points_than_samples_are_refused_with_the_number(kind: type[nn.Module]) -> None:
    with pytest.raises(
        ValueError, match=r"clouds of 500 points, of which 512 .*at least 512 points or lower num_centres"
    ):
        kind(num_classes=4, in_channels=3)(points=torch.randn(2, 500, 3))


@KINDS
def test_nan_is_refused_with_its_place(kind: type[nn.Module]) -> None:
    points = torch.randn(2, 20, 3, dtype=torch.float64)
    points[1, 7, 2] = torch.nan
    with pytest.raises(ValueError, match=r"points\[1\]: point 7 is .*nan"):
        small(kind)(points=points)


def test_channels_first_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"found the shape \(2, 3, 30\), expected \(B, N, 3\).*transpose"):
        small(PointNet2)(points=torch.randn(2, 3, 30, dtype=torch.float64))
