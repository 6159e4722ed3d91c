"""PointNet for parts and scenes against its published sizes and the widely used code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sightline.losses.classification import CrossEntropy
from sightline.losses.embeddings import FeatureTransformPenalty
from sightline.models.pointnet import PointNetParts, PointNetScenes, TNet
from sightline.published.translation import convert_state_dict, translate_key
from tests.golden_parity import (
    Golden,
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    cloud_inputs,
    each_mode,
    load_golden,
    stored_part,
)

FUSED = pytest.mark.parametrize("fused", [True, False])


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("in_channels", "expected"), [(3, 8_342_395), (6, 8_342_779)])
def test_size_for_parts_is_the_published_one(in_channels: int, expected: int) -> None:
    assert num_parameters(PointNetParts(num_classes=50, in_channels=in_channels, num_categories=16)) == expected


def test_sizes_for_scenes_and_of_the_widest_alignment_are_the_published_ones() -> None:
    assert num_parameters(PointNetScenes(num_classes=13, in_channels=9)) == 3_529_558
    assert num_parameters(TNet(in_channels=128, size=128)) == 5_019_456


def assert_agrees(golden: Golden, model: nn.Module, layout: str, class_weights: tuple[float, ...] | None) -> None:
    """Log-probabilities, both terms of the loss, gradients and running statistics are those of the file."""
    model.load_state_dict(convert_state_dict(golden.state(), layout))
    label, given = golden.tensor("in.label"), cloud_inputs(golden)
    cross_entropy = CrossEntropy(num_classes=model.head[-1].out_features, class_weights=class_weights)
    penalty = FeatureTransformPenalty()
    for mode in each_mode(model):
        found = model(**given)
        loss = cross_entropy(logits=found["logits"], label=label) / cross_entropy.count(label=label)
        loss = loss + 0.001 * penalty(feature_transform=found["feature_transform"]) / len(label)
        outputs = {"logp": found["logits"].log_softmax(dim=-1), "trans_feat": found["feature_transform"]}
        assert_outputs(golden, mode, outputs, loss)
    loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, layout))


@pytest.mark.shared
@FUSED
def test_parts_agree_with_the_reference(shared: Path, fused: bool) -> None:
    golden = load_golden(shared, "pointnet_partseg")
    model = PointNetParts(num_classes=50, in_channels=3, num_categories=16, fused=fused).double()
    seen: dict[str, Tensor] = {}

    def keep(label: str, value: Tensor) -> None:
        seen.setdefault(label, value)

    taps = {
        "input transform": model.input_alignment,
        "conv5+bn5 (B,2048,N), no ReLU": model.encode[1],
        "bns3": model.head[1].norm,
    }
    for label, module in taps.items():
        module.register_forward_hook(lambda module, given, value, label=label: keep(label, value))
    assert_agrees(golden, model, "yanx27_pointnet_parts", None)
    found = {label: value if label == "input transform" else value.view(3, 80, -1).mT for label, value in seen.items()}
    for mid in golden.info["eval_mids"]:
        value = found[mid.removeprefix("eval.mid.")].contiguous()
        assert_near_largest(stored_part(golden, mid, value), golden.tensor(mid), 1e-10, mid)


@pytest.mark.shared
@FUSED
def test_scenes_agree_with_the_reference(shared: Path, fused: bool) -> None:
    golden = load_golden(shared, "pointnet_semseg")
    model = PointNetScenes(num_classes=13, in_channels=9, fused=fused).double()
    joined: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Tensor, Tensor]) -> None:
        whole, each = given
        joined.append(torch.cat([whole[:, None].expand(-1, each.shape[1], -1), each], dim=-1).mT)

    model.join.register_forward_pre_hook(keep)
    assert_agrees(golden, model, "yanx27_pointnet_scenes", tuple(golden.tensor("in.weight").tolist()))
    mid = "eval.mid.point features cat (B,1088,N)"
    assert_near_largest(stored_part(golden, mid, joined[0].contiguous()), golden.tensor(mid), 1e-10, mid)


def test_features_are_not_turned_by_the_input_alignment() -> None:
    """Only xyz is multiplied: with the matrix at zero, points count for nothing but features still do."""
    model = PointNetParts(num_classes=4, in_channels=6, num_categories=2).eval()
    model.input_alignment.register_forward_hook(lambda module, given, output: torch.zeros_like(output))
    points, features = torch.randn(2, 2, 10, 3).unbind(0)
    category = torch.tensor([0, 1])
    logits = model(points=points, features=features, category=category)["logits"]
    assert torch.equal(model(points=points + 1, features=features, category=category)["logits"], logits)
    assert not torch.equal(model(points=points, features=features + 1, category=category)["logits"], logits)
