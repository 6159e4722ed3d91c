"""Published detectors of torchvision: the structure of their files, read anew here, against ours with the same weights.

The reading is of functions on tensors by torchvision's names, and of its eps, its order of anchors and its units.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from sightline.published.translation import convert_state_dict, find_layouts
from tests.golden_parity import rule_made_state

RETINA, FCOS = "torchvision_retinanet_resnet50_fpn", "torchvision_fcos_resnet50_fpn"
DEPTHS, NUM_CLASSES, WIDTH = (3, 4, 6, 3), 91, 256
COUNTS = {RETINA: 34_014_999, FCOS: 32_269_600}
"""As torchvision's documentation lists them."""
EPS = {RETINA: 0.0, FCOS: 1e-5}
"""torchvision sets that of its first RetinaNet to 0 after loading."""

Entry = dict[str, Any]


def entries(layout: str) -> list[Entry]:
    """Every tensor of a published file: name, shape, and by which rule it is made here."""
    found: list[Entry] = []

    def add(key: str, kind: str, *shape: int) -> None:
        found.append({"key": key, "kind": kind, "shape": shape, "tied_to": None})

    def conv(name: str, after: int, before: int, size: int, *, bias: bool = True) -> None:
        add(f"{name}.weight", "matrix", after, before, size, size)
        if bias:
            add(f"{name}.bias", "vector", after)

    def frozen(name: str, width: int) -> None:
        for leaf, kind in (("weight", "norm_weight"), ("bias", "vector")):
            add(f"{name}.{leaf}", kind, width)
        for leaf in ("running_mean", "running_var"):
            add(f"{name}.{leaf}", leaf, width)

    conv("backbone.body.conv1", 64, 3, 7, bias=False)
    frozen("backbone.body.bn1", 64)
    before = 64
    for stage, depth in enumerate(DEPTHS):
        inner = 64 * 2**stage
        for block in range(depth):
            name = f"backbone.body.layer{stage + 1}.{block}"
            for place, (width, size, source) in enumerate(
                ((inner, 1, before), (inner, 3, inner), (4 * inner, 1, inner)), start=1
            ):
                conv(f"{name}.conv{place}", width, source, size, bias=False)
                frozen(f"{name}.bn{place}", width)
            if block == 0:
                conv(f"{name}.downsample.0", 4 * inner, before, 1, bias=False)
                frozen(f"{name}.downsample.1", 4 * inner)
            before = 4 * inner
    for place, width in enumerate((512, 1024, 2048)):
        conv(f"backbone.fpn.inner_blocks.{place}", WIDTH, width, 1)
        conv(f"backbone.fpn.layer_blocks.{place}", WIDTH, WIDTH, 3)
    for name in ("p6", "p7"):
        conv(f"backbone.fpn.extra_blocks.{name}", WIDTH, WIDTH, 3)
    step, anchors = (2, 9) if layout == RETINA else (3, 1)
    for branch in ("classification_head", "regression_head"):
        for place in range(4):
            conv(f"head.{branch}.conv.{step * place}", WIDTH, WIDTH, 3)
            if layout == FCOS:
                add(f"head.{branch}.conv.{3 * place + 1}.weight", "norm_weight", WIDTH)
                add(f"head.{branch}.conv.{3 * place + 1}.bias", "vector", WIDTH)
    conv("head.classification_head.cls_logits", anchors * NUM_CLASSES, WIDTH, 3)
    conv("head.regression_head.bbox_reg", anchors * 4, WIDTH, 3)
    if layout == FCOS:
        conv("head.regression_head.bbox_ctrness", 1, WIDTH, 3)
    return found


@pytest.fixture(scope="module", params=[RETINA, FCOS])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def state(layout: str) -> dict[str, Tensor]:
    return rule_made_state(entries(layout))


def evaluate(state: dict[str, Tensor], image: Tensor, layout: str) -> dict[str, Tensor]:
    """What torchvision's network gives, (B, P, numbers) in its own order."""

    def conv(name: str, values: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(values, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def norm(name: str, values: Tensor) -> Tensor:
        weight, bias, mean, variance = (
            state[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (values - mean) / (variance + EPS[layout]).sqrt() * weight + bias

    values = F.max_pool2d(norm("backbone.body.bn1", conv("backbone.body.conv1", image, 2)).relu(), 3, 2, 1)
    maps = []
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            name, stride = f"backbone.body.layer{stage + 1}.{block}", 2 if stage > 0 and block == 0 else 1
            inner = norm(f"{name}.bn1", conv(f"{name}.conv1", values)).relu()
            inner = norm(f"{name}.bn2", conv(f"{name}.conv2", inner, stride)).relu()
            inner = norm(f"{name}.bn3", conv(f"{name}.conv3", inner))
            if block == 0:
                values = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", values, stride))
            values = (inner + values).relu()
        maps.append(values)
    fpn = "backbone.fpn"
    inner = conv(f"{fpn}.inner_blocks.2", maps[3])
    levels = [conv(f"{fpn}.layer_blocks.2", inner)]
    for place in (1, 0):
        lateral = conv(f"{fpn}.inner_blocks.{place}", maps[place + 1])
        rows, columns = (
            torch.arange(fine) * coarse // fine for fine, coarse in zip(lateral.shape[2:], inner.shape[2:], strict=True)
        )
        inner = lateral + inner[:, :, rows][..., columns]
        levels.insert(0, conv(f"{fpn}.layer_blocks.{place}", inner))
    levels.append(conv(f"{fpn}.extra_blocks.p6", levels[-1], 2))
    levels.append(conv(f"{fpn}.extra_blocks.p7", levels[-1].relu(), 2))

    def tower(branch: str, values: Tensor) -> Tensor:
        for place in range(4):
            if layout == RETINA:
                values = conv(f"head.{branch}.conv.{2 * place}", values).relu()
                continue
            name = f"head.{branch}.conv.{3 * place + 1}"
            groups = conv(f"head.{branch}.conv.{3 * place}", values).unflatten(1, (32, -1))
            mean = groups.mean(dim=(2, 3, 4), keepdim=True)
            variance = (groups - mean).square().mean(dim=(2, 3, 4), keepdim=True)
            scaled = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
            values = (scaled * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]).relu()
        return values

    def rows_of(values: Tensor, numbers: int) -> Tensor:
        batch, _, height, width = values.shape
        return values.view(batch, -1, numbers, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, numbers)

    found: dict[str, list[Tensor]] = {"logits": [], "codes": [], "centreness": []}
    for level in levels:
        of_class, of_box = tower("classification_head", level), tower("regression_head", level)
        found["logits"].append(rows_of(conv("head.classification_head.cls_logits", of_class), NUM_CLASSES))
        found["codes"].append(rows_of(conv("head.regression_head.bbox_reg", of_box), 4))
        if layout == FCOS:
            found["codes"][-1] = found["codes"][-1].relu()
            found["centreness"].append(rows_of(conv("head.regression_head.bbox_ctrness", of_box), 1))
    return {name: torch.cat(parts, dim=1) for name, parts in found.items() if parts}


def in_our_order(found: dict[str, Tensor], shapes: Tensor, layout: str) -> dict[str, Tensor]:
    """Anchors of a cell, there three scales of each ratio, as three ratios of each scale; distances in pixels."""
    if layout == RETINA:
        return {name: values.unflatten(1, (-1, 3, 3)).transpose(2, 3).flatten(1, 3) for name, values in found.items()}
    strides = torch.cat([torch.full((int(h * w),), 8.0 * 2**level) for level, (h, w) in enumerate(shapes[0])])
    return {**found, "codes": found["codes"] * strides[:, None], "centreness": found["centreness"][..., 0]}


def our_detector(layout: str, num_classes: int = NUM_CLASSES) -> nn.Module:
    head = {"name": "retina"} if layout == RETINA else {"name": "fcos", "scales": False}
    blocks = {"backbone": {"name": "resnet50", "norm": "frozen_bn"}, "neck": {"name": "fpn"}, "head": head}
    return sightline.build_model("detector", num_classes=num_classes, **blocks)


def test_outputs_are_those_of_torchvisions_network(layout: str, state: dict[str, Tensor]) -> None:
    """All of 40 x 70 pixels, where sizes at the levels are not halves of one another."""
    model = our_detector(layout).double()
    assert sum(value.numel() for name, value in state.items() if ".bn" not in name and "downsample.1" not in name) == (
        sum(each.numel() for each in model.parameters())
    )
    assert sum(each.numel() for each in model.parameters()) == COUNTS[layout]
    model.load_state_dict(convert_state_dict(state, layout))
    image = torch.randn(1, 3, 40, 70, dtype=torch.float64)
    with torch.no_grad():
        ours = dict(model(image=image))
        shapes = ours.pop("level_shapes")
        theirs = in_our_order(evaluate(state, image, layout), shapes, layout)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        error = ((value - theirs[name]).abs().max() / theirs[name].abs().max()).item()
        assert error <= 1e-9, f"{name}: off by {error:.1e}"


def test_names_of_later_versions_are_known_too(layout: str, state: dict[str, Tensor]) -> None:
    """Since 0.13 each convolution of the pyramid, and of RetinaNet's towers, stands in a module with its activation."""
    later = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        if "inner_blocks" in key or "layer_blocks" in key:
            key = f"{module}.0.{leaf}"
        elif layout == RETINA and ".conv." in key:
            tower, _, number = module.rpartition(".")
            key = f"{tower}.{int(number) // 2}.0.{leaf}"
        later[key] = value
    assert later.keys() != state.keys()
    ours, same = convert_state_dict(later, layout), convert_state_dict(state, layout)
    assert ours.keys() == same.keys()
    assert all(torch.equal(value, same[name]) for name, value in ours.items())
    assert find_layouts(later) == find_layouts(state) == [layout]
