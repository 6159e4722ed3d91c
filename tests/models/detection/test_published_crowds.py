"""Published detectors of crowds: tables of names, what files mean beside their numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sightline
from sightline.contract import registry
from sightline.contract.types import ComponentConfig
from sightline.ops.boxes.priors import PriorGrid, make_anchors
from sightline.published.rows import model_arguments as _model_arguments
from sightline.published.rows import nest_paths as _nest_paths
from sightline.published.translation import convert_state_dict, published_name
from tests.cases import run_each
from tests.command import succeed
from tests.detect_parity import load_detect_golden
from tests.golden_parity import rule_made_state
from tests.lidar_parity import theirs_of
from tests.marks import long_but
from tests.models.detection.test_crowddet_parity import STRIDES, corners_of_crowddet
from tests.published_layouts import DETECTORS, LAYOUTS, MODELS
from tests.published_layouts import make_config_of as _make_config

CROWDS = sorted(name for name in DETECTORS if not name.startswith("torchvision"))


def meta(layout: str, num_classes: int = 2, **arguments: Any) -> nn.Module:
    published = MODELS[layout]
    block = ComponentConfig(published.model, _nest_paths(_model_arguments(published) | arguments))
    with torch.device("meta"):
        return registry.models.build(block, facts={"num_classes": num_classes})  # type: ignore[no-any-return]


@pytest.mark.parametrize("layout", [*CROWDS, "odtask_darknet53"])
def test_tables_reach_every_module_with_state_and_no_other(layout: str) -> None:
    """Of YOLOX the largest."""
    largest = {"backbone.depth": 4, "neck.depth": 4} if layout == "yolox" else {}
    places = set(LAYOUTS[layout].values())
    assert places == {key.rpartition(".")[0] for key in meta(layout, **largest).state_dict()}


@run_each("layout", CROWDS)
def test_recipes_of_layouts_can_be_read_and_built(layout: str) -> None:
    """Every name and argument that a layout states is known, and its head takes its anchors, assigner and losses."""
    config = _make_config(layout, MODELS[layout], {}, None, None, ())
    assert config.task.name == "detect"
    assert config.data.name in ("coco", "crowdhuman")


# --- CrowdDet --------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_anchors_of_crowddet_are_ours_with_a_pixel_more(shared: Path) -> None:
    """Theirs have widths of x2 - x1 + 1, at every level 8 pixels from the corner; float32 there."""
    maps = ((10, 17), (5, 9), (3, 5), (2, 3), (1, 2))
    task = MODELS["crowddet_retinanet"].task
    priors = make_anchors(maps, STRIDES, task["anchors"]["sizes"], grid=PriorGrid(**task["grid"]))
    theirs = corners_of_crowddet(shared, maps) + torch.tensor([0, 0, 1, 1])
    assert priors.coordinates.shape == theirs.shape
    assert (priors.coordinates - theirs).abs().max() < 1e-3


@pytest.mark.shared
def test_converted_weights_of_crowddet_see_red_green_blue(shared: Path) -> None:
    """The maps of the backbone for the golden image, which has blue first, with its channels the other way round."""
    golden = load_detect_golden(shared, "crowddet_retinanet")
    state = convert_state_dict(rule_made_state(golden.info["state"]), "crowddet_retinanet")
    model = meta("crowddet_retinanet", 1).to_empty(device="cpu").double()
    model.load_state_dict(state)
    mean, std = (
        torch.tensor(golden.info["constructor"][f"image_{each}"], dtype=torch.float64)[:, None, None]
        for each in ("mean", "std")
    )
    assert mean.flatten().tolist() == pytest.approx([255 * each for each in (0.406, 0.456, 0.485)])
    assert std.flatten().tolist() == pytest.approx([255 * each for each in (0.225, 0.224, 0.229)])
    image = nn.functional.pad((golden.tensor("in.image") - mean) / std, (0, 32)).flip(1)
    with torch.no_grad():
        theirs_of(golden, model.backbone.forward_features(image)[0], "eval.tap.C5.0")


# --- NuayHL and YOLOX ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", long_but(["yolox"], ["odtask_retina_resnet18", "yolox"]))
def test_a_file_becomes_a_run(tmp_path: Path, layout: str) -> None:
    """Sizes are read off the tensors; the weights in the run are those of the file under our names."""
    form = {"backbone.width": 8, "backbone.depth": 2, "neck.depth": 2} if layout == "yolox" else {}
    classes = 80 if layout == "yolox" else 1
    own = {name: torch.rand(value.shape) for name, value in meta(layout, classes, **form).state_dict().items()}
    file = {published_name(name, layout): value for name, value in own.items() if not name.endswith("tracked")}
    torch.save({"model": file}, tmp_path / "weights.pth")
    words = ["task.assigner.name=fcos"] if layout == "yolox" and "simota" not in registry.assigners.names() else []
    succeed("weights", "convert", tmp_path / "weights.pth", "--layout", layout, "--to", tmp_path / "run", *words)
    lineage = json.loads((tmp_path / "run" / "lineage.json").read_text())
    assert lineage["from_shapes"] == {"num_classes": classes, **form}
    found = sightline.load_run(tmp_path / "run").model.state_dict()
    expected = convert_state_dict(file, layout)
    assert all(torch.equal(found[name], expected[name]) for name in own)
    variance = "backbone.stem.norm.running_var"
    more = 1e-3 - 1e-5 if layout == "yolox" else 0.0
    torch.testing.assert_close(expected[variance], own[variance] + more, rtol=0, atol=1e-6)
    if layout == "yolox":
        name = "backbone.stem.conv.weight"
        for place in range(12):
            theirs = 3 * (place // 3) + 2 - place % 3
            assert torch.equal(expected[name][:, place], own[name][:, theirs]), "blue first in each of four patches"
