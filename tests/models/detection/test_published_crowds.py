"""Published detectors of crowds: tables of names, what files mean beside their numbers, darknet's own files."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from sightline.contract import registry
from sightline.contract.errors import CheckpointError
from sightline.contract.types import ComponentConfig
from sightline.ops.priors import PriorGrid, make_anchors
from sightline.published.files import darknet_shapes as _tensors
from sightline.published.files import read_darknet
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


@pytest.mark.parametrize("layout", [*CROWDS, "odtask_darknet53", "darknet_darknet53"])
def test_tables_reach_every_module_with_state_and_no_other(layout: str) -> None:
    """Of YOLOX the largest; a file of images may lack its classifier."""
    largest = {"backbone.depth": 4, "neck.depth": 4} if layout == "yolox" else {}
    places = set(LAYOUTS[layout].values())
    without = {"head"} if layout == "darknet_darknet53" else set()
    assert places | without == {key.rpartition(".")[0] for key in meta(layout, **largest).state_dict()}


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
    succeed("data", "convert-weights", tmp_path / "weights.pth", "--layout", layout, "--to", tmp_path / "run", *words)
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


# --- darknet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "num_classes", "size"),
    [("darknet_yolov3", 80, 248_007_048), ("darknet_darknet53", 1, 162_482_580)],
)
def test_files_of_darknet_have_their_published_sizes(layout: str, num_classes: int, size: int) -> None:
    """yolov3.weights and darknet53.conv.74, whose headers have 20 bytes."""
    assert 20 + 4 * sum(shape.numel() for _, shape in _tensors(layout, num_classes)) == size


def test_a_file_of_darknet_is_read_in_the_order_of_its_layers(tmp_path: Path) -> None:
    """Shifts, scales, means and variances come before the kernel; numbers count the places in the file."""
    size = (162_482_580 - 20) // 4
    path = tmp_path / "darknet53.conv.74"
    with path.open("wb") as file:
        file.write(struct.pack("<iiiq", 0, 2, 0, 32_013_312))
        np.arange(size, dtype="<f4").tofile(file)
    state = read_darknet(path, "darknet_darknet53").state
    assert len(state) == 52 * 5
    leaves = ["norm.bias", "norm.weight", "norm.running_mean", "norm.running_var"]
    assert [float(state[f"0.{leaf}"][0]) for leaf in leaves] == [0, 32, 64, 96]
    assert state["0.conv.weight"].shape == (32, 3, 3, 3)
    assert float(state["0.conv.weight"][0, 0, 0, 1]) == 129
    assert float(state["1.norm.bias"][0]) == 128 + 864
    assert float(state["51.conv.weight"].flatten()[-1]) == pytest.approx(size - 1, rel=1e-7)
    ours = convert_state_dict(state, "darknet_darknet53")
    assert torch.equal(ours["images.stages.4.4.layers.1.conv.weight"], state["51.conv.weight"])
    with path.open("ab") as file:
        file.write(b"\0" * 4)
    with pytest.raises(CheckpointError, match=r"holds 40620641 numbers .* 'darknet_darknet53' has 40620640; get the"):
        read_darknet(path, "darknet_darknet53")


def test_darknet_puts_what_grew_first() -> None:
    """Of 128 + 256 channels that the finest block sees, its first 128 are those of the route, ours the last."""
    kernels = {
        name: torch.arange(value.shape[1], dtype=torch.float32).view(1, -1, 1, 1)
        for name, value in meta("darknet_yolov3").state_dict().items()
        if name.startswith("neck") and name.endswith("conv.weight")
    }
    routes = {f"neck.routes.{level}.conv.weight": torch.zeros(width, 1, 1, 1) for level, width in ((0, 128), (1, 256))}
    theirs: dict[str, Tensor] = {published_name(name, "darknet_yolov3"): v for name, v in (kernels | routes).items()}
    found = convert_state_dict(theirs, "darknet_yolov3")
    for level, width in ((0, 128), (1, 256)):
        seen = found[f"neck.blocks.{level}.0.conv.weight"].flatten().tolist()
        assert seen == [*range(width, 3 * width), *range(width)]


@pytest.mark.parametrize("layout", ["darknet_darknet53", "darknet_yolov3"])
def test_what_is_no_file_of_darknet_is_one_line(tmp_path: Path, layout: str) -> None:
    """Its size alone decides, before anything of it is in memory; a pipe is never opened."""
    path = tmp_path / "own.weights"
    header = struct.pack("<iiiq", 0, 2, 0, 0)
    faults = {0: "holds 0 numbers", 27: "holds 1 numbers and 3 bytes", 2**40: "holds 274877906939 numbers"}
    for size, word in faults.items():
        with path.open("wb") as file:
            file.write(header[:size])
            file.truncate(size)
        with pytest.raises(CheckpointError, match=rf"own\.weights: {word} .*; get the whole file") as caught:
            read_darknet(path, layout)
        assert "\n" not in str(caught.value)
    os.mkfifo(tmp_path / "pipe")
    for name, word in {"pipe": "not a plain file", ".": "s a directory", "n" * 300: "too long"}.items():
        with pytest.raises(CheckpointError, match=f"{word}; check the path"):
            read_darknet(tmp_path / name, layout)
