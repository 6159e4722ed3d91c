"""PointNet against its published sizes, two public implementations, and the symmetries it claims."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sightline.losses.classification import CrossEntropy
from sightline.losses.embeddings import FeatureTransformPenalty
from sightline.models.pointnet import PointNet, PointNetPlain, TNet
from sightline.published.translation import convert_state_dict, translate_key
from tests.golden_parity import (
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    each_mode,
    load_golden,
)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("num_classes", "in_channels", "expected"),
    [(40, 3, 3_471_473), (40, 6, 3_471_857), (15, 3, 3_465_048), (15, 6, 3_465_432), (10, 3, 3_463_763)],
)
def test_size_is_the_published_one(num_classes: int, in_channels: int, expected: int) -> None:
    assert num_parameters(PointNet(num_classes=num_classes, in_channels=in_channels)) == expected


def test_plain_size_is_the_published_one() -> None:
    assert num_parameters(PointNetPlain(num_classes=40, in_channels=3)) == 696_168


@pytest.mark.parametrize(("in_channels", "size", "expected"), [(3, 3, 803_081), (64, 64, 1_857_344)])
def test_alignment_size_is_the_published_one(in_channels: int, size: int, expected: int) -> None:
    assert num_parameters(TNet(in_channels=in_channels, size=size)) == expected


@pytest.mark.shared
@pytest.mark.parametrize(("name", "num_classes"), [("pointnet_cls_xyz", 40), ("pointnet_cls_normal", 15)])
def test_agrees_with_the_reference(shared: Path, name: str, num_classes: int) -> None:
    golden = load_golden(shared, name)
    channels, label = golden.tensor("in.x").mT, golden.tensor("in.label")
    model = PointNet(num_classes=num_classes, in_channels=channels.shape[-1]).double()
    model.load_state_dict(convert_state_dict(golden.state(), "yanx27_pointnet_cls"))
    matrices: list[Tensor] = []
    model.input_alignment.register_forward_hook(lambda module, given, output: matrices.append(output))
    features = channels[..., 3:] if channels.shape[-1] > 3 else None
    cross_entropy, penalty = CrossEntropy(num_classes=num_classes), FeatureTransformPenalty()

    for mode in each_mode(model):
        found = model(points=channels[..., :3], features=features)
        loss = cross_entropy(logits=found["logits"], label=label) / cross_entropy.count(label=label)
        pull = penalty(feature_transform=found["feature_transform"]) / penalty.count(sample_index=label)
        loss = loss + 0.001 * pull
        outputs = {"logp": found["logits"].log_softmax(dim=1), "trans_feat": found["feature_transform"]}
        assert_outputs(golden, mode, outputs, loss)
    loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, "yanx27_pointnet_cls"))
    mid = "eval.mid.input transform 3x3"
    assert_near_largest(matrices[0], golden.tensor(mid), 1e-10, mid)


@pytest.mark.shared
def test_plain_agrees_with_the_reference(shared: Path) -> None:
    golden = load_golden(shared, "pointnet_simple_wang")
    model = PointNetPlain(num_classes=40, in_channels=3).double()
    model.load_state_dict(convert_state_dict(golden.state(), "wangyueft_pointnet"))
    loss = CrossEntropy(num_classes=40, label_smoothing=0.2)
    points, label = golden.tensor("in.x").mT, golden.tensor("in.label")

    for mode in each_mode(model):
        logits = model(points=points)["logits"]
        mean_loss = loss(logits=logits, label=label) / loss.count(label=label)
        assert_outputs(golden, mode, {"logits": logits}, mean_loss)
    mean_loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, "wangyueft_pointnet"))


@pytest.mark.parametrize("kind", [PointNet, PointNetPlain])
def test_order_of_points_does_not_matter(kind: type[nn.Module]) -> None:
    model, points = kind(num_classes=4, in_channels=3).double().eval(), torch.randn(2, 30, 3, dtype=torch.float64)
    shuffled = points[:, torch.randperm(30)]
    # A maximum has no rounding; only the matrix products may split their rows differently: a few 1e-16 per layer.
    torch.testing.assert_close(model(points=shuffled)["logits"], model(points=points)["logits"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", [PointNet, PointNetPlain])
def test_one_point_and_one_sample(kind: type[nn.Module]) -> None:
    logits = kind(num_classes=4, in_channels=3).eval()(points=torch.randn(1, 1, 3))["logits"]
    assert logits.shape == (1, 4)
    assert logits.isfinite().all()


def test_alignment_starts_from_the_identity() -> None:
    """With the last layer at zero nothing is learned yet, and the matrix is the identity exactly."""
    alignment = TNet(in_channels=3, size=3).eval()
    nn.init.zeros_(alignment.head[-1].weight)
    nn.init.zeros_(alignment.head[-1].bias)
    assert torch.equal(alignment(torch.randn(2, 10, 3)), torch.eye(3).expand(2, 3, 3))


def test_features_are_not_turned_by_the_input_alignment() -> None:
    """Only xyz is multiplied: with the matrix at zero, points count for nothing but features still do."""
    model = PointNet(num_classes=4, in_channels=6).eval()
    model.input_alignment.register_forward_hook(lambda module, given, output: torch.zeros_like(output))
    points, features = torch.randn(2, 2, 10, 3).unbind(0)
    moved = model(points=points + 1, features=features)["logits"]
    assert torch.equal(moved, model(points=points, features=features)["logits"])
    assert not torch.equal(moved, model(points=points, features=features + 1)["logits"])


@pytest.mark.parametrize("kind", [PointNet, PointNetPlain])
def test_channels_first_is_refused_with_both_shapes(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"found the shape \(2, 3, 30\), expected \(B, N, 3\).*transpose"):
        kind(num_classes=4, in_channels=3)(points=torch.randn(2, 3, 30))
