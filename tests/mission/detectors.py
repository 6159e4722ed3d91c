"""What notes on a detector of pedestrians ask for of networks: their layers, and weights that somebody else trained."""

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
from torch.nn import functional as F

import sightline
from tests.command import document_of, refuse, succeed
from tests.data.boxes.box_writers import pattern, write_image
from tests.detect_parity import anchor_major, load_detect_golden
from tests.golden_parity import Golden, rule_made_state
from tests.mission import networks_by_hand as by_hand
from tests.mission.rows import part, row
from tests.mission.small import CONFIGS, CPU, said, step
from tests.processes import ROOT
from tests.published_weights import write_weights
from tests.recipe_steps import SmallStep
from tests.trained import DETECT

CROWDS = CONFIGS / "detect/synthetic_crowds_retinanet.yaml"

# --- networks ---------------------------------------------------------------------------------------------------------


def assert_near(found: Tensor, expected: Tensor, about: object, bound: float = 1e-4) -> None:
    """Compare tensors, to a share of the largest expected entry."""
    assert found.shape == expected.shape, about
    error, largest = float((found - expected).abs().max()), float(expected.abs().max())
    assert largest > 0, about
    assert error <= bound * largest, (about, error, largest)


def _evaluated(small: SmallStep) -> tuple[Any, Tensor]:
    """Return the network of a step in evaluation mode, and an image of two by three cells of the coarsest stride."""
    model: Any = small.job.model.eval().float()
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.running_mean += 0.1 * torch.randn_like(module.running_mean)
    return model, torch.randn(2, 3, 64, 96)


@row(
    "S3.1",
    "build Darknet-53, ResNet, YOLOv3, RetinaNet and FCOS",
    "`model: {name: detector, backbone: {name: darknet53}, neck: {name: yolov3}, head: {name: yolov3}}`, and others",
)
def _networks(work: Path) -> None:
    """Train each for a step; then it computes what its layers, written out, compute of the same weights."""
    yolo = step("detect/synthetic_crowds_yolov3", work, "model.backbone={name: darknet53, width: 4}")
    kinds = [type(module).__name__ for module in yolo.job.model.modules()]
    assert sum(name == "Conv2d" for name in kinds) > 52
    model, image = _evaluated(yolo)
    with torch.no_grad():
        maps = by_hand.darknet53(model.backbone, image)
        _assert_equal(model(image=image), by_hand.yolov3_head(model.head, by_hand.yolov3_neck(model.neck, maps)))
    heads = {"retinanet": ("Retina", by_hand.retina_head), "fcos": ("Fcos", by_hand.fcos_head)}
    for recipe, (head, compute) in heads.items():
        model, image = _evaluated(step(f"detect/crowdhuman_{recipe}", work))
        assert type(model.get_submodule("backbone")).__name__ == "ResNet50"
        assert head.lower() in type(model.get_submodule("head")).__name__.lower()
        with torch.no_grad():
            maps = by_hand.resnet(model.backbone, image, (3, 4, 6, 3), 3)[1:]
            levels = by_hand.pyramid(model.neck, maps, upsample=model.neck.upsample)
            _assert_equal(model(image=image), compute(model.head, levels))
    _assert_sizes()


def _assert_equal(outputs: Any, expected: dict[str, Tensor]) -> None:
    assert outputs.keys() == expected.keys() | {"level_shapes"}
    for name, value in expected.items():
        assert_near(outputs[name], value, name)


def _assert_sizes() -> None:
    """Compare numbers of parameters with those of the papers' code, without memory for them."""
    retinanet = {"backbone": {"name": "resnet50"}, "neck": {"name": "fpn"}, "head": {"name": "retina"}}
    yolov3 = {"backbone": {"name": "darknet53"}, "neck": {"name": "yolov3"}, "head": {"name": "yolov3"}}
    for blocks, expected in ((retinanet, 33_839_924), (yolov3, 61_949_149)):
        with torch.device("meta"):
            model = sightline.build_model("detector", num_classes=80, **blocks)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


@row("S3.23", "build pyramids of three or five levels, and finer ones", "`model.backbone.finest_stride=4`")
def _pyramids(work: Path) -> None:
    strides = {}
    for recipe, words in {
        "synthetic_crowds_retinanet": ("model.backbone.finest_stride=4",),
        "crowdhuman_fcos": (),
        "synthetic_crowds_yolov3": (),
    }.items():
        small = step(f"detect/{recipe}", work, *words)
        neck: Any = small.job.model.get_submodule("neck")
        strides[recipe] = neck.strides
        model, image = _evaluated(small)
        task: Any = small.job.task
        assert task.get_priors(image).strides == strides[recipe]
        with torch.no_grad():
            features = model.backbone(image)
            levels, expected = model.neck(features), _fuse(model.neck, features)
        sizes = [(-(-64 // stride), -(-96 // stride)) for stride in strides[recipe]]
        assert [tuple(level.shape[2:]) for level in levels] == sizes, recipe
        assert task.get_priors(image).maps == tuple(sizes)
        for level, value in zip(levels, expected, strict=True):
            assert_near(level, value, recipe)
    three: Any = step("detect/synthetic_crowds_retinanet", work, "model.neck.levels=[3, 4, 5]").job.model.get_submodule(
        "neck"
    )
    assert three.strides == (8, 16, 32)
    assert strides["synthetic_crowds_retinanet"][0] == 4
    assert list(strides.values())[1:] == [(8, 16, 32, 64, 128), (8, 16, 32)]


def _fuse(neck: Any, maps: list[Tensor]) -> list[Tensor]:
    if not hasattr(neck, "coarser"):
        return by_hand.yolov3_neck(neck, maps)
    return by_hand.pyramid(neck, maps, num_coarser=len(neck.coarser), upsample=neck.upsample)


# --- attention --------------------------------------------------------------------------------------------------------


def _squeeze(layer: Any, image: Tensor) -> Tensor:
    weights = torch.sigmoid(layer.expand.weight @ (layer.reduce.weight @ image.mean((2, 3)).T).clamp(min=0)).T
    return image * weights[..., None, None]


def _cbam(layer: Any, image: Tensor) -> Tensor:
    first, _, last = layer.channels
    pooled = [image.mean((2, 3)).T, image.amax((2, 3)).T]
    weights: Tensor = sum(last.weight @ (first.weight @ each).clamp(min=0) for each in pooled)
    image = image * torch.sigmoid(weights).T[..., None, None]
    both = torch.stack([image.mean(1), image.amax(1)], dim=1)
    return image * F.conv2d(both, layer.positions.weight, padding=3).sigmoid()


def _eca(layer: Any, image: Tensor) -> Tensor:
    taps = layer.conv.weight.flatten()
    means = F.pad(image.mean((2, 3)), (len(taps) // 2, len(taps) // 2))
    return image * (means.unfold(1, len(taps), 1) * taps).sum(-1).sigmoid()[..., None, None]


def _simam(layer: Any, image: Tensor) -> Tensor:
    distance = (image - image.mean((2, 3), keepdim=True)).square()
    variance = distance.sum((2, 3), keepdim=True) / (image.shape[2] * image.shape[3] - 1)
    return image * torch.sigmoid(distance / (4 * (variance + 1e-4)) + 0.5)


_ATTENTION = {
    "se": ("SqueezeExcitation", _squeeze),
    "cbam": ("CBAM", _cbam),
    "eca": ("ECA", _eca),
    "simam": ("SimAM", _simam),
}
"""Class and formula of each kind of attention. Sources: Hu 2018, eq. 2 to 4; Woo 2018; Wang 2020; Yang 2021, eq. 5."""


@row("S3.28", "put attention into backbones", "`sightline describe CONFIG model.backbone.attention=se`", letter="T")
def _attention(work: Path) -> None:
    rows = document_of("describe", CROWDS, *DETECT, "model.backbone.attention=se")["modules"]
    assert "SqueezeExcitation" in [each["class_name"] for each in rows]
    step("detect/synthetic_crowds_retinanet", work, "model.backbone.attention=se")
    blocks = {"resnet18": 8, "resnet50": 16, "darknet53": 23, "cspdarknet": 8}
    for backbone, count in blocks.items():
        for name in _ATTENTION if backbone == "resnet18" else ("se",):
            _assert_attention(backbone, name, count)


def _assert_attention(backbone: str, name: str, count: int) -> None:
    """Expect a layer of attention in each block of a backbone, which is called, and computes its formula."""
    kind, formula = _ATTENTION[name]
    network = sightline.build_model(
        "detector",
        num_classes=1,
        backbone={"name": backbone, "width": 16, "attention": name},
        neck={"name": "fpn"},
        head={"name": "retina", "num_convs": 1},
    ).get_submodule("backbone")
    layers = [module for module in network.modules() if type(module).__name__ == kind]
    calls = _watch(layers, network, torch.randn(2, 3, 64, 96))
    assert [layer for layer, _, _ in calls] == layers
    assert len(layers) == count, (backbone, name)
    for layer, image, result in calls:
        assert_near(result, formula(layer, image).detach(), (backbone, name))


def _watch(layers: list[nn.Module], network: nn.Module, image: Tensor) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Run a network; return the calls of some of its layers, with the map that each is given and returns."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, given, result: calls.append((layer, given[0], result)))
    with torch.no_grad():
        network(image)
    return [(layer, given, result) for layer, given, result in calls]


# --- weights ----------------------------------------------------------------------------------------------------------

_HEADER = struct.pack("<iiiq", 0, 2, 5, 32013312)
_BACKBONE_NUMBERS, _ALL_NUMBERS = 40_620_640, 62_001_757
"""Numbers of darknet53.conv.74 and of yolov3.weights as they are published."""


def _write_darknet(path: Path, count: int) -> Path:
    """Write a sparse file in Darknet's form, whose first numbers are 1, 2, 3 and so on, and whose others are 0."""
    with open(path, "wb") as file:
        file.write(_HEADER + np.arange(1, 1121, dtype="<f4").tobytes())
        file.truncate(len(_HEADER) + 4 * count)
    return path


def _assert_first_layers(state: Any, stem: str, second: str) -> None:
    """Compare the first two convolutions: biases, scales, means, variances, then kernels, filter by filter."""
    for place, leaf in enumerate(("bias", "weight", "running_mean", "running_var")):
        assert state[f"{stem}norm.{leaf}"].tolist() == [*range(32 * place + 1, 32 * place + 33)], leaf
    kernel = torch.arange(129.0, 993.0).view(32, 3, 3, 3)
    assert torch.equal(state[f"{stem}conv.weight"], kernel)
    assert state[f"{second}norm.bias"].tolist() == [*range(993, 1057)]
    assert state[f"{second}norm.weight"].tolist() == [*range(1057, 1121)]


@row(
    "S3.2",
    "start from Darknet's weight files",
    "`sightline weights convert FILE --layout darknet_yolov3 --to DIR`",
    letter="P",
)
def _darknet(work: Path) -> None:
    header = struct.pack("<iiiq", 0, 2, 5, 32013312)
    (work / "yolov3.weights").write_bytes(header + bytes(4 * 1000))
    error = refuse("weights", "convert", work / "yolov3.weights", "--layout", "darknet_yolov3", "--to", work / "run")
    assert "1,000" in error  # of 62,001,757 numbers


@part("S3.2", "P")
def _darknet_starts(work: Path) -> None:
    """A training starts from the numbers of the file, in the order in which Darknet's parser.c reads them."""
    file = _write_darknet(work / "darknet53.conv.74", _BACKBONE_NUMBERS)
    words = ("model.backbone={name: darknet53}", f"init={{from: {file}, modules: images, into: backbone}}")
    model: Any = SmallStep("detect/synthetic_crowds_yolov3", work, *words).job.model
    _assert_first_layers(model.backbone.state_dict(), "stem.", "stages.0.0.")
    assert not model.backbone.state_dict()["stages.4.0.conv.weight"].any()


@part("S3.2", "P", is_long=True)
def _whole_darknet(work: Path) -> None:
    file = _write_darknet(work / "yolov3.weights", _ALL_NUMBERS)
    succeed("weights", "convert", file, "--layout", "darknet_yolov3", "--to", work / "run")
    model = sightline.load_run(work / "run").model
    assert sum(p.numel() for p in model.parameters()) == 61_949_149
    _assert_first_layers(model.get_submodule("backbone").state_dict(), "stem.", "stages.0.0.")


def shared_folder() -> Path:
    """Return the folder of numbers that public code gave, or skip the check where there is none."""
    folder = Path(os.environ.get("SIGHTLINE_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"the numbers of public code are not at {folder}; set SIGHTLINE_SHARED to the folder with them")
    return folder


@row(
    "S3.34",
    "run somebody's detector as a baseline",
    "`sightline weights convert FILE --to DIR`, then `sightline evaluate DIR --data CONFIG`",
    letter="W",
)
def _baseline(work: Path) -> None:
    write_weights(work / "file", "odtask_retina_resnet18")
    assert "layout: odtask_retina_resnet18" in said(
        "weights", "convert", work / "file/weights.pth", "--to", work / "run"
    )
    model = sightline.load_run(work / "run").model
    with torch.no_grad():
        outputs = model(image=torch.zeros(1, 3, 64, 64))
    assert outputs["codes"].shape[1:] == (4 * (64 + 16 + 4 + 1 + 1), 4)  # anchors of five levels


@part("S3.34", "W")
def _their_outputs(work: Path) -> None:
    """A file with the names of their own code becomes a run that predicts what their code predicts, and is scored."""
    golden = load_detect_golden(shared_folder(), "odtask_retina_resnet18")
    torch.save({"model": rule_made_state(golden.info["state"])}, work / "weights.pth")
    assert "layout: odtask_retina_resnet18" in said("weights", "convert", work / "weights.pth", "--to", work / "run")
    model = sightline.load_run(work / "run").model.eval()
    with torch.no_grad():
        outputs = model(image=golden.tensor("in.x").float())
    for name, theirs in (("logits", "eval.out.cls"), ("codes", "eval.out.reg")):
        _assert_stored(golden, anchor_major(outputs[name], outputs["level_shapes"]), theirs)
    sizes = "data: {train_size: 1, validation_size: 1, test_size: 1}"
    (work / "own.yaml").write_text(f"base: {CROWDS}\n{sizes}\n")
    words = ("--data", work / "own.yaml", "--save-predictions", "--out", work / "saved", *CPU)
    found = document_of("evaluate", work / "run", *words)
    rows = json.loads((work / "saved/detections.json").read_text())
    assert rows
    assert {*rows[0]} == {"image_id", "category_id", "bbox", "score"}
    assert found["metrics"].keys() >= {"ap", "ap50"}


def _assert_stored(golden: Golden, found: Tensor, name: str) -> None:
    """Compare an output with the places of theirs that are stored; weights in the run are float32."""
    table, expected = golden.info["arrays"].get(name), golden.tensor(name)
    if table is not None:
        assert list(found.shape) == table["full_shape"], name
        found = found.flatten()[:: table["flat_step"]]
    assert_near(found, expected, name, 1e-4)


@part("S3.34", "W", is_long=True)
def _predicted_by_it(work: Path) -> None:
    write_weights(work / "file", "torchvision_retinanet_resnet50_fpn")
    succeed("weights", "convert", work / "file/weights.pth", "--to", work / "run")
    photo = write_image(work / "photo.png", pattern(48, 64))
    assert "boxes" in json.dumps(document_of("predict", work / "run", photo, *CPU))
