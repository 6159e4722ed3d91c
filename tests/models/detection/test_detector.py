"""Detectors and their parts: published counts, negotiated channels, the order of predictions, the first scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import sightline
from sightline.areas.detect.networks import FPN, flatten_to_priors
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.model import model_output_keys
from sightline.contract.types import ComponentConfig
from sightline.layers.norms import FrozenBatchNorm
from tests.cases import run_each

BACKBONES = {
    "resnet18": (11_176_512, (128, 256, 512)),
    "resnet34": (21_284_672, (128, 256, 512)),
    "resnet50": (23_508_032, (512, 1024, 2048)),
    "resnet101": (42_500_160, (512, 1024, 2048)),
    "darknet53": (40_584_928, (256, 512, 1024)),
    "cspdarknet": (4_212_672, (128, 256, 512)),
}
WIDTH = 256


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def backbone(name: str, **arguments: Any) -> nn.Module:
    built: nn.Module = registry.backbones.build(ComponentConfig(name, arguments), facts={})
    return built


def neck(**arguments: Any) -> nn.Module:
    return registry.necks.get_entry("fpn").builder(**{"strides": (8, 16, 32)} | arguments)  # type: ignore[no-any-return]


def head(name: str, **arguments: Any) -> nn.Module:
    facts = {"channels": (WIDTH,) * 5, "strides": (8, 16, 32, 64, 128)}
    return registry.heads.get_entry(name).builder(**facts | arguments)  # type: ignore[no-any-return]


def detector(name: str = "retina", num_classes: int = 80, **blocks: dict[str, Any]) -> nn.Module:
    parts = {"backbone": {"name": "resnet50"}, "neck": {"name": "fpn"}, "head": {"name": name}}
    return sightline.build_model(
        "detector", num_classes=num_classes, **{key: part | blocks.get(key, {}) for key, part in parts.items()}
    )


def small(name: str = "retina", **blocks: dict[str, Any]) -> nn.Module:
    narrow = {"backbone": {"name": "resnet18", "width": 8}, "neck": {"width": 8}}
    return detector(name, 3, **{key: narrow.get(key, {}) | blocks.get(key, {}) for key in ("backbone", "neck", "head")})


# --- counts ----------------------------------------------------------------------------------------------------------


def test_every_part_has_its_count_here() -> None:
    assert registry.backbones.names() == sorted(BACKBONES)
    assert registry.necks.names() == ["fpn", "pafpn", "yolov3"]
    assert registry.heads.names() == ["atss", "fcos", "retina", "retina_emd", "yolov3", "yolox"]


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_are_as_published(name: str) -> None:
    with torch.device("meta"):
        built = backbone(name)
    assert (count(built), built.channels, built.strides) == (*BACKBONES[name], (8, 16, 32))


@run_each(
    "name, arguments, expected",
    [
        ("resnet50", {"levels": (3, 4, 5)}, 2_688_512),
        ("darknet53", {"levels": (3, 4, 5)}, 2_229_760),
        ("darknet53", {}, 3_409_920),
        ("resnet18", {"p6_source": "c5"}, 3_770_368),
    ],
)
def test_pyramids_are_as_published(name: str, arguments: dict[str, Any], expected: int) -> None:
    """Darknet's of three levels by hand: (256 + 512 + 1,024 + 3) * 256 + 3 * (9 * 256 + 1) * 256."""
    with torch.device("meta"):
        built = neck(channels=BACKBONES[name][1], **arguments)
    assert count(built) == expected
    assert built.channels == (WIDTH,) * len(built.strides)
    assert built.strides == (8, 16, 32, 64, 128)[: len(arguments.get("levels", range(5)))]


def test_the_head_of_pairs_is_as_published() -> None:
    with torch.device("meta"):
        assert count(head("retina_emd", num_classes=1)) == 4_928_090


@pytest.mark.parametrize(
    ("name", "num_classes", "blocks", "expected"),
    [
        ("retina", 80, {}, 33_839_924),
        ("retina", 91, {}, 34_068_119),
        ("retina", 91, {"backbone": {"norm": "frozen_bn"}}, 34_014_999),
        ("retina", 1, {}, 32_201_069),
        ("retina", 80, {"neck": {"p6_source": "c5"}}, 37_968_692),
        ("retina", 1, {"neck": {"p6_source": "c5"}}, 36_329_837),
        ("fcos", 80, {}, 32_297_370),
        ("fcos", 91, {"backbone": {"norm": "frozen_bn"}, "head": {"scales": False}}, 32_269_600),
    ],
)
def test_whole_detectors_are_as_published(
    name: str, num_classes: int, blocks: dict[str, dict[str, Any]], expected: int
) -> None:
    with torch.device("meta"):
        assert count(detector(name, num_classes, **blocks)) == expected


@pytest.mark.parametrize(
    ("num_anchors", "num_classes", "expected"),
    [(3, 80, 61_949_149), (3, 1, 61_523_734), (4, 1, 61_534_504)],
)
def test_yolov3_is_as_published(num_anchors: int, num_classes: int, expected: int) -> None:
    blocks = {"backbone": {"name": "darknet53"}, "neck": {"name": "yolov3"}, "head": {"num_anchors": num_anchors}}
    with torch.device("meta"):
        assert count(detector("yolov3", num_classes, **blocks)) == expected


@pytest.mark.parametrize(
    ("width", "depth", "expected"),
    [(24, 1, 5_055_855), (32, 1, 8_968_255), (48, 2, 25_326_495), (64, 3, 54_208_895), (80, 4, 99_071_455)],
)
def test_yolox_is_as_published(width: int, depth: int, expected: int) -> None:
    """Tiny, S, M, L and X, in millions 5.06, 8.97, 25.3, 54.2 and 99.1 in their table."""
    blocks = {
        "backbone": {"name": "cspdarknet", "width": width, "depth": depth},
        "neck": {"name": "pafpn", "depth": depth},
    }
    with torch.device("meta"):
        assert count(detector("yolox", 80, **blocks)) == expected


# --- backbones -------------------------------------------------------------------------------------------------------


@run_each("name", ["resnet18", "resnet50", "darknet53"])
@run_each("norm", ["bn", "frozen_bn", "gn"])
def test_backbones_give_three_maps_at_their_strides(name: str, norm: str) -> None:
    built = backbone(name, width=4, norm=norm)
    image = torch.randn(2, 3, 64, 96)
    assert [tuple(each.shape[1:]) for each in built(image)] == [
        (channels, 64 // stride, 96 // stride) for channels, stride in zip(built.channels, built.strides, strict=True)
    ]
    kinds = {type(each) for each in built.modules()}
    norms = {"bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm, "gn": nn.GroupNorm}
    assert kinds & set(norms.values()) == {norms[norm]}


@pytest.mark.parametrize("name", ["resnet50", "darknet53"])
@pytest.mark.parametrize("frozen", [0, 2, 4])
def test_frozen_stages_are_not_trained(name: str, frozen: int) -> None:
    built = backbone(name, width=4, frozen_stages=frozen).train()
    parts = [built.stem, *built.stages]
    assert [bool(list(part.parameters())) for part in parts] == [place >= frozen for place in range(len(parts))]
    before = {key: value.clone() for key, value in built.state_dict().items()}
    sum(each.sum() for each in built(torch.randn(2, 3, 32, 32))).backward()
    assert all(each.grad is not None for each in built.parameters())
    changed = {key for key, value in built.state_dict().items() if not torch.equal(value, before[key])}
    assert all(not key.startswith("stem.") for key in changed) == (frozen > 0)
    whole = backbone(name, width=4)
    assert whole.state_dict().keys() == built.state_dict().keys()
    whole.load_state_dict(built.state_dict())


def test_the_fact_of_other_channels_reaches_the_stem() -> None:
    built = registry.backbones.build(ComponentConfig("resnet18", {"width": 4}), facts={"in_channels": 5})
    assert len(built(torch.randn(2, 5, 32, 32))) == 3
    with pytest.raises(ValueError, match=r"image: found the shape \(1, 3, 32, 32\), expected \(B, 5, H, W\)"):
        built(torch.randn(1, 3, 32, 32))


def test_an_encoders_weights_start_a_backbone() -> None:
    """`init: {from: RUN, modules: images, into: backbone}`: names and shapes are those of the classifier's encoder."""
    encoder = registry.image_encoders.build(ComponentConfig("resnet18"), facts={})
    for norm in ("bn", "frozen_bn"):
        backbone("resnet18", norm=norm, frozen_stages=1).load_state_dict(encoder.state_dict())


# --- the pyramid -----------------------------------------------------------------------------------------------------


def identity(conv: nn.Conv2d, scale: float = 1.0) -> None:
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    middle = conv.kernel_size[0] // 2
    conv.weight.data[:, :, middle, middle] = scale * torch.eye(conv.out_channels)


@pytest.mark.parametrize(("upsample", "grown"), [("nearest", [2.0, 2, 4]), ("bilinear", [2.0, 3, 4])])
def test_coarse_maps_grow_to_the_exact_size(upsample: str, grown: list[float]) -> None:
    """Columns 2, 4 to three columns: halves of pixels between them, or the column that a place lies in."""
    built = neck(channels=(1, 1), strides=(8, 16), width=1, levels=(3, 4), upsample=upsample)
    for conv in (each for each in built.modules() if isinstance(each, nn.Conv2d)):
        identity(conv)
    found = built([torch.full((1, 1, 1, 3), 10.0), torch.tensor([[[[2.0, 4.0]]]])])
    assert found[0].flatten().tolist() == [10 + each for each in grown]
    assert found[1].flatten().tolist() == [2.0, 4.0]


@pytest.mark.parametrize(("source", "expected"), [("c5", -3.0), ("p5", -6.0)])
def test_p6_is_of_the_named_map_and_p7_of_its_positive_part(source: str, expected: float) -> None:
    built = neck(channels=(1, 1, 1), width=1, p6_source=source)
    for conv in (each for each in built.modules() if isinstance(each, nn.Conv2d)):
        identity(conv)
    identity(built.outputs[2].conv, 2.0)
    maps = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2), torch.full((1, 1, 1, 1), -3.0)]
    assert [each.flatten()[0].item() for each in built(maps)[2:]] == [-6.0, expected, 0.0]


@pytest.mark.parametrize("levels", [(3, 4), (4, 5, 6), (3, 5), (3, 4, 5, 6, 7, 8)])
def test_levels_that_the_backbone_does_not_have_are_named(levels: tuple[int, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"levels: found \[.*strides \(8, 16, 32\) give \[3, 4, 5\] or \[3, 4, 5, 6\] or"
    ):
        neck(channels=(1, 1, 1), levels=levels)


# --- heads -----------------------------------------------------------------------------------------------------------


def test_predictions_count_cells_by_row_and_then_anchors() -> None:
    """One known cell: level 1, row 1, column 2, anchor 1, number 2 of maps whose values tell their own places."""
    numbers, anchors, shapes = 3, 2, ((2, 4), (2, 3))
    maps = []
    for level, (height, width) in enumerate(shapes):
        place = torch.meshgrid(*(torch.arange(each) for each in (anchors * numbers, height, width)), indexing="ij")
        maps.append((1000 * level + 100 * place[0] + 10 * place[1] + place[2])[None].float())
    found = flatten_to_priors(maps, numbers)
    assert found.shape == (1, 2 * (8 + 6), 3)
    row = 2 * 8 + 2 * (1 * 3 + 2) + 1
    assert found[0, row].tolist() == [1000 + 100 * (1 * numbers + number) + 10 + 2 for number in range(numbers)]


@pytest.mark.parametrize("name", ["retina", "fcos", "atss"])
def test_heads_start_with_the_prior_probability(name: str) -> None:
    """The bias is -ln(99); of weights of deviation 0.01 a sample's own is right to 5 / sqrt(2 n)."""
    built = head(name, num_classes=2)
    assert built.classes.conv.bias.tolist() == pytest.approx([-4.595120] * len(built.classes.conv.bias), abs=1e-6)
    convs = [each for each in built.modules() if isinstance(each, nn.Conv2d)]
    for conv in convs:
        assert conv.weight.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(2 * conv.weight.numel()))
        assert conv is built.classes.conv or not conv.bias.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["retina", "fcos", "atss"])
def test_first_scores_are_the_prior_and_the_last_layer_is_a_biased_convolution(name: str) -> None:
    """Outputs are neither squashed nor bounded: untrained, scores are near 0.01, and logits reach any value.

    After a norm and a ReLU half of the values are zero: 72 of them times weights of 0.01 have a deviation of 0.06.
    """
    model = small(name)
    logits = model(image=torch.randn(1, 3, 64, 96))["logits"]
    assert (logits + math.log(99)).abs().max() < 5 * 0.06
    for layer in (model.head.classes, model.head.boxes):
        assert isinstance(layer.conv, nn.Conv2d)
        assert layer.conv.bias is not None
        assert isinstance(layer.norm, nn.Identity)
        assert isinstance(layer.activation, nn.Identity)
    nn.init.constant_(model.head.classes.conv.bias, 30.0)
    assert model(image=torch.randn(1, 3, 64, 96))["logits"].min() > 20


@pytest.mark.parametrize(("name", "neck", "first"), [("yolov3", "yolov3", 0.5), ("yolox", "pafpn", 0.01)])
def test_objects_start_rare_and_their_last_layers_are_biased_convolutions(name: str, neck: str, first: float) -> None:
    """YOLOv3's classes start at one half, as only priors with a box learn them; YOLOX's at the prior, too."""
    model = detector(name, 3, backbone={"name": "cspdarknet", "width": 4}, neck={"name": neck})
    head = model.head
    for layer in head.outputs if name == "yolov3" else [*head.classes, *head.boxes, *head.objects]:
        assert layer.conv.bias is not None
        assert isinstance(layer.norm, nn.Identity)
        assert isinstance(layer.activation, nn.Identity)
        nn.init.zeros_(layer.conv.weight)
    found = model(image=torch.randn(1, 3, 64, 96))
    assert found["objectness"].sigmoid().flatten().tolist() == pytest.approx([0.01] * found["objectness"].numel())
    assert (found["logits"].sigmoid() - first).abs().max() < (0.06 if name == "yolov3" else 1e-6)


def test_levels_of_other_widths_are_refused() -> None:
    with pytest.raises(ConfigError, match="channels: the levels share this head, but have 8, 16 channels; put a neck"):
        head("retina", channels=(8, 16), num_classes=1)


@pytest.mark.parametrize(("distances", "expected"), [("relu", [0.0, 48.0]), ("exp", [math.exp(-6.0), math.exp(6.0)])])
def test_distances_are_in_pixels(distances: str, expected: list[float]) -> None:
    """Values of -2 and 2 on a level whose scale is 3 and whose stride is 8."""
    built = head("fcos", channels=(4,), strides=(8,), num_classes=1, distances=distances)
    nn.init.zeros_(built.boxes.conv.weight)
    built.boxes.conv.bias.data = torch.tensor([-2.0, 2, -2, 2])
    built.scales.data.fill_(3.0)
    codes = built([torch.zeros(1, 4, 1, 1)])["codes"]
    assert codes.flatten().tolist() == pytest.approx(expected * 2)


@pytest.mark.parametrize(("on", "tower"), [("box", "box_tower"), ("cls", "class_tower")])
def test_centreness_is_read_from_the_named_tower(on: str, tower: str) -> None:
    built = head("fcos", channels=(4,), strides=(8,), num_classes=1, centreness_on=on)
    built([torch.randn(1, 4, 2, 2)])["centreness"].sum().backward()
    touched = {name.split(".")[0] for name, each in built.named_parameters() if each.grad is not None}
    assert touched == {tower, "centreness"}


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "per_cell", "more"), [("retina", 9, set()), ("fcos", 1, {"centreness"})])
def test_outputs_are_flat_and_levels_are_told(name: str, per_cell: int, more: set[str]) -> None:
    """Of an image wider than high, 70 x 90 pixels: halves are rounded up at every level."""
    model = small(name)
    found = model(image=torch.randn(2, 3, 70, 90))
    shapes = [[9, 12], [5, 6], [3, 3], [2, 2], [1, 1]]
    assert found["level_shapes"].tolist() == [shapes, shapes]
    num_priors = per_cell * sum(math.prod(each) for each in shapes)
    assert {key: tuple(value.shape) for key, value in found.items() if key != "level_shapes"} == {
        "logits": (2, num_priors, 3),
        "codes": (2, num_priors, 4),
        **{key: (2, num_priors) for key in more},
    }
    assert model_output_keys(model, owner="the model") == set(found) == {"logits", "codes", "level_shapes"} | more


def test_a_backbone_alone_in_front_of_a_head_is_refused() -> None:
    """The neck may not be left out: channels differ between levels."""
    with pytest.raises(ConfigError, match="neck"):
        sightline.build_model("detector", num_classes=1, backbone={"name": "resnet18"}, head={"name": "retina"})


def test_channels_together_in_memory_change_nothing() -> None:
    """Outputs and gradients in float64, and both the weights and what reaches the head are in that order."""
    plain = small().double()
    other = sightline.build_model(
        "detector",
        num_classes=3,
        backbone={"name": "resnet18", "width": 8},
        neck={"name": "fpn", "width": 8},
        head={"name": "retina"},
        channels_last=True,
    ).double()
    other.load_state_dict(plain.state_dict())
    is_together = []
    other.head.classes.conv.register_forward_pre_hook(
        lambda module, given: is_together.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for found, expected in zip(*(model(image=image).items() for model in (other, plain)), strict=True):
        torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-10)
    assert all(is_together)
    assert other.neck.outputs[0].conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(64, 64), (128, 64)])
def test_coarse_maps_of_one_column_have_a_gradient_in_bf16(size: tuple[int, int]) -> None:
    """torch's own convolution leaves its weights' gradient uninitialised there, which filled memory shows."""
    neck = FPN(channels=(16, 16, 16), strides=(8, 16, 32), width=64)
    maps = [torch.randn(4, 16, size[0] // stride, size[1] // stride) for stride in (8, 16, 32)]
    gradients = []
    for is_enabled in (False, True):
        neck.zero_grad()
        memory = [torch.full((64, 64, 3, 3), 1e20) for _ in range(4)]
        del memory
        with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
            found = neck(maps)
        sum(each.float().square().sum() for each in found[-2:]).backward()
        gradients.append([conv.conv.weight.grad.clone() for conv in neck.coarser])
    for plain, other in zip(*gradients, strict=True):
        assert (plain - other).norm() < 0.05 * plain.norm()
