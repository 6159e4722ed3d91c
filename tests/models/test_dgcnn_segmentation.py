"""DGCNN for parts and scenes against its published sizes and the authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.layers.mlp import LinearNorm
from sightline.losses.classification import CrossEntropy
from sightline.models.dgcnn import DGCNNParts, DGCNNScenes, SpatialTransform
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


def test_sizes_are_the_published_ones() -> None:
    assert num_parameters(DGCNNParts(num_classes=50, in_channels=3, num_categories=16)) == 1_460_361
    assert num_parameters(DGCNNScenes(num_classes=13, in_channels=9)) == 983_552
    assert num_parameters(SpatialTransform(num_neighbours=5, fused=True)) == 801_289


def build(name: str, fused: bool) -> tuple[nn.Module, str]:
    if name == "dgcnn_partseg_antao":
        model = DGCNNParts(num_classes=50, in_channels=3, num_categories=16, num_neighbours=20, fused=fused)
        return model.double(), "antao97_dgcnn_parts"
    model = DGCNNScenes(num_classes=13, in_channels=9, num_neighbours=20, first_graph="place", fused=fused)
    return model.double(), "antao97_dgcnn_scenes"


def tap(model: nn.Module) -> dict[str, Tensor]:
    """What passes the places that the files name, filled by the next pass; edges only where they are written out."""
    seen: dict[str, Tensor] = {}

    def keep(label: str, module: nn.Module, value: Tensor) -> None:
        if not module.training:
            seen[label] = value

    if hasattr(model, "alignment"):
        transform, head, category = model.alignment, model.head[3], model.category
        transform.register_forward_hook(lambda m, g, v: keep("transform 3x3 row-major (B,9)", m, v.flatten(1)))
        head.register_forward_hook(lambda m, g, v: keep("conv10", m, v.mT))
        category.register_forward_hook(lambda m, g, v: keep("label embedding", m, v[..., None]))
    embed = model.levels.embed
    embed.register_forward_pre_hook(
        lambda m, g: keep("conv6", m, LinearNorm.forward(m, *g).mT) if not m.training else None
    )
    last = [edge.network.layers[1] for edge in model.levels.edges[:2]] + [model.levels.edges[2].edge]
    for number, layer in enumerate(last):
        label = f"block{number + 1}"
        layer.register_forward_hook(lambda m, g, v, label=label: keep(label, m, v.permute(0, 3, 1, 2)))
    return seen


@pytest.mark.shared
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["dgcnn_partseg_antao", "dgcnn_semseg_antao"])
def test_agrees_with_the_reference(shared: Path, name: str, fused: bool) -> None:
    golden = load_golden(shared, name)
    model, layout = build(name, fused)
    model.load_state_dict(convert_state_dict(golden.state(), layout))
    loss = CrossEntropy(num_classes=golden.info["eval_outputs"]["eval.out.logits"]["shape"][1], label_smoothing=0.2)
    given, label, seen = cloud_inputs(golden), golden.tensor("in.label"), tap(model)

    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            logits = model(**given)["logits"]
        mean_loss = loss(logits=logits, label=label) / loss.count(label=label)
        assert_outputs(golden, mode, {"logits": logits.mT}, mean_loss)
    mean_loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, layout))
    mids = {label for label in golden.info["eval_mids"] if not (fused and "block" in label)}
    for mid in mids:
        value = next(value for label, value in seen.items() if mid.removeprefix("eval.mid.").startswith(label))
        assert_near_largest(stored_part(golden, mid, value.contiguous()), golden.tensor(mid), 1e-10, mid)


def test_transform_starts_from_the_identity() -> None:
    transform = SpatialTransform(num_neighbours=4, fused=True).eval()
    assert torch.equal(transform(torch.randn(2, 10, 3)), torch.eye(3).expand(2, 3, 3))


def test_first_graph_of_parts_reads_coordinates_alone() -> None:
    """Features a hundred times as large leave the first graph as it is."""
    model = DGCNNParts(num_classes=4, in_channels=5, num_categories=2, num_neighbours=5).eval()
    points, features, category = torch.randn(2, 20, 3), torch.randn(2, 20, 2), torch.tensor([0, 1])
    seen = []
    model.levels.edges[0].register_forward_hook(lambda module, given, output: seen.append(given[1]))
    for factor in (1, 100):
        model(points=points, features=factor * features, category=category)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(("first_graph", "moved"), [("points", slice(0, 3)), ("place", slice(6, 9))])
def test_first_graph_of_scenes_is_sought_where_it_is_told(first_graph: str, moved: slice) -> None:
    """It changes with the three channels named, and with no others."""
    arguments = {"num_classes": 4, "in_channels": 9, "num_neighbours": 5, "first_graph": first_graph}
    model, channels = DGCNNScenes(**arguments).eval(), torch.randn(1, 30, 9)
    seen = []
    model.levels.edges[0].register_forward_hook(lambda module, given, output: seen.append(given[1]))
    elsewhere = torch.randn(1, 30, 9)
    elsewhere[..., moved] = channels[..., moved]
    there = channels.clone()
    there[..., moved] = torch.randn(1, 30, 3)
    for values in (channels, elsewhere, there):
        model(points=values[..., :3], features=values[..., 3:])
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_a_place_that_no_channel_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"first_graph: place .* at least 6 channels, there are 3"):
        DGCNNScenes(num_classes=4, in_channels=3, first_graph="place")
