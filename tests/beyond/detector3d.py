"""B3.22 to B3.26: anchors, the published network, from its head to boxes, suppression, and losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.types import SampleKey
from sightline.engine.build import build
from sightline.engine.distributed import World
from tests.boxes3d.vehicles import NUM_FRAMES, PARTS, SIZES, list_vehicles, prepare_vehicles
from tests.mission.rows import row
from tests.mission.small import CONFIGS
from tests.mission.trial import Edit

_CLASSES, _CODES, _QUARTER = 3, 7, 1.57
"""Of synthetic streets; numbers of a box; the yaw of every second anchor, as published."""
_LOW, _HIGH, _COLUMNS, _ROWS = (-23.04, -11.52), (23.04, 11.52), 72, 36
"""Extent along x and y in metres, and cells of the head, of 0.64 m."""
_SMALL = (
    *("data.train_size=1", "data.test_size=1", "data.validation_size=1", "data.num_columns=16", "loader.workers=0"),
    f"model.extent_m=[{_LOW[0]}, {_LOW[1]}, -3, {_HIGH[0]}, {_HIGH[1]}, 1]",
    "model.blocks=[{num_layers: 1, width: 1, stride: 2, up_width: 1, up_stride: 1}]",
    *("model.encoder_widths=[1]", "transforms.train=[]", "transforms.evaluate=[]"),
)
_SHAPES = {"Car": (4.4, 1.95, 1.62), "Pedestrian": (0.94, 0.74, 1.82), "Cyclist": (1.89, 0.74, 1.78)}
_BOTTOM_M = -1.73
"""Anchors of the shipped config."""


def _build_streets(*words: str) -> Any:
    return build(read_config(CONFIGS / "boxes3d/synthetic_streets_pointpillars.yaml", (*_SMALL, *words)), World()).job


def _place_anchor(row: int, column: int, label: int, rotation: int) -> tuple[int, np.ndarray]:
    """The number of an anchor, by y, x, class and rotation, and its box: places lead from edge to edge."""
    x = _LOW[0] + column * (_HIGH[0] - _LOW[0]) / (_COLUMNS - 1)
    y = _LOW[1] + row * (_HIGH[1] - _LOW[1]) / (_ROWS - 1)
    size = [*_SHAPES.values()][label]
    number = ((row * _COLUMNS + column) * _CLASSES + label) * 2 + rotation
    return number, np.array([x, y, _BOTTOM_M + size[2] / 2, *size, rotation * _QUARTER])


def _encode(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Codes (N, 7) of boxes: offsets in diagonals and heights, logarithms of the ratios, and the difference of yaws."""
    unit = np.hypot(anchors[:, 3], anchors[:, 4])[:, None]
    offsets = (boxes[:, :2] - anchors[:, :2]) / unit
    up = (boxes[:, 2:3] - anchors[:, 2:3]) / anchors[:, 5:6]
    return np.column_stack([offsets, up, np.log(boxes[:, 3:6] / anchors[:, 3:6]), boxes[:, 6] - anchors[:, 6]])


def _find_half(yaw: np.ndarray) -> np.ndarray:
    """The half of the circle of a heading: 0 from an eighth of the circle on, 1 from there by half a turn."""
    return (((yaw - math.pi / 4) % (2 * math.pi)) >= math.pi).astype(np.int64)


# --- anchors ----------------------------------------------------------------------------------------------------------


def _lay_down(boxes: np.ndarray) -> np.ndarray:
    """Rectangles (N, 4) x, y and sides of boxes that are turned to the nearer axis."""
    is_across = np.abs((boxes[:, 6] + math.pi / 2) % math.pi - math.pi / 2) > math.pi / 4
    sides = np.where(is_across[:, None], boxes[:, [4, 3]], boxes[:, 3:5])
    return np.column_stack([boxes[:, :2], sides])


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    first, second = _lay_down(boxes)[:, None], _lay_down(others)[None]
    apart = np.abs(first[..., :2] - second[..., :2])
    sides = (first[..., 2:] + second[..., 2:]) / 2 - apart
    common = np.clip(np.minimum(sides, np.minimum(first[..., 2:], second[..., 2:])), 0, None).prod(-1)
    areas = first[..., 2:].prod(-1) + second[..., 2:].prod(-1)
    return np.asarray(common / (areas - common))


@row(
    "B3.22",
    "anchors of the sizes and heights of one's own boxes, of which each box gets those that fit it",
    "`sightline data prepare boxes3d_folder --from FOLDER --config own.yaml`",
)
def _own_anchors(work: Path) -> None:
    """Means of all boxes; then an anchor has the box of its class that it overlaps by 0.6, or as the best of all."""
    frames = [list_vehicles(frame) for frame in range(NUM_FRAMES)]
    names, boxes = [name for listed, _ in frames for name in listed], np.concatenate([table for _, table in frames])
    config = read_config(prepare_vehicles(work), (*PARTS, "transforms.train=[]"))
    stated = config.task.arguments["anchors"]
    assert [*stated] == [*SIZES]
    for name, block in stated.items():
        own = boxes[[each == name for each in names]]
        assert np.abs(np.array(block["size"]) - own[:, 3:6].mean(axis=0)).max() < 0.0051
        assert abs(block["bottom"] - (own[:, 2] - own[:, 5] / 2).mean()) < 0.0051
    built = build(config, World())
    batch = built.data.train.reader([SampleKey(int(index), 0, 0) for index in built.data.train.indices])
    task: Any = built.job.task
    context = task.context(built.job.model, batch)
    assert not context["is_unmatched"].any()
    anchors = task.anchors.boxes.numpy()
    assert len(np.unique(anchors[:, :2], axis=0)) == 32 * 32
    kind = np.arange(len(anchors)) // 2 % len(SIZES)
    for frame, start in enumerate(batch["box_offsets"][:-1].tolist()):
        rows = slice(start, start + 4)
        own, label = batch["boxes"][rows].double().numpy(), batch["label"][rows].numpy()
        overlap = np.where(kind[:, None] == label, _overlap(anchors, own), 0)
        highest, best = overlap.max(axis=1), overlap.argmax(axis=1)
        has_box = (highest >= 0.6) | (overlap >= overlap.max(axis=0) - 1e-9).any(axis=1)
        expected = np.where(has_box, label[best], np.where(highest >= 0.45, -2, -1))
        assert np.array_equal(context["target"][frame].numpy(), expected)
        matched = context["matched_boxes"][frame].numpy()[has_box]
        assert np.abs(matched - own[best[has_box]]).max() < 1e-6
        assert set(best[has_box]) == {0, 1, 2, 3}


# --- the published network --------------------------------------------------------------------------------------------


def _build_network(name: str, **facts: int) -> Any:
    return registry.models.build(read_config(CONFIGS / f"boxes3d/{name}.yaml").model, facts=facts)


@row(
    "B3.23",
    "the published PointPillars: its 4,834,888 weights, the numbers of its pillars, and a head for KITTI's grid",
    "`model: {name: pointpillars}`",
)
def _published_network(work: Path) -> None:
    """Weights added up by hand; of two points in a pillar, what goes into its network; shapes of the head's maps."""
    network = _build_network("kitti_pointpillars", num_classes=3, in_channels=4)
    widths, steps = (64, 128, 256), (3, 5, 5)
    convolved = sum(
        9 * width * (before + count * width) + 2 * width * (count + 1)
        for before, width, count in zip((64, *widths), widths, steps, strict=False)
    )
    brought = sum(width * 128 * stride**2 + 256 for width, stride in zip(widths, (1, 2, 4), strict=True))
    head = (384 + 1) * (6 * 3 + 6 * 7 + 6 * 2)
    number = sum(values.numel() for values in network.parameters())
    assert number == (10 + 2) * 64 + convolved + brought + head == 4_834_888

    network.eval()
    nn.init.zeros_(network.encoder.linear[0].weight)
    network.encoder.linear[0].weight.data[:20] = torch.cat([torch.eye(10), -torch.eye(10)])
    # Row 300 along y is 48 m from -39.68, column 70 along x 11.2 m from 0; their middle is (11.28, 8.4, -1).
    points = torch.tensor([[11.23, 8.34, -1.5, 0.25], [11.33, 8.44, -0.5, 0.75]])
    canvas = network.encode(points, torch.tensor([0, 2]))
    assert canvas.shape == (1, 64, 496, 432)
    values = torch.cat(
        [points, points[:, :3] - points[:, :3].mean(0), points[:, :3] - torch.tensor([11.28, 8.4, -1])], 1
    )
    expected = torch.cat([values, -values], dim=1).amax(dim=0).relu()
    assert torch.allclose(canvas[0, :20, 300, 70], expected / math.sqrt(1.001), atol=1e-4)
    assert canvas.count_nonzero() == canvas[:, :, 300, 70].count_nonzero()

    found = network.to("meta").detect(canvas.to("meta"))
    shapes = {name: tuple(each.shape) for name, each in found.items()}
    assert shapes == {"logits": (1, 321_408, 3), "codes": (1, 321_408, 7), "direction": (1, 321_408, 2)}


# --- from the head to boxes -------------------------------------------------------------------------------------------


def _react_to_remission(network: Any) -> None:
    """Let each cell of the head see the largest remission in it, and all of its predictions be their biases."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                layer.weight.zero_()
                if layer.bias is not None:
                    layer.bias.zero_()
        network.encoder.linear[0].weight[0, 3] = 1
        first, second = (network.backbone.blocks[0][layer][0].weight for layer in range(2))
        first[0, 0, 1:, 1:], second[0, 0, 1, 1] = 1, 1  # the four pillars of a cell, then the cell itself
        network.backbone.ups[0][0].weight.fill_(1)
        network.classes.bias.fill_(-9)
    network.eval()


@row(
    "B3.24",
    "find an object where it lies, at any distance, with its size and the way it heads",
    "`model: {name: pointpillars}`, `task: {name: detect3d}`",
)
def _far_object(work: Path) -> None:
    """One point of a scan reflects; weights by hand find a car around it, by the anchor across of its cell.

    It is in cell 63, 5 of one frame and 4, 33 of the other, 0.64 m each, from (-23.04, -11.52).
    """
    job = _build_streets()
    network, random = job.model, np.random.default_rng(0)
    _react_to_remission(network)
    with torch.no_grad():
        network.classes.weight[1 * _CLASSES] = 20  # the class of cars, at the second anchor of a cell
    places = [(63, 5), (4, 33)]
    grounds = [
        np.column_stack([random.uniform(_LOW, _HIGH, (900, 2)), np.full(900, -1.7), np.zeros(900)]) for _ in places
    ]
    for ground, place in zip(grounds, places, strict=True):
        ground[450] = [*(np.array(_LOW) + np.add(place, [0.3, 0.8]) * 0.64), -1.2, 1]
    points = torch.from_numpy(np.concatenate(grounds)).float()
    batch = {"points": points[:, :3], "features": points[:, 3:], "offsets": torch.tensor([0, 900, 1800])}
    for yaw in (2.5, 2.5 - math.pi, 0.3, 0.3 - math.pi, -2.0, 1.0):
        boxes, anchors = [], []
        for column, line in places:
            _, anchor = _place_anchor(line, column, 0, 1)
            anchors.append(anchor)
            boxes.append([*np.add(anchor[:2], [0.9, -0.4]), -0.8, 4.1, 1.7, 1.5, yaw])
        codes = _encode(np.array(anchors), np.array(boxes))
        codes[:, 6] = (codes[:, 6] + math.pi / 2) % math.pi - math.pi / 2  # the line alone: its way is the half's
        assert np.abs(codes[0] - codes[1]).max() < 1e-9
        with torch.no_grad():
            network.boxes.bias[7:14] = torch.from_numpy(codes[0])
            network.direction.bias[2:4] = torch.tensor([-1.0, 1] if _find_half(np.array(yaw)) else [1.0, -1])
            found = job.task.predict(network, batch)
        assert found["detections3d_offsets"].tolist() == [0, 1, 2]
        detections = found["detections3d"].numpy()
        assert np.abs(detections[:, :7] - boxes).max() < 1e-4, yaw
        assert (detections[:, 8] == 0).all()


def _write_head(frames: list[list[tuple[int, float, float, float]]]) -> dict[str, Tensor]:
    """Outputs of boxes that head ahead, each a class, x, y and score, by an anchor of its own and of its sizes."""
    number = _COLUMNS * _ROWS * _CLASSES * 2
    logits = torch.full((len(frames), number, _CLASSES), -9.0)
    codes, direction = torch.zeros(len(frames), number, _CODES), torch.zeros(len(frames), number, 2)
    direction[..., 1] = 1  # ahead is beyond half a circle from an eighth on
    for frame, boxes in enumerate(frames):
        for column, (label, x, y, score) in enumerate(boxes):
            index, anchor = _place_anchor(10, column, label, 0)
            box = np.array([x, y, *anchor[2:]])
            logits[frame, index, label] = math.log(score / (1 - score))
            codes[frame, index] = torch.from_numpy(_encode(anchor[None], box[None])[0])
    return {"logits": logits, "codes": codes, "direction": direction}


@row(
    "B3.25",
    "keep one of boxes that overlap, of any class or of the same, by limits that evaluation may change",
    "`task.per_class=true task.iou_threshold=0.5 task.score=0.3 task.most=100`",
)
def _suppressed_once(work: Path) -> None:
    """Cars 4.4 m long, 3 m apart in a row, overlap by 1.4 / 7.4; a cyclist in the first one by 1.4 / 8.6.

    The second car is dropped for the first, so that the third stays. The other frame has the first car alone.
    """
    row = [(0, 0.0, 0.0, 0.9), (0, 3.0, 0.0, 0.8), (0, 6.0, 0.0, 0.7), (2, 0.0, 0.0, 0.6), (1, 0.0, 5.0, 0.5)]
    outputs = _write_head([[*row, (0, -9.0, 0.0, 0.09)], [(0, 0.5, 0.0, 0.3)]])
    cases = {
        (): [0.9, 0.7, 0.5],
        ("task.per_class=true",): [0.9, 0.7, 0.6, 0.5],
        ("task.iou_threshold=0.18",): [0.9, 0.7, 0.6, 0.5],
        ("task.iou_threshold=0.2",): [0.9, 0.8, 0.7, 0.6, 0.5],
        ("task.score=0.65",): [0.9, 0.7],
        ("task.most=2",): [0.9, 0.7],
        ("task.before=2", "task.score=0.05"): [0.9],
    }
    for words, scores in cases.items():
        found = _build_streets(*words).task.postprocess(outputs, {})
        first = found["detections3d"][: int(found["detections3d_offsets"][1])].numpy()
        assert [round(score, 5) for score in first[:, 7].tolist()] == scores, words
        chosen = [next(each for each in row if each[3] == score) for score in scores]
        assert np.abs(first[:, :2] - [each[1:3] for each in chosen]).max() < 1e-4, words
        assert first[:, 8].tolist() == [each[0] for each in chosen], words
        assert np.abs(first[:, 6]).max() < 1e-4, words
        assert int(found["detections3d_offsets"][2]) - len(first) == (words != ("task.score=0.65",)), words


# --- losses -----------------------------------------------------------------------------------------------------------


@row(
    "B3.26",
    "losses that are lowest for the right boxes, of which the direction alone sees a box that heads backwards",
    "`losses: [{name: anchor_class}, {name: anchor_box}, {name: anchor_direction}]`",
)
def _losses_at_floor(work: Path) -> None:
    """Two frames, of three boxes and of one, and outputs that state what their anchors have to find, by hand."""
    job = _build_streets()
    boxes = torch.tensor(
        [
            [3.0, 0.5, -0.9, 4.0, 1.7, 1.5, 0.3],
            [-9.0, 5.2, -0.8, 4.6, 2.0, 1.7, 2.6],
            [12.0, -3.0, -0.8, 1.8, 0.7, 1.7, -1.2],
            [1.0, 0.0, -0.8, 0.9, 0.7, 1.8, 0.6],
        ]
    )
    batch = {
        "boxes": boxes,
        "box_offsets": torch.tensor([0, 3, 4]),
        "label": torch.tensor([0, 0, 2, 1]),
        "is_ignored": torch.zeros(4, dtype=torch.bool),
    }
    counts, (context,) = job.task.prepare(job.model, [batch], World())
    target, matched = context["target"], context["matched_boxes"].double().numpy()
    has_box = (target >= 0).numpy()
    assert has_box.sum(axis=1).min() > 0
    anchors = np.broadcast_to(context["anchors"].double().numpy(), matched.shape)
    codes = np.zeros(matched.shape)
    codes[has_box] = _encode(anchors[has_box], matched[has_box])
    right: dict[str, Tensor] = {
        "logits": 24.0 * functional.one_hot(target.clamp(min=0), _CLASSES) * (target >= 0)[..., None] - 12,
        "codes": torch.from_numpy(codes).float(),
        "direction": 8.0 * functional.one_hot(torch.from_numpy(_find_half(matched[..., 6])), 2),
    }

    def measure(seen: dict[str, Tensor], **changed: Tensor) -> np.ndarray:
        sums = job.task.losses_of(batch, {**right, **changed}, {**context, **seen})
        return np.array(
            [float(sums[f"anchor_{name}"] / counts[f"anchor_{name}"]) for name in ("class", "box", "direction")]
        )

    floor = np.array([0, 0, math.log1p(math.exp(-8))])
    assert np.abs(measure({}) - floor).max() < 1e-5
    backwards = {"matched_boxes": context["matched_boxes"] + torch.tensor([0.0] * 6 + [math.pi])}
    assert np.abs(measure(backwards) - floor - [0, 0, 8]).max() < 1e-5
    off, half_beta = torch.zeros(7), 1 / 18
    off[2] = 0.2
    assert np.abs(measure({}, codes=right["codes"] + off) - floor - [0, 0.2 - half_beta, 0]).max() < 1e-5
    off[2], off[6] = 0, 0.5
    assert np.abs(measure({}, codes=right["codes"] + off) - floor - [0, math.sin(0.5) - half_beta, 0]).max() < 1e-5
    nothing = torch.full_like(right["logits"], -12)  # a quarter of 12 at each anchor with a box
    assert np.abs(measure({}, logits=nothing) - floor - [3, 0, 0]).max() < 1e-3


MUTANTS: dict[str, Edit] = {
    "B3.22": Edit(
        "store/boxes3d/survey.py",
        "bottom = float((rows[:, 2] - rows[:, 5] / 2).mean())",
        "bottom = float(rows[:, 2].mean())",
    ),
    "B3.23": Edit(
        "areas/boxes3d/pointpillars.py",
        "own, own[:, :3] - mean[of_point], own[:, :3] - middles[of_point]",
        "own, own[:, :3] - middles[of_point], own[:, :3] - mean[of_point]",
    ),
    "B3.24": Edit("areas/boxes3d/task.py", 'outputs["direction"].argmax(dim=2', 'outputs["direction"].argmin(dim=2'),
    "B3.25": Edit("areas/boxes3d/task.py", "labels = label if self._per_class else None", "labels = label"),
    "B3.26": Edit("areas/boxes3d/anchors.py", "DIRECTION_OFFSET = 0.78539", "DIRECTION_OFFSET = 0.0"),
}
"""One edit a row that breaks its feature and raises nothing."""
