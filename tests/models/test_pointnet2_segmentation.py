"""PointNet++ for parts and scenes against its published sizes and the authors' port."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sightline.losses.classification import CrossEntropy
from sightline.models.pointnet2 import PointNet2Parts, PointNet2Scenes
from sightline.published.translation import convert_state_dict, translate_key
from tests.golden_parity import (
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    cloud_inputs,
    each_mode,
    load_golden,
    stored_part,
)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("in_channels", "expected"), [(3, 1_411_250), (6, 1_411_826)])
def test_size_for_parts_is_the_published_one(in_channels: int, expected: int) -> None:
    assert num_parameters(PointNet2Parts(num_classes=50, in_channels=in_channels, num_categories=16)) == expected


def test_size_for_scenes_is_that_of_the_port() -> None:
    """As the golden file counts it; the paper gives none."""
    assert num_parameters(PointNet2Scenes(num_classes=13, in_channels=9)) == 968_269


def tap(model: nn.Module, last_group: nn.Module | None) -> dict[str, Tensor]:
    """Norms at the end of propagations, (B, C, N), and of the last group where it is written out, (B, C, K, M)."""
    seen: dict[str, Tensor] = {}
    count = len(model.propagations)

    def keep(label: str, value: Tensor) -> None:
        seen.setdefault(label, value)

    for step, propagation in enumerate(model.propagations):
        label, norm = f"fp{count - step} last bn", propagation.layers[-1].norm
        norm.register_forward_hook(lambda m, g, v, label=label: keep(label, v.view(2, -1, v.shape[-1]).mT))
    if last_group is not None:
        norm = last_group.network.layers[-1].norm
        norm.register_forward_hook(lambda m, g, v: keep("sa4 last bn", v.view(2, 16, 32, -1).permute(0, 3, 2, 1)))
    return seen


@pytest.mark.shared
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["pointnet2_ssg_partseg", "pointnet2_ssg_semseg"])
def test_agrees_with_the_reference(shared: Path, name: str, fused: bool) -> None:
    golden = load_golden(shared, name)
    is_parts = name == "pointnet2_ssg_partseg"
    if is_parts:
        layout, deepest = "yanx27_pointnet2_ssg_parts", "global"
        model = PointNet2Parts(num_classes=50, in_channels=3, num_categories=16, fused=fused).double()
    else:
        layout, deepest = "yanx27_pointnet2_ssg_scenes", "deepest"
        model = PointNet2Scenes(num_classes=13, in_channels=9, fused=fused).double()
    model.load_state_dict(convert_state_dict(golden.state(), layout))
    loss = CrossEntropy(num_classes=model.head[-1].out_features)
    given, label = cloud_inputs(golden), golden.tensor("in.label")
    seen = tap(model, None if is_parts or fused else model.abstractions[-1].groups[0])

    coarsest: list[Tensor] = []
    model.propagations[0].register_forward_pre_hook(lambda module, given: coarsest.append(given[3]))
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            logits = model(**given)["logits"]
        outputs = {"logp": logits.log_softmax(dim=-1), deepest: coarsest[-1].mT}
        mean_loss = loss(logits=logits, label=label) / loss.count(label=label)
        assert_outputs(golden, mode, outputs, mean_loss)
    mean_loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, layout))
    for mid in golden.info["eval_mids"]:
        if mid.removeprefix("eval.mid.") in seen:
            value = seen[mid.removeprefix("eval.mid.")].contiguous()
            assert_near_largest(stored_part(golden, mid, value), golden.tensor(mid), 1e-10, mid)
    assert fused or len(seen) >= len(golden.info["eval_mids"])


def test_fewer_points_than_samples_are_refused_with_the_number() -> None:
    words = r"clouds of 500 points, of which \d+ .*at least \d+ points or lower num_centres"
    points, category = torch.randn(2, 500, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=words):
        PointNet2Parts(num_classes=4, in_channels=3, num_categories=2)(points=points, category=category)
    with pytest.raises(ValueError, match=words):
        PointNet2Scenes(num_classes=4, in_channels=3)(points=points)
