"""PointPillars and its parts give the numbers of OpenPCDet's own code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.areas.boxes3d.anchors import (
    AnchorAssigner,
    Anchors,
    find_direction,
    make_anchors,
    turn_by_direction,
    wrap_period,
)
from sightline.areas.boxes3d.grid import PillarGrid
from sightline.areas.boxes3d.losses import AnchorBox, AnchorClass, AnchorDirection, encode_angle
from sightline.areas.boxes3d.pointpillars import PUBLISHED, PointPillars
from sightline.contract.errors import ConfigError
from sightline.ops.boxes.codes import decode_deltas3d, encode_deltas3d
from sightline.ops.boxes.focal import sigmoid_focal_loss
from tests.boxes3d.golden import EXTENT, KITTI, draw_state, read, rename, square_anchors
from tests.cases import run_each

TIGHT = 1e-12


def make_network(**changes: Any) -> PointPillars:
    return PointPillars(**{"num_classes": 3, "in_channels": 4, "extent_m": EXTENT, **changes})


def assign(anchors: Anchors, rows: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Targets (A,) and boxes (A, 7) for the boxes (M, 8) of a frame, of which rows of zeros at the end are padding."""
    is_box = rows.abs().sum(dim=1) > 0
    boxes = rows[: int(is_box.nonzero().amax()) + 1 if bool(is_box.any()) else 0]
    label = boxes[:, 7].long() - 1
    is_ignored = torch.zeros(len(boxes), dtype=torch.bool)
    row = AnchorAssigner(anchors, **options)(anchors.priors, boxes[:, :7], is_ignored, label).matched
    place = row.clamp(min=-1)
    target = torch.where(row >= 0, torch.nn.functional.pad(label, (0, 1))[place], row)
    return target, torch.nn.functional.pad(boxes[:, :7], (0, 0, 0, 1))[place]


def to_reference(target: Tensor) -> Tensor:
    """Labels as OpenPCDet numbers them: 0 background, -1 ignored, classes from 1."""
    return torch.where(target >= 0, target + 1, torch.where(target == -1, 0, -1))


def test_the_whole_network_is_that_of_openpcdet(shared: Path) -> None:
    info, arrays = read(shared, "pointpillar_kitti")
    network = make_network().double()
    assert sum(parameter.numel() for parameter in network.parameters()) == info["parameters"] == 4_834_888
    network.load_state_dict(draw_state(info["state_dict"]))
    frames = arrays["in_points"][:, 0].long()
    batch = {"points": arrays["in_points"][:, 1:4], "features": arrays["in_points"][:, 4:]}
    batch["offsets"] = torch.tensor([0, *frames.bincount().cumsum(0).tolist()])
    anchors = make_anchors(network.grid, list(KITTI.values()))

    def assert_array(name: str, values: Tensor) -> None:
        stated = info["arrays"][name]
        assert list(values.shape) == stated["full_shape"]
        thinned = values.detach().flatten()[:: stated["flat_step"]]
        torch.testing.assert_close(thinned, arrays[name], rtol=1e-9, atol=1e-9 * float(arrays[name].abs().max()))

    network.eval()
    canvas = network.encode(arrays["in_points"][:, 1:], batch["offsets"])
    assert_array("eval/spatial_features", canvas)
    assert_array("eval/spatial_features_2d", network.backbone(canvas))
    outputs = network(**batch)
    assert_array("eval/batch_cls_preds", outputs["logits"])
    decoded = decode_deltas3d(anchors.boxes, outputs["codes"])
    yaw = turn_by_direction(decoded[..., 6:], outputs["direction"].argmax(dim=2, keepdim=True))
    assert_array("eval/batch_box_preds", torch.cat([decoded[..., :6], yaw], dim=2))

    pairs = [assign(anchors, rows) for rows in arrays["in_gt_boxes"]]
    target, matched = (torch.stack(column) for column in zip(*pairs, strict=True))
    assert torch.equal(to_reference(target).int(), arrays["train/box_cls_labels"])
    network.train()
    outputs = network(**batch)
    named = {"anchors": anchors.boxes, "target": target, "matched_boxes": matched}
    means = [
        AnchorClass()(logits=outputs["logits"], target=target) / 2,
        2 * AnchorBox()(codes=outputs["codes"], **named) / 2,
        0.2 * AnchorDirection()(direction=outputs["direction"], target=target, matched_boxes=matched) / 2,
    ]
    total = torch.stack([torch.stack(means).sum(), *means])
    torch.testing.assert_close(total.detach(), arrays["train/loss"], rtol=1e-9, atol=0)
    total[0].backward()
    parameters = dict(network.named_parameters())
    norms = torch.stack([parameters[rename(key)].grad.norm() for key in info["grad_params"]])  # type: ignore[union-attr]
    torch.testing.assert_close(norms, arrays["train/grad_norm"], rtol=1e-9, atol=0)
    buffers = dict(network.named_buffers())
    after = [name for name in arrays if name.startswith("train/buffer_after/")]
    assert len(after) == 4
    for name in after:
        torch.testing.assert_close(
            buffers[rename(name.removeprefix("train/buffer_after/"))], arrays[name], rtol=1e-9, atol=1e-12
        )


def test_anchors_are_those_of_the_generator(shared: Path) -> None:
    info, arrays = read(shared, "anchors")
    for number, case in enumerate(info["cases"]):
        low, high, (columns, rows) = case["range"][:2], case["range"][3:5], case["grid_xy"]
        sides = (high[0] - low[0]) / columns, (high[1] - low[1]) / rows
        grid = PillarGrid(tuple(case["range"]), sides, 1, (rows, columns))
        made = make_anchors(grid, list(KITTI.values()), places="middles" if case["align_center"] else "ends")
        assert len(made.boxes) == int(arrays[f"case{number:02}/flat_count"])
        assert torch.equal(made.boxes[:40], arrays[f"case{number:02}/flat_first40"])
        for label in range(3):
            name = f"case{number:02}/class{label}"
            own = made.boxes[made.label == label].flatten()[:: info["arrays"][name]["flat_step"]]
            assert torch.equal(own, arrays[name]), name


def test_each_anchor_has_the_box_that_openpcdet_gives_it(shared: Path) -> None:
    info, arrays = read(shared, "assign_anchor")
    assert len(info["cases"]) == 6
    for number, case in enumerate(info["cases"]):
        anchors = square_anchors(10 if case["match_height"] else 32)
        overlap = "volume" if case["match_height"] else "nearest"
        frames = [assign(anchors, rows, overlap=overlap) for rows in arrays[f"case{number:02}/in_gt"]]
        target = torch.stack([target for target, _ in frames])
        assert torch.equal(to_reference(target).int(), arrays[f"case{number:02}/labels"]), case["note"]
        index = (target >= 0).nonzero()
        assert torch.equal(index.int(), arrays[f"case{number:02}/positive_index"]), case["note"]
        boxes = torch.stack([boxes for _, boxes in frames])[index[:, 0], index[:, 1]]
        codes = encode_deltas3d(anchors.boxes[index[:, 1]], boxes)
        torch.testing.assert_close(codes, arrays[f"case{number:02}/positive_targets"], rtol=0, atol=TIGHT)
        if (stated := arrays.get(f"case{number:02}/positive_dir")) is not None:
            assert torch.equal(find_direction(boxes[:, 6]).int(), stated)


def test_codes_and_directions_are_those_of_the_coder(shared: Path) -> None:
    """Codes of sines and cosines of whole boxes, cases 1 and 2, are of other networks."""
    info, arrays = read(shared, "box_coding3d")
    anchors = arrays["case00/in_anchor"]
    torch.testing.assert_close(
        encode_deltas3d(anchors, arrays["case00/in_box"]), arrays["case00/code"], rtol=0, atol=TIGHT
    )
    decoded = decode_deltas3d(anchors, arrays["case00/in_pred"])
    torch.testing.assert_close(decoded, arrays["case00/decoded"], rtol=0, atol=TIGHT)
    directions = [
        (f"case{number:02}", case) for number, case in enumerate(info["cases"]) if case.get("kind") == "direction"
    ]
    assert len(directions) == 3
    for name, case in directions:
        yaw, logits = arrays[f"{name}/in_yaw"], arrays[f"{name}/in_logits"]
        form: Any = {"offset": case["dir_offset"], "num_bins": case["bins"]}
        bins = find_direction(yaw, **form)
        assert torch.equal(bins.int(), arrays[f"{name}/target_bin"])
        for chosen, stated in ((logits.argmax(dim=1), "decoded_yaw"), (bins, "decoded_with_true_bin")):
            turned = turn_by_direction(yaw, chosen, limit=case["dir_limit_offset"], **form)
            torch.testing.assert_close(turned, arrays[f"{name}/{stated}"], rtol=0, atol=TIGHT)
    values = arrays["case06/in_v"]
    for name in (name for name in arrays if name.startswith("case06/offset")):
        offset, period = name.removeprefix("case06/offset").removesuffix("pi").split("_period")
        wrapped = wrap_period(values, offset=float(offset), period=float(period) * math.pi)
        torch.testing.assert_close(wrapped, arrays[name], rtol=0, atol=TIGHT)


def test_terms_of_losses_are_those_of_openpcdet(shared: Path) -> None:
    """Heat maps, centres and corners, cases 3 to 8, are of other networks."""
    _, arrays = read(shared, "losses3d")

    def assert_case(number: int, loss: Tensor, leaf: Tensor) -> None:
        """At a logit of exactly 0, the reference differentiates its two absolute values there as constants."""
        torch.testing.assert_close(loss.detach(), arrays[f"case{number:02}/loss"], rtol=TIGHT, atol=TIGHT)
        loss.sum().backward()
        assert leaf.grad is not None
        is_smooth = leaf.detach() != 0
        assert int((~is_smooth).sum()) <= 1
        stated = arrays[f"case{number:02}/grad"]
        torch.testing.assert_close(leaf.grad[is_smooth], stated[is_smooth], rtol=TIGHT, atol=TIGHT)

    logits = arrays["case00/in_logits"].requires_grad_()
    terms = sigmoid_focal_loss(logits, arrays["case00/in_target"].bool(), alpha=0.25, gamma=2.0)
    assert_case(0, terms * arrays["case00/in_weight"][..., None], logits)
    codes = arrays["case01/in_pred"].requires_grad_()
    true = arrays["case01/in_target"]
    predicted, true = encode_angle(codes, torch.where(true.isnan(), codes.detach(), true))
    weights = torch.tensor([1, 1, 1, 1, 1, 1, 0.5], dtype=torch.float64)
    terms = torch.nn.functional.smooth_l1_loss(predicted * weights, true * weights, reduction="none", beta=1 / 9)
    assert_case(1, terms * arrays["case01/in_weight"][..., None], codes)
    logits = arrays["case02/in_logits"].requires_grad_()
    bins = arrays["case02/in_target"].argmax(dim=2)
    terms = torch.nn.functional.cross_entropy(logits.flatten(0, 1), bins.flatten(), reduction="none").view(bins.shape)
    assert_case(2, terms * arrays["case02/in_weight"], logits)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_a_box_on_an_anchor_is_found_there_and_nowhere_as_background() -> None:
    anchors = square_anchors(32)
    row = int((anchors.label == 0).nonzero()[500])
    box = anchors.boxes[row : row + 1]
    assigner, label = AnchorAssigner(anchors), torch.tensor([0])
    matched, num_claims, _ = assigner(anchors.priors, box, torch.tensor([False]), label)
    assert (int(matched[row]), int(num_claims[row])) == (0, 1)
    assert torch.equal(encode_deltas3d(box, box), torch.zeros(1, 7, dtype=torch.float64))
    assert bool((matched[anchors.label != 0] == -1).all())
    ignored = assigner(anchors.priors, box, torch.tensor([True]), label).matched
    assert int(ignored[row]) == -2
    assert bool((ignored < 0).all())


def test_a_loss_is_the_mean_of_frames_however_they_are_divided() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([[0, -1, 1, -2], [-1, -1, -1, 0], [-1, -1, -2, -1]])
    anchors = torch.rand(4, 7, generator=generator, dtype=torch.float64) + 1
    matched = torch.rand(3, 4, 7, generator=generator, dtype=torch.float64) + 1
    outputs = {
        "logits": torch.randn(3, 4, 2, generator=generator, dtype=torch.float64),
        "codes": torch.randn(3, 4, 7, generator=generator, dtype=torch.float64),
        "direction": torch.randn(3, 4, 2, generator=generator, dtype=torch.float64),
    }
    boxes = {"target": target, "matched_boxes": matched}
    for loss, takes in (
        (AnchorClass(), "logits target"),
        (AnchorBox(), "codes target matched_boxes"),
        (AnchorDirection(), "direction target matched_boxes"),
    ):
        named = {name: values for name, values in {**outputs, **boxes}.items() if name in takes.split()}

        def of(first: int, last: int, loss: Any = loss, named: dict[str, Tensor] = named) -> Tensor:
            more = {"anchors": anchors} if isinstance(loss, AnchorBox) else {}
            value: Tensor = loss(**{name: values[first:last] for name, values in named.items()}, **more)
            return value

        torch.testing.assert_close(of(0, 3), of(0, 1) + of(1, 3))
        assert int(loss.count(target=target)) == 3
        assert (float(of(2, 3)) > 0) == isinstance(loss, AnchorClass)  # of a frame without a box


def test_a_frame_alone_equals_the_frame_in_a_batch() -> None:
    """In evaluation, to the bit; a last frame without points is a frame."""
    torch.manual_seed(0)
    network = make_network(
        encoder_widths=(8,),
        blocks=({"num_layers": 1, "width": 8, "stride": 2, "up_width": 8, "up_stride": 1},),
    )
    network.eval()
    points = torch.rand(300, 3) * torch.tensor([10.0, 10.0, 3.0]) - torch.tensor([0.0, 5.0, 2.5])
    remission = torch.rand(300, 1)
    both = network(points=points, features=remission, offsets=torch.tensor([0, 100, 300, 300]))
    alone = network(points=points[100:], features=remission[100:], offsets=torch.tensor([0, 200]))
    empty = network(points=points[:0], features=remission[:0], offsets=torch.tensor([0, 0]))
    for name in ("logits", "codes", "direction"):
        assert torch.equal(both[name][1:2], alone[name])
        assert torch.equal(both[name][2:], empty[name])


@run_each(
    "changes, said",
    [
        ({"extent_m": (0, -5, -3, 10.24, 5.12, 1)}, "along y -5 to 5.12 m are 63.25 pillars of 0.16 m"),
        ({"extent_m": (0, -5.12, -3, 9.9, 5.12, 1)}, "let it end at 10.24"),
        ({"extent_m": (10.24, -5.12, -3, 0, 5.12, 1)}, "give the lowest x, y, z"),
        ({"blocks": [{**block, "up_stride": up} for block, up in zip(PUBLISHED, (1, 2, 2), strict=True)]}, "2, 2, 4"),
    ],
)
def test_a_grid_that_the_strides_do_not_divide_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        make_network(**changes)
