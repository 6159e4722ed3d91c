"""Layouts of torch-pointcloud's files: names, and the outputs that its own networks have for the same weights."""

from __future__ import annotations

import pytest
import torch

from sightline.contract import registry
from sightline.contract.errors import CheckpointError
from sightline.contract.types import ComponentConfig
from sightline.published.rows import model_arguments, nest_paths, read_layout
from sightline.published.translation import convert_state_dict, find_layouts
from tests.cases import run_each
from tests.marks import long_but
from tests.models.torch_pointcloud import CATEGORIES, NETWORKS, STEP, draw_clouds, make_state, read_figures

BOUND = 1e-6
FIGURES = read_figures()


@run_each("layout", NETWORKS)
def test_names_tell_the_layout(layout: str) -> None:
    assert find_layouts(FIGURES[layout]["shapes"]) == [layout]


@pytest.mark.parametrize(
    "layout",
    long_but(
        ["torch_pointcloud_point_mae_cls", "torch_pointcloud_dgcnn_parts", "torch_pointcloud_pointnet2_msg_cls"],
        NETWORKS,
    ),
)
def test_outputs_are_those_of_the_library(layout: str) -> None:
    row, figures = read_layout(layout), FIGURES[layout]
    weights = convert_state_dict(make_state(figures["shapes"], layout), layout)
    sizes = {name: size.read(weights) for name, size in row.sizes.items() if size.name in weights or name == "depth"}
    facts = {"num_classes": sizes.pop("num_classes", 40), "in_channels": sizes.pop("in_channels")}
    block = ComponentConfig(row.model, nest_paths(model_arguments(row) | sizes))
    model = registry.models.build(block, facts=facts | {"num_categories": 16}).double().eval()
    missing = model.load_state_dict(weights, strict=row.optional is None)
    assert all(name.startswith(f"{row.optional}.") for name in missing.missing_keys)
    assert not missing.unexpected_keys
    clouds = draw_clouds(layout)
    given = {"points": clouds[..., :3]}
    if facts["in_channels"] > 3:
        given["features"] = clouds[..., 3 : facts["in_channels"]]
    if layout.endswith("_parts"):
        given["category"] = torch.tensor(CATEGORIES)
    with torch.no_grad():
        outputs = model.encode(**given) if missing.missing_keys else model(**given)["logits"]
    outputs = outputs.flatten(0, 1)[::STEP] if outputs.ndim == 3 else outputs
    expected = torch.tensor(figures["outputs"], dtype=torch.float64)
    assert (outputs - expected).abs().max() < BOUND * expected.abs().max()


def test_a_bias_that_ours_lacks_may_only_be_zero() -> None:
    layout = "torch_pointcloud_dgcnn_scenes"
    state = make_state(FIGURES[layout]["shapes"], layout)
    state["head.lins.2.bias"][4] = 1e-3
    with pytest.raises(CheckpointError, match=r"the bias 'head\.2\.bias', .* is not zero; is it a variant"):
        convert_state_dict(state, layout)
