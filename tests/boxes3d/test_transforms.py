"""Transforms of frames with boxes give the numbers of OpenPCDet and SECOND, from the same draws."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sightline
from sightline.areas.boxes3d.transforms import (
    LimitExtent,
    MoveObjects,
    PasteObjects,
    choose_free,
    move_points,
    paste,
    place_apart,
)
from sightline.config import read_config
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.ops.boxes.points_in_boxes import points_in_boxes
from sightline.ops.points.rotations import axis_rotation
from sightline.parts.transforms.moved_boxes import flip_boxes, scale_boxes, shift_boxes, turn_boxes, wrap_yaw
from sightline.parts.transforms.point_selection import ShufflePoints
from sightline.parts.transforms.points import Flip, Rotate, Scale, Translate
from tests.boxes3d.golden import read
from tests.boxes3d.small_streets import make_streets
from tests.cases import run_each
from tests.command import succeed
from tests.data.boxes3d.box_writers import write_streets
from tests.processes import ROOT

STREETS = ROOT / "configs/boxes3d/synthetic_streets_pointpillars.yaml"
EXACT: Any = {"rtol": 0, "atol": 1e-12}
NAMES = ("Car", "Pedestrian", "Cyclist")


@pytest.mark.parametrize("case", [0, 1])
def test_pasted_objects_are_those_of_openpcdet(shared: Path, case: int) -> None:
    """From its own draws; case 2 stands objects on road planes, which no set of ours has."""
    info, arrays = read(shared, "augment3d")
    stated = info["cases"][case]
    objects = list_objects(arrays)
    pointer, order = dict.fromkeys(range(3), math.inf), {}
    for call in range(3):
        name = f"case{case:02}/call{call}"
        points, boxes = arrays[f"{name}_in_points"], arrays[f"{name}_in_boxes"]
        frame = {"points": points[:, :3], "remission": points[:, 3:], "boxes": boxes}
        drawn = iter(value for key, value in arrays.items() if key.startswith(f"{name}_draw"))
        chosen: list[dict[str, Tensor]] = []
        names = [label for label in stated["in_names"][call] if label in NAMES]
        for number, group in enumerate(stated["groups"]):
            wanted = int(group.partition(":")[2])
            if stated["limit_whole_scene"]:
                wanted -= stated["in_names"][call].count(NAMES[number])
            if wanted <= 0:
                continue
            if pointer[number] >= len(objects[number]):
                order[number], pointer[number] = next(drawn).tolist(), 0
            first = int(pointer[number])
            slice_ = order[number][first : first + wanted]
            pointer[number] += wanted
            free = choose_free([objects[number][row] for row in slice_], [boxes, *(one["boxes"] for one in chosen)])
            chosen += free
            names += [NAMES[number]] * len(free)
        made = paste(frame, chosen)
        is_trained = torch.tensor([label in NAMES for label in stated["in_names"][call]] + [True] * len(chosen))
        made_boxes = made["boxes"][is_trained]
        assert names == stated["out_names"][call]
        torch.testing.assert_close(made_boxes, arrays[f"{name}_out_boxes"], **EXACT)
        made_points = torch.cat([made["points"], made["remission"]], dim=1)
        torch.testing.assert_close(made_points, arrays[f"{name}_out_points"], **EXACT)


def list_objects(arrays: dict[str, Tensor]) -> dict[int, list[dict[str, Tensor]]]:
    """Objects of each class with at least five points and a difficulty, in the order of the table."""
    rows, points = arrays["in_db_rows"], arrays["in_db_points"]
    ends = rows[:, 2].long().cumsum(0).tolist()
    objects: dict[int, list[dict[str, Tensor]]] = {0: [], 1: [], 2: []}
    for row, first, last in zip(rows, [0, *ends], ends, strict=False):
        if row[1] >= 0 and last - first >= 5:
            own = points[first:last].clone()
            own[:, :3] += row[3:6]
            objects[int(row[0])].append({"points": own[:, :3], "remission": own[:, 3:], "boxes": row[None, 3:]})
    return objects


@pytest.mark.parametrize(("case", "columns"), [(3, 7), (4, 9)])
def test_frames_move_as_in_openpcdet(shared: Path, case: int, columns: int) -> None:
    _, arrays = read(shared, "augment3d")
    name = f"case{case:02}"
    boxes, points = arrays[f"{name}/in_boxes"][None, :, :7], arrays[f"{name}/in_points"][None, :, :3]
    velocity = arrays[f"{name}/in_boxes"][None, :, 7:] if columns == 9 else None

    def assert_now(step: str) -> None:
        stated = arrays[f"{name}/{step}_boxes"]
        torch.testing.assert_close(boxes[0, :, :6], stated[:, :6], **EXACT)
        torch.testing.assert_close(
            wrap_yaw(boxes[0, :, 6] - stated[:, 6]), torch.zeros(8, dtype=torch.float64), **EXACT
        )
        torch.testing.assert_close(points[0], arrays[f"{name}/{step}_points"][:, :3], **EXACT)
        if velocity is not None:
            torch.testing.assert_close(velocity[0], stated[:, 7:], **EXACT)

    def move(changed: dict[str, Tensor]) -> None:
        nonlocal boxes, velocity
        boxes, velocity = changed.get("boxes", boxes), changed.get("velocity", velocity)

    for step, sign in (("after_flip_along_x", [1.0, -1, 1]), ("after_flip_along_y", [-1.0, 1, 1])):
        signs = torch.tensor(sign, dtype=torch.float64).view(1, 1, 3)
        move(flip_boxes(signs, boxes, velocity))
        points = points * signs
        assert_now(step)
    matrix = axis_rotation("z", arrays[f"{name}/rotation_draw0_uniform"].view(1))
    move(turn_boxes(matrix, boxes, velocity))
    points = points @ matrix.transpose(1, 2)
    assert_now("after_rotation")
    factor = arrays[f"{name}/scaling_draw0_uniform"].view(1, 1, 1)
    move(scale_boxes(factor, boxes, velocity))
    points = points * factor
    assert_now("after_scaling")
    shift = arrays[f"{name}/translation_draw"].view(1, 1, 3)
    move(shift_boxes(shift, boxes))
    points = points + shift
    assert_now("final")
    assert bool((boxes[..., 6] >= -math.pi).all() & (boxes[..., 6] < math.pi).all())


@pytest.mark.parametrize("case", [5, 6])
def test_moved_objects_are_those_of_second(shared: Path, case: int) -> None:
    _, arrays = read(shared, "augment3d")
    name = f"case{case:02}"
    boxes, points = arrays[f"{name}/in_boxes"], arrays[f"{name}/in_points"]
    placed, moves = place_apart(boxes, arrays[f"{name}/draw_translation"], arrays[f"{name}/draw_rotation_ccw"])
    stated = arrays[f"{name}/out_boxes"]
    torch.testing.assert_close(placed[:, :6], stated[:, :6], **EXACT)
    torch.testing.assert_close(
        wrap_yaw(placed[:, 6] - stated[:, 6]), torch.zeros(len(boxes), dtype=torch.float64), **EXACT
    )
    assert torch.equal(moves.abs().sum(dim=1) > 0, arrays[f"{name}/selected_try"] >= 0)
    inside = points_in_boxes(points[:, :3], boxes, frame="lidar")
    moved = move_points(points[:, :3], inside, boxes, moves)
    torch.testing.assert_close(moved, arrays[f"{name}/out_points"][:, :3], rtol=0, atol=1e-9)


# --- by symmetries and by hand ----------------------------------------------------------------------------------------


def make_frame(num_boxes: int = 4, *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(1, num_boxes, 7, generator=generator)
    boxes[..., 0] = torch.arange(num_boxes) * 12.0
    boxes[..., 1:3] -= 0.5
    boxes[..., 3:6] += 1.0
    boxes[..., 6] = (boxes[..., 6] - 0.5) * 6
    around = boxes[..., None, :3] + (torch.rand(1, num_boxes, 50, 3, generator=generator) - 0.5) * 2.5
    points = around.flatten(1, 2)
    count = points.shape[1]
    return {
        "points": points,
        "remission": torch.rand(1, count, 1, generator=generator),
        "boxes": boxes,
        "label": torch.arange(num_boxes)[None] % 2,
        "is_ignored": torch.zeros(1, num_boxes, dtype=torch.bool),
        "num_points": count_inside(points, boxes)[None],
        "velocity": torch.randn(1, num_boxes, 2, generator=generator),
        "track": torch.arange(num_boxes)[None],
    }


def count_inside(points: Tensor, boxes: Tensor) -> Tensor:
    return torch.bincount(points_in_boxes(points[0], boxes[0], frame="lidar") + 1, minlength=boxes.shape[1] + 1)[1:]


def call(transform: Any, frame: dict[str, Tensor], *others: Any, seed: int = 1) -> dict[str, Tensor]:
    names = inspect.signature(transform.__call__).parameters
    changed: dict[str, Tensor] = transform(
        Draws.from_seed(seed), *others, **{name: values for name, values in frame.items() if name in names}
    )
    return {**frame, **changed}


@run_each(
    "make",
    [
        lambda: Rotate(up_axis="z"),
        lambda: Flip(axes=("x",), probability=1.0),
        lambda: Flip(axes=("y",), probability=1.0),
        lambda: Scale(low=0.5, high=0.6, isotropic=True),
        lambda: Translate(max_shift=9.0),
    ],
)
def test_boxes_hold_the_points_that_they_held(make: Callable[[], Any]) -> None:
    frame = make_frame()
    moved = call(make(), frame)
    assert not torch.equal(moved["boxes"], frame["boxes"])
    before, after = (
        points_in_boxes(of["points"][0].double(), of["boxes"][0].double(), frame="lidar") for of in (frame, moved)
    )
    assert int((before >= 0).sum()) > 20
    assert int((before != after).sum()) <= 1  # a point on a face


def test_a_velocity_turns_with_its_box() -> None:
    """A car that drives ahead still does."""
    frame = make_frame()
    yaw = frame["boxes"][..., 6:]
    frame["velocity"] = 3 * torch.cat([yaw.cos(), yaw.sin()], dim=2)
    for transform in (Rotate(up_axis="z"), Flip(axes=("x",), probability=1.0), Flip(axes=("y",), probability=1.0)):
        moved = call(transform, frame)
        yaw = moved["boxes"][..., 6:]
        torch.testing.assert_close(moved["velocity"], 3 * torch.cat([yaw.cos(), yaw.sin()], dim=2), rtol=0, atol=1e-5)


@run_each(
    "transform, said",
    [
        (Scale(), "isotropic"),
        (Rotate(up_axis="z", axis="x"), "turn about z"),
        (Flip(axes=("z",)), "take z out"),
    ],
)
def test_what_boxes_cannot_follow_is_refused(transform: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        call(transform, make_frame())


def test_a_transform_that_leaves_boxes_behind_is_refused() -> None:
    """Before data are read, where a config lists it."""

    def load(transform: str) -> object:
        words = ["data.train_size=2", "data.test_size=1", f"transforms.train=[{{name: {transform}}}]"]
        return sightline.load_data(STREETS, "train", overrides=words)

    with pytest.raises(ConfigError, match="'normalize_unit_sphere' moves points but not the boxes around them; rotate"):
        load("normalize_unit_sphere")
    load("rotate")


def test_labels_of_boxes_are_no_labels_of_points() -> None:
    """Even where there are as many of both."""
    frame = make_frame(1)
    frame = {**frame, "points": frame["points"][:, :1], "remission": frame["remission"][:, :1]}
    assert call(ShufflePoints(), frame)["label"].shape == (1, 1)
    assert "label" not in ShufflePoints()(
        Draws.from_seed(0), points=frame["points"], boxes=frame["boxes"], label=frame["label"]
    )


def test_an_extent_leaves_points_out_and_ignores_boxes() -> None:
    frame = make_frame()
    limited = call(
        LimitExtent(extent_m=(-6.0, -6.0, -3.0, 18.0, 6.0, 3.0), min_points=int(frame["num_points"][0, 0]) + 1), frame
    )
    assert limited["is_ignored"][0].tolist() == [
        True,
        bool(frame["num_points"][0, 1] <= frame["num_points"][0, 0]),
        True,
        True,
    ]
    assert bool((limited["points"][0, :, 0] <= 18).all())
    assert limited["points"].shape[1] == int((frame["points"][0, :, 0] <= 18).sum()) == limited["remission"].shape[1]


def test_objects_of_other_frames_stand_free_and_bring_their_points() -> None:
    frame, other = make_frame(), make_frame(seed=1)
    other["boxes"][..., 1] += 30.0  # beside
    other["points"][..., 1] += 30.0
    other["boxes"][0, 3] = frame["boxes"][0, 0]  # in the way
    paste_objects = PasteObjects(class_names=("a", "b"), counts={"a": 9, "b": 1}, num_frames=1, min_points=1)
    pasted = call(paste_objects, frame, lambda count: [other] * count)
    assert pasted["track"][0].tolist() == [0, 1, 2, 3, 0, 2, 1]
    assert torch.equal(pasted["boxes"][0, 4:], other["boxes"][0, [0, 2, 1]])
    assert count_inside(pasted["points"], pasted["boxes"]).tolist() == [
        *frame["num_points"][0].tolist(),
        *other["num_points"][0, [0, 2, 1]].tolist(),
    ]
    assert pasted["points"].shape[1] == pasted["remission"].shape[1]
    filled = PasteObjects(class_names=("a", "b"), counts={"a": 3}, num_frames=1, min_points=1, fill_up=True)
    assert call(filled, frame, lambda count: [other] * count)["track"][0].tolist() == [0, 1, 2, 3, 0]
    assert (
        paste_objects(
            Draws.from_seed(0), None, **{name: frame[name] for name in ("points", "boxes", "label", "is_ignored")}
        )
        == {}
    )
    with pytest.raises(ConfigError, match="no class c; the classes are a, b"):
        PasteObjects(class_names=("a", "b"), counts={"c": 1})


def test_pasted_boxes_keep_their_points_through_the_published_transforms() -> None:
    """T12: at least 95 % of the points that were pasted are in their box then, and when the network gets the frame."""
    limit = "{name: limit_extent, extent_m: [-60, -60, -9, 60, 60, 9]}"
    moves = "{name: flip, axes: [y]}, {name: rotate, max_angle_rad: 0.785}, {name: scale, low: 0.95, high: 1.05}"
    paste_words = "{name: paste_objects, counts: {Car: 9, Pedestrian: 9, Cyclist: 9}, num_frames: 4}"
    built = make_streets(f"transforms.train=[{paste_words}, {moves.replace('1.05', '1.05, isotropic: true')}, {limit}]")
    part, num_pasted = built.data.train, 0
    for index in range(4):
        (_, before), (_, pasted), *_, (_, after) = part.reader.batch_stages(SampleKey(index, 0, 0))
        rows = slice(before["boxes"].shape[1], None)
        of_frame = {tuple(point) for point in before["points"][0].tolist()}
        brought = torch.tensor([point for point in pasted["points"][0].tolist() if tuple(point) not in of_frame])
        is_inside = points_in_boxes(brought, pasted["boxes"][0, rows], frame="lidar") >= 0
        assert float(is_inside.double().mean()) >= 0.95
        inside = count_inside(after["points"], after["boxes"])[rows]
        assert bool((inside >= 0.95 * after["num_points"][0, rows]).all())
        num_pasted += len(inside)
    assert num_pasted > 10


def test_frames_need_no_difficulty_and_no_other_field_to_lend_objects() -> None:
    """T12: there is no table of objects, so that a frame states what every frame with boxes has, and nothing else."""
    needed = ("points", "boxes", "label", "is_ignored")
    frame, other = ({name: make_frame(seed=seed)[name] for name in needed} for seed in (0, 1))
    other = {**other, "boxes": other["boxes"] + 30 * torch.eye(7)[1], "points": other["points"] + 30 * torch.eye(3)[1]}
    paste_objects = PasteObjects(class_names=("a", "b"), counts={"a": 9, "b": 9}, num_frames=1, min_points=1)
    pasted = paste_objects(Draws.from_seed(0), lambda count: [other] * count, **frame)
    assert pasted.keys() == {*needed}
    assert pasted["boxes"].shape[1] > frame["boxes"].shape[1]


def test_a_damaged_cloud_that_lends_objects_is_named(tmp_path: Path) -> None:
    """T12: there is no file of objects; that of the frame, which changed after its preparation, is named."""
    write_streets(tmp_path / "own", 4)
    config = tmp_path / "own.yaml"
    words = ("--from", tmp_path / "own", "--to", tmp_path / "set", "columns=[x, y, z, intensity]", "--config", config)
    succeed("data", "prepare", "boxes3d_folder", *words)
    paste_words = "transforms.train=[{name: paste_objects, counts: {Car: 3}, num_frames: 8}]"
    splits = ["data.test_share=0.25", "data.validation_share=0.0"]
    reader = build(read_config(config, [paste_words, *splits]), World()).data.train.reader
    reader([SampleKey(0, 0, 0)])
    damaged = tmp_path / "own/points/0002.npy"  # of the other training frame; 0001 chooses the checkpoint
    damaged.write_bytes(damaged.read_bytes()[:-64])
    with pytest.raises(DataError, match=re.escape(str(damaged))):
        reader([SampleKey(0, 0, 0)])


def test_objects_move_with_their_points_and_do_not_meet() -> None:
    frame = make_frame()
    moved = call(MoveObjects(std_m=0.5), frame)
    before = points_in_boxes(frame["points"][0].double(), frame["boxes"][0].double(), frame="lidar")
    after = points_in_boxes(moved["points"][0].double(), moved["boxes"][0].double(), frame="lidar")
    is_held = before >= 0
    assert int((before[is_held] != after[is_held]).sum()) <= 1
    assert torch.equal(moved["points"][0, ~is_held], frame["points"][0, ~is_held])
    assert bool((moved["boxes"] != frame["boxes"]).any(dim=2).all())
    crowded = {"points": torch.zeros(1, 1, 3), "boxes": frame["boxes"][:, :1].repeat(1, 2, 1)}
    assert torch.equal(call(MoveObjects(std_m=0.01, tries=3), crowded)["boxes"], crowded["boxes"])
