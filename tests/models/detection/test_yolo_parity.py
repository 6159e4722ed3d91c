"""YOLOv3 and YOLOX against the numbers of public reference code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline
from tests.detect_parity import anchor_major, assert_training, load_detect_golden, load_theirs
from tests.golden_parity import Golden, each_mode
from tests.lidar_parity import theirs_of
from tests.published_layouts import LAYOUTS as YOLO_LAYOUTS
from tests.published_layouts import darknet_names, yolov3_names

pytestmark = pytest.mark.shared


def yolov3(num_classes: int) -> nn.Module:
    """With the slope of NuayHL's leaky ReLUs, and the batch norm and leaky ReLU after their last layer."""
    blocks: dict[str, Any] = {
        "backbone": {"name": "darknet53", "slope": 0.01},
        "neck": {"name": "yolov3", "slope": 0.01},
        "head": {"name": "yolov3", "num_anchors": 4, "slope": 0.01, "as_published": True},
    }
    return sightline.build_model("detector", num_classes=num_classes, **blocks).double()


def watched(model: nn.Module, taps: dict[str, str]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for tap, name in taps.items():
        model.get_submodule(name).register_forward_hook(lambda _, __, found, tap=tap: seen.update({tap: found}))
    return seen


def assert_maps(golden: Golden, seen: dict[str, Any]) -> None:
    for tap, maps in seen.items():
        for place, each in enumerate(maps) if isinstance(maps, list) else [(None, maps)]:
            theirs_of(golden, each, f"eval.tap.{tap}" if place is None else f"eval.tap.{tap}.{place}")


def in_one(found: dict[str, Tensor]) -> Tensor:
    """Boxes, objectness and classes (B, P, 5 + K)."""
    return torch.cat([found["codes"], found["objectness"][..., None], found["logits"]], dim=2)


def test_yolov3_is_that_of_crowddetection(shared: Path) -> None:
    golden = load_detect_golden(shared, "crowddetection_yolov3")
    names = darknet_names("backbone.", "backbone.") | yolov3_names(
        [f"neck.p{level}_out" for level in (3, 4, 5)],
        [f"head.p{level}_head" for level in (3, 4, 5)],
        ["neck.p4_to_p3", "neck.p5_to_p4"],
    )
    model = yolov3(1)
    assert sum(each.numel() for each in model.parameters()) == golden.info["parameters"]
    load_theirs(golden, model, names)
    seen = watched(model, {"C": "backbone", "P": "neck"})
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            found = model(image=golden.tensor("in.x"))
        outputs = {"out": anchor_major(in_one(found), found["level_shapes"])}
        if mode == "eval":
            theirs_of(golden, outputs["out"], "eval.out")
            assert_maps(golden, seen)
    assert_training(golden, model, names, outputs)


def test_yolov3_is_that_of_odtask(shared: Path) -> None:
    """Maps of a level hold block after block of an anchor; its classifier is not used."""
    golden = load_detect_golden(shared, "odtask_yolov3_core")
    names = {key: ours for key, ours in YOLO_LAYOUTS["odtask_yolov3"].items() if not key.startswith("core.")}
    model = yolov3(2)
    classifier = 1024 * 2 + 2
    assert sum(each.numel() for each in model.parameters()) == golden.info["parameters"] - classifier
    load_theirs(golden, model, names)
    seen = watched(
        model, {"det1": "neck.blocks.2", "det2": "neck.blocks.1", "det3": "neck.blocks.0", "up1": "neck.routes.1"}
    )
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            found = model(image=golden.tensor("in.x"))
        shapes = found["level_shapes"][0].tolist()
        levels = in_one(found).split([4 * height * width for height, width in shapes], dim=1)
        outputs = {
            f"out.P{3 + place}": level.unflatten(1, (*shapes[place], 4)).permute(0, 3, 4, 1, 2).flatten(1, 2)
            for place, level in enumerate(levels)
        }
        if mode == "eval":
            for name, value in outputs.items():
                theirs_of(golden, value, f"eval.{name}")
            assert_maps(golden, seen)
    assert_training(golden, model, names, outputs)


def test_yolox_is_that_of_its_authors(shared: Path) -> None:
    """Theirs gives sigmoids of objectness and classes, and what a box layer gives before it is decoded."""
    golden = load_detect_golden(shared, "yolox_nano_width")
    names = YOLO_LAYOUTS["yolox"]
    blocks: dict[str, Any] = {"backbone": {"name": "cspdarknet", "width": 16}, "neck": {"name": "pafpn"}}
    model = sightline.build_model("detector", num_classes=3, **blocks, head={"name": "yolox"}).double()
    assert sum(each.numel() for each in model.parameters()) == golden.info["parameters"]
    load_theirs(golden, model, names)
    seen = watched(model, {"dark5": "backbone.stages.3", "stem0": "head.stems.0", "neck": "neck"})
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            found = model(image=golden.tensor("in.x"))
        counts = found["level_shapes"][0].prod(dim=1)
        stride = torch.repeat_interleave(torch.tensor([8.0, 16, 32], dtype=torch.float64), counts)[:, None]
        near, far = (found["codes"] / stride).split(2, dim=2)
        raw = torch.cat([(far - near) / 2 + 0.5, (near + far).log()], dim=2)
        rest = torch.cat([found["objectness"][..., None], found["logits"]], dim=2).sigmoid()
        outputs = {"out.raw": torch.cat([raw, rest], dim=2)}
        maps = {f"out.P{3 + place}": each for place, each in enumerate(seen.pop("neck"))}
        for name, value in maps.items():
            theirs_of(golden, value, f"{mode}.{name}")
        if mode == "eval":
            theirs_of(golden, outputs["out.raw"], "eval.out.raw")
            assert_maps(golden, seen)
    assert_training(golden, model, names, outputs)
