"""Networks of detectors against the numbers of public reference code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline
from sightline.contract import registry
from sightline.contract.types import ComponentConfig
from tests.detect_parity import (
    anchor_major,
    assert_training,
    load_detect_golden,
    load_theirs,
    retina_names,
    tower_names,
)
from tests.golden_parity import Golden, each_mode
from tests.lidar_parity import theirs_of
from tests.marks import long_but
from tests.published_layouts import darknet_names

pytestmark = pytest.mark.shared


def detector(backbone: str, head: str, num_classes: int, /, **arguments: Any) -> nn.Module:
    blocks = {
        "backbone": {"name": backbone, **arguments.get("backbone", {})},
        "neck": {"name": "fpn", **arguments.get("neck", {})},
        "head": {"name": head, **arguments.get("head", {})},
    }
    return sightline.build_model("detector", num_classes=num_classes, **blocks).double()


# --- backbones -------------------------------------------------------------------------------------------------------


def test_darknet_is_that_of_odtask(shared: Path) -> None:
    """Its leaky ReLU has torch's slope of 0.01; its classifier, which it does not use for maps, is left out."""
    golden = load_detect_golden(shared, "odtask_darknet53")
    model: nn.Module = registry.backbones.build(ComponentConfig("darknet53", {"slope": 0.01}), facts={}).double()
    names = darknet_names("", "")
    load_theirs(golden, model, names)
    seen: dict[str, Tensor] = {}
    for tap, module in (("stem", model.stem), ("stage1", model.stages[0]), ("stage2", model.stages[1])):
        module.register_forward_hook(lambda _, __, found, tap=tap: seen.update({tap: found}))
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            outputs = {
                f"out.C{level}": each for level, each in zip((3, 4, 5), model(golden.tensor("in.x")), strict=True)
            }
        if mode == "eval":
            for name, value in {**outputs, **{f"tap.{tap}": value for tap, value in seen.items()}}.items():
                theirs_of(golden, value, f"eval.{name}")
    assert_training(golden, model, names, outputs)


# --- RetinaNet -------------------------------------------------------------------------------------------------------


def both_modes(golden: Golden, model: nn.Module, names: dict[str, str], *, split: bool, taps: dict[str, str]) -> None:
    """Outputs in the order of NuayHL's code, and maps on the way; a network for both modes is loaded once."""
    load_theirs(golden, model, names)
    seen: dict[str, list[Tensor]] = {}
    for tap, name in taps.items():
        model.get_submodule(name).register_forward_hook(lambda _, __, maps, tap=tap: seen.update({tap: maps}))
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            found = model(image=golden.tensor("in.x"))
        shapes = found["level_shapes"]
        logits, codes = (anchor_major(found[name], shapes) for name in ("logits", "codes"))
        outputs = {"out.cls": logits, "out.reg": codes} if split else {"out": torch.cat([codes, logits], dim=1)}
        if mode == "eval":
            for name, value in outputs.items():
                theirs_of(golden, value, f"eval.{name}")
            for tap, maps in seen.items():
                for place, each in enumerate(maps):
                    theirs_of(golden, each, f"eval.tap.{tap}.{place}")
    assert_training(golden, model, names, outputs)


@pytest.mark.parametrize(
    ("file", "depths", "count"),
    long_but(
        [("odtask_retina_resnet18", (2, 2, 2, 2), 2)],
        [("odtask_retina_resnet18", (2, 2, 2, 2), 2), ("odtask_retina_resnet50", (3, 4, 6, 3), 3)],
    ),
)
def test_retinanet_is_that_of_odtask(shared: Path, file: str, depths: tuple[int, ...], count: int) -> None:
    """P6 of C5; its classes are logits, though it defines a sigmoid."""
    golden = load_detect_golden(shared, file)
    model = detector(file.rpartition("_")[2], "retina", 1, neck={"p6_source": "c5"}, head={"num_anchors": 4})
    towers = {
        **tower_names("classification", "head.class_tower", [f"conv{i + 1}" for i in range(4)]),
        **tower_names("regression", "head.box_tower", [f"conv{i + 1}" for i in range(4)]),
        "classification.output": "head.classes.conv",
        "regression.output": "head.boxes.conv",
    }
    assert sum(each.numel() for each in model.parameters()) == golden.info["parameters"]
    names = retina_names(depths, count, neck="fpn", towers=towers)
    both_modes(golden, model, names, split=True, taps={"fpn": "neck"})


def test_retinanet_is_that_of_crowddetection(shared: Path) -> None:
    """A neck as wide as C3, one class more than there are, and boxes and classes in one tensor."""
    golden = load_detect_golden(shared, "crowddetection_retina_r18")
    model = detector("resnet18", "retina", 2, neck={"p6_source": "c5", "width": 128}, head={"num_anchors": 4})
    towers = {
        **tower_names("head.cls_branch", "head.class_tower", [str(2 * i) for i in range(4)]),
        **tower_names("head.reg_branch", "head.box_tower", [str(2 * i) for i in range(4)]),
        "head.cls_branch.8": "head.classes.conv",
        "head.reg_branch.8": "head.boxes.conv",
    }
    names = retina_names((2, 2, 2, 2), 2, neck="neck", towers=towers)
    both_modes(golden, model, names, split=False, taps={"C": "backbone", "P": "neck"})


# --- heads with centre-ness ------------------------------------------------------------------------------------------

STRIDES = (8, 16, 32, 64, 128)
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "fcos_head_improved": ("fcos", {}),
    "fcos_head_original": ("fcos", {"distances": "exp", "centreness_on": "cls"}),
    "atss_head": ("atss", {}),
}


@pytest.mark.parametrize("golden_name", HEADS)
def test_heads_with_centreness_are_those_of_their_authors(shared: Path, golden_name: str) -> None:
    """FCOS gives distances in strides in training and in pixels in evaluation, ours in pixels always."""
    golden = load_detect_golden(shared, golden_name)
    name, arguments = HEADS[golden_name]
    facts = {"num_classes": 3, "channels": (64,) * 5, "strides": STRIDES}
    builder = registry.heads.get_entry(name).builder
    model: nn.Module = builder(**facts, **arguments).double()
    assert sum(each.numel() for each in model.parameters()) == golden.info["parameters"]
    names = {"cls_logits": "classes.conv", "bbox_pred": "boxes.conv", "centerness": "centreness.conv"}
    for theirs, ours in (("cls_tower", "class_tower"), ("bbox_tower", "box_tower")):
        names |= {f"{theirs}.{3 * i}": f"{ours}.{i}.conv" for i in range(4)}
        names |= {f"{theirs}.{3 * i + 1}": f"{ours}.{i}.norm" for i in range(4)}
    # Ours has the scales in one vector: five parameters of one number each stand for it while numbers are compared.
    del model.scales
    scales = nn.ParameterList(torch.ones((), dtype=torch.float64) for _ in STRIDES)
    model.scales = scales
    names |= {f"scales.{i}.scale": f"scales.{i}" for i in range(5)}
    load_theirs(golden, model, names)
    maps = [golden.tensor(f"in.P{level}") for level in range(3, 8)]
    for mode in each_mode(model):
        found = model(maps)
        outputs = {}
        counts = [each.shape[2] * each.shape[3] for each in maps]
        for key, theirs in (("logits", "cls"), ("codes", "box"), ("centreness", "ctr")):
            values = found[key] if found[key].ndim == 3 else found[key][..., None]
            for place, part in enumerate(values.split(counts, dim=1)):
                part = part.mT.unflatten(2, maps[place].shape[2:])
                is_in_strides = theirs == "box" and mode == "train" and golden_name == "fcos_head_improved"
                outputs[f"out.{theirs}.{place}"] = part / STRIDES[place] if is_in_strides else part
        if mode == "eval":
            for label, value in outputs.items():
                theirs_of(golden, value, f"eval.{label}")
    assert_training(golden, model, names, outputs)
