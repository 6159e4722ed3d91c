"""Pooling of regions: by hand, onnxruntime, torchvision where it is installed, derivatives, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from sightline import ops
from sightline.ops.operator import OPERATORS
from tests.cases import run_each

FORMS = [(aligned, ratio) for aligned in (False, True) for ratio in (-1, 1, 3)]


def regions(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Maps (2, 3, 9, 12), and 20 boxes of maps four times as large: some outside, inverted, small."""
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 9, 12, generator=draw).to(dtype)
    centres = torch.rand(20, 2, generator=draw) * torch.tensor([60.0, 48.0]) - 6
    sizes = torch.rand(20, 2, generator=draw) * 40 - 4
    image = torch.randint(0, 2, (20, 1), generator=draw)
    return maps, torch.cat([image, centres - sizes / 2, centres + sizes / 2], dim=1).to(dtype)


def test_a_ramp_by_hand() -> None:
    """The map is its column; with `aligned` the middle of the first pixel is at 0.5, so that a mean is at x - 0.5."""
    ramp = torch.arange(8.0).expand(1, 1, 6, 8)
    box = torch.tensor([[0.0, 2, 1, 6, 5]])
    assert ops.roi_align(ramp, box, (1, 2), aligned=True)[0, 0].tolist() == [[2.5, 4.5]]
    assert ops.roi_align(ramp, box, (1, 2))[0, 0].tolist() == [[3.0, 5.0]]
    assert ops.roi_align(ramp, box * 2, (1, 2), 0.5, 2, True)[0, 0].tolist() == [[2.5, 4.5]]
    listed = ops.roi_align(ramp, [box[:, 1:]], 2, sampling_ratio=2)
    assert listed.tolist() == [[[[3.0, 5.0]] * 2]]
    outside = torch.tensor([[0.0, 20, 20, 24, 24], [0, -0.9, 0, -0.1, 1]])
    assert ops.roi_align(ramp + 1, outside, 1, sampling_ratio=1).flatten().tolist() == [0, 1], (
        "beyond, and on the border"
    )


@run_each("form", FORMS)
def test_pooled_regions_are_those_of_onnxruntime(form: tuple[bool, int]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx.helper")
    (aligned, ratio), (maps, rois) = form, regions()
    node = helper.make_node(
        "RoiAlign", ["maps", "boxes", "image"], ["pooled"], output_height=3, output_width=2, spatial_scale=0.25,
        sampling_ratio=max(ratio, 0), coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
    )  # fmt: skip
    given = [
        helper.make_tensor_value_info(name, kind, [None] * axes)
        for name, kind, axes in (("maps", 1, 4), ("boxes", 1, 2), ("image", 7, 1))
    ]
    graph = helper.make_graph([node], "graph", given, [helper.make_tensor_value_info("pooled", 1, [None] * 4)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"maps": maps, "boxes": rois[:, 1:].contiguous(), "image": rois[:, 0].long()}
    [expected] = session.run(None, {name: value.numpy() for name, value in feeds.items()})
    found = ops.roi_align(maps, rois, (3, 2), 0.25, ratio, aligned)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-5, atol=2e-6)


@run_each("form", FORMS)
def test_regions_and_gradients_are_those_of_torchvision(form: tuple[bool, int]) -> None:
    peer = pytest.importorskip("torchvision.ops")
    (aligned, ratio), (maps, rois) = form, regions()
    maps.requires_grad_()
    ours, theirs = (module.roi_align(maps, rois, (3, 2), 0.25, ratio, aligned) for module in (ops, peer))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    given = torch.randn(ours.shape)
    torch.testing.assert_close(*(torch.autograd.grad(each, maps, given)[0] for each in (ours, theirs)))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, in its forward derivatives
@run_each("form", [(False, -1), (True, 2)])
def test_gradients_are_those_of_finite_differences(form: tuple[bool, int]) -> None:
    (aligned, ratio), (maps, rois) = form, regions(torch.float64)
    maps, rois = maps[:, :1, :4, :5].clone().requires_grad_(), rois[:4]

    def pool(maps: Tensor) -> Tensor:
        return ops.roi_align(maps, rois, 2, 0.25, ratio, aligned)

    assert torch.autograd.gradcheck(pool, (maps,))
    assert torch.autograd.gradgradcheck(pool, (maps,))
    boxes = torch.tensor([[0, 3.1, 5.3, 13.7, 14.9], [1, 4.2, 1.4, 15.1, 12.3]], dtype=torch.float64)
    corners = boxes[:, 1:].clone().requires_grad_()

    def move(corners: Tensor) -> Tensor:
        return ops.roi_align(maps.detach(), torch.cat([boxes[:, :1], corners], dim=1), 2, 0.25, ratio, aligned)

    along = torch.randn(maps.shape, dtype=maps.dtype)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(pool(forward_ad.make_dual(maps.detach(), along))).tangent
    torch.testing.assert_close(tangent, pool(along), rtol=1e-12, atol=1e-12)  # it is linear
    assert torch.equal(torch.func.jvp(pool, (maps.detach(),), (along,))[1], tangent)
    if ratio > 0:  # of an adaptive number, the value jumps with it
        assert torch.autograd.gradcheck(move, (corners,))
    moved = torch.autograd.functional.jacobian(move, corners.detach())
    assert moved.abs().amax(dim=(0, 1, 2, 3)).min() > 0


def test_the_plain_form_takes_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, rois = regions(torch.float64)
    arguments = (rois, 2, 3, 0.25, 0, True)
    whole, pool = OPERATORS["roi_align"].plain(maps, *arguments), OPERATORS["roi_align_gradient"].plain
    gradient = pool(whole, rois, list(maps.shape), 0.25, 0, True)
    monkeypatch.setattr("sightline.ops.boxes.regions._ENTRIES_AT_ONCE", {"cpu": 1})
    torch.testing.assert_close(OPERATORS["roi_align"].plain(maps, *arguments), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pool(whole, rois, list(maps.shape), 0.25, 0, True), gradient, rtol=1e-12, atol=1e-12)


@run_each("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_and_no_boxes(dtype: torch.dtype) -> None:
    maps, rois = regions()
    half = maps.to(dtype)
    found = ops.roi_align(half, rois, 2, 0.25)
    assert found.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    assert torch.equal(found, ops.roi_align(half.to(wide), rois.to(wide), 2, 0.25).to(dtype))
    assert ops.roi_align(half, rois[:0], 2).shape == (0, 3, 2, 2)
    assert ops.roi_align(half[:0], [], 2).shape == (0, 3, 2, 2)
    listed = ops.roi_align(half, [rois[rois[:, 0] == image, 1:] for image in (0, 1)], 2, 0.25)
    assert torch.equal(listed, found[rois[:, 0].argsort(stable=True)])
    empty = half.clone().requires_grad_()
    assert not torch.autograd.grad(ops.roi_align(empty, rois[:0], 2).sum(), empty)[0].any()


@run_each(
    "changed, message",
    [
        ({"input": torch.rand(3, 8, 8)}, r"input: found \(3, 8, 8\) torch.float32, expected maps \(N, C, H, W\)"),
        ({"input": torch.rand(2, 3, 0, 8)}, "which have no pixel or no channel"),
        ({"input": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "expected maps .* of floats"),
        ({"boxes": torch.rand(3, 4)}, r"boxes: found \(3, 4\) torch.float32, expected numbers \(K, 5\): image, x1"),
        ({"boxes": [torch.rand(3, 4)]}, "boxes: found a list of 1, expected one of 2: one an image"),
        ({"boxes": [torch.rand(3, 5)] * 2}, r"boxes\[0\]: found the shape \(3, 5\), expected \(L, 4\)"),
        ({"boxes": torch.tensor([[0.0, 1, 1, 2, 2], [2, 1, 1, 2, 2]])}, "boxes: 1 of 2 are of image 2, there are 2"),
        ({"boxes": torch.tensor([[0.5, 1, 1, 2, 2]])}, "boxes: 1 of 1 are of image 0.5"),
        ({"boxes": torch.tensor([[0, 1, 1, torch.inf, 2]])}, "boxes: 1 of 1 are not finite"),
        ({"output_size": (0, 2)}, r"output_size: found \(0, 2\), allowed are whole numbers, at least 1"),
        ({"spatial_scale": 0.0}, "spatial_scale: found 0.0, allowed is a number above 0"),
    ],
)
def test_other_regions_are_refused(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"input": torch.rand(2, 3, 8, 8), "boxes": torch.rand(3, 5).floor(), "output_size": 2}
    with pytest.raises(ValueError, match=message):
        ops.roi_align(**given | changed)
