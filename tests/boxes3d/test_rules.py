"""Traps of training on 3D boxes that `check` and a training name, each beside a run that has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from sightline.areas.boxes3d import rules
from sightline.areas.boxes3d.sets.synthetic_streets3d import SyntheticStreets3d
from sightline.config import read_config
from sightline.contract.types import Sample, SampleKey
from sightline.doctor.finding import Finding
from sightline.engine.distributed import World
from sightline.workbench.check import key_rules
from sightline.workbench.check.context import Context
from tests.boxes3d.small_streets import CONFIG, EXTENT, SMALL, make_streets
from tests.command import refuse, run_here
from tests.doctor.planting import assert_complete, judge

LIMIT = "transforms.{part}=[{before}{{name: limit_extent, extent_m: {extent}, min_points: {points}}}]"
BOTTOM = "task.anchors.{}.bottom={}"


def train_on(points: int = 5, extent: str = EXTENT) -> str:
    return LIMIT.format(part="train", before="", extent=extent, points=points)


def evaluate_on(transform: str) -> str:
    return LIMIT.format(part="evaluate", before=f"{{name: {transform}}}, ", extent=EXTENT, points=5)


def flatten(size: float) -> Callable[[dict, int], dict]:
    def edit(sample: dict, index: int) -> dict:
        boxes = sample["boxes"].clone()
        boxes[:1, 4] = size if index == 3 else boxes[:1, 4]
        return {**sample, "boxes": boxes}

    return edit


def ignore_pedestrians(sample: dict, index: int) -> dict:
    return {**sample, "is_ignored": sample["is_ignored"] | (sample["label"] == 1)}


class Plant(NamedTuple):
    """Rule, and words of a config or an edit of samples; code, severity, place, texts of summary and measurement."""

    rule: Callable[..., Any]
    words: tuple[str, ...]
    edit: Callable[[dict, int], dict] | None
    code: str
    severity: str
    path: str
    texts: tuple[str, ...]


ALL_HIGH = (train_on(), *(BOTTOM.format(name, -0.6) for name in ("Car", "Pedestrian", "Cyclist")))
"""Without a transform that scales frames."""
PLANTED = {
    "T6: a sensor at another height": Plant(
        *(rules.misplaced_anchors, ALL_HIGH, None, "anchor-coverage", "warning", "task.anchors.Car.bottom"),
        ("1.13 m above its boxes", "a sensor 0.60 and of one 1.73 m", "overlap an anchor by 0.6", "Car.bottom=-1.73"),
    ),
    "T6: anchors below": Plant(
        *(rules.misplaced_anchors, tuple(word.replace("-0.6", "-2.4") for word in ALL_HIGH), None),
        *("anchor-coverage", "warning", "task.anchors.Car.bottom", ("0.67 m below its boxes",)),
    ),
    "T6: one class, as published for KITTI": Plant(
        *(
            rules.misplaced_anchors,
            (ALL_HIGH[0], ALL_HIGH[2]),
            None,
            "anchor-coverage",
            "note",
            "task.anchors.Pedestrian.bottom",
        ),
        ("1.13 m above its boxes",),
    ),
    "T6: a size that no box has": Plant(
        *(rules.misplaced_anchors, ("task.anchors.Car.size=[8.8, 3.9, 1.62]",), None, "anchor-coverage", "warning"),
        *("task.anchors.Car.size", ("another size than its boxes", "8.80 x 3.90 x 1.62 m")),
    ),
    "T9: a box without a width": Plant(
        *(rules.flat_boxes, (), flatten(0.0), "broken-boxes", "error", "data"),
        ("extent of 0 or less", "1 of ", ", 0, ", "in sample 3"),
    ),
    "T9: a box with a negative width": Plant(
        *(rules.flat_boxes, (), flatten(-1.9), "broken-boxes", "error", "data", ("in sample 3",))
    ),
    "T10: a class whose boxes are all ignored": Plant(
        *(rules.classes_without_anchors, (), ignore_pedestrians, "unmatched-boxes", "warning", "transforms.train"),
        ("no anchor has a box of 'Pedestrian'", "exactly 0", "Pedestrian 0"),
    ),
    "T10: no class has points enough": Plant(
        *(rules.classes_without_anchors, (train_on(9999),), None, "unmatched-boxes", "error", "transforms.train"),
        ("no anchor has a box of 'Car'", "are ignored", "Car 0, Pedestrian 0, Cyclist 0"),
    ),
    "T10: an extent above all boxes": Plant(
        *(rules.classes_without_anchors, ("model.extent_m=[-23.04, -11.52, 0.5, 23.04, 11.52, 3]", train_on()), None),
        *("unmatched-boxes", "error", "transforms.train", ("outside of the extent",)),
    ),
    **{
        f"T21: {name} in the evaluation": Plant(
            *(key_rules.drawn_evaluation, (evaluate_on(transform),), None, "random-evaluation", "warning"),
            *("transforms.evaluate.0", (f"the transform '{name}' of evaluation draws", f"'{field}' differs")),
        )
        for name, transform, field in (
            ("rotate", "rotate, max_angle_rad: 0.2", "boxes"),
            ("flip", "flip, axes: [y]", "boxes"),
            ("shuffle_points", "shuffle_points", "points"),
            ("sample_points", "sample_points, num_points: 500", "points"),
        )
    },
}
HEALTHY = {
    "the recipe": ((), None),
    "anchors of another size": (("task.anchors.Car.size=[3.9, 1.6, 1.56]",), None),
    "anchors 0.25 m off": (tuple(word.replace("-0.6", "-1.48") for word in ALL_HIGH), None),
    "overlaps of volumes": (("task.overlap=volume",), None),
    "a class with few boxes left": ((train_on(60),), None),
    "the first points": ((evaluate_on("sample_points, num_points: 500, order: first"),), None),
}
RULES = (rules.misplaced_anchors, rules.flat_boxes, rules.classes_without_anchors, key_rules.drawn_evaluation)


def find(plant: Callable[..., Any], *words: str, edit: Any = None) -> list[Finding]:
    return judge(plant, Context(make_streets(*words, edit=edit), World()))


@pytest.mark.parametrize("name", PLANTED)
def test_a_trap_is_named(name: str) -> None:
    plant = PLANTED[name]
    found = find(plant.rule, *plant.words, edit=plant.edit)
    assert found, name
    first = found[0]
    assert (first.code, first.severity, first.where.config_path) == (plant.code, plant.severity, plant.path)
    told = f"{first.summary}; {first.measured}; {first.action}"
    assert [text for text in plant.texts if text not in told] == [], told
    assert_complete(first)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_sound_run_has_no_finding(name: str) -> None:
    words, edit = HEALTHY[name]
    context = Context(make_streets(*words, edit=edit), World())
    assert [str(finding) for rule in RULES for finding in judge(rule, context)] == []


def test_a_slope_is_no_sensor() -> None:
    """Frames on hills: their boxes are off by 0.4 m in the mean, which three frames up and five down may be."""

    def edit(sample: dict, index: int) -> dict:
        slope_m = torch.tensor([0, 0, 1.6 if index % 4 == 0 else 0, 0, 0, 0, 0])
        return {**sample, "boxes": sample["boxes"] + slope_m}

    assert find(rules.misplaced_anchors, edit=edit) == []


# --- T9 in a training, and T8 before it -------------------------------------------------------------------------------

SPOILT = {
    "an intensity that is no number": ("remission", (5, 0), torch.nan, "features"),
    "a box that is infinitely far": ("boxes", (0, 0), torch.inf, "boxes"),
    "a box without a known length": ("boxes", (0, 3), torch.nan, "boxes"),
}
"""Field, place and number of a frame of the second epoch, and the key of the batch that is named."""


@pytest.mark.parametrize("name", SPOILT)
def test_a_training_ends_at_the_frame_that_spoils_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frame is sound in the first epoch; what is kept, also as the best, is of that one."""
    field, place, value, key_of_batch = SPOILT[name]
    read = SyntheticStreets3d.__getitem__

    def read_spoilt(self: SyntheticStreets3d, key: SampleKey) -> Sample:
        sample = read(self, key)
        if (self._split, key.epoch, key.index) == ("train", 1, 3):
            sample[field][place] = value
        return sample

    monkeypatch.setattr(SyntheticStreets3d, "__getitem__", read_spoilt)
    words = (*SMALL, f"model.extent_m={EXTENT}", train_on(), evaluate_on("shuffle_points"), "evaluate.every=1")
    code, _, said = run_here("train", CONFIG, *words, "train.epochs=3", "--no-check", "--out", tmp_path / "run")
    assert code == 1
    assert f"[non-finite error data.corrupt_sample] '{key_of_batch}' of the batch is not finite" in said
    assert f"{value} at {key_of_batch}[" in said
    assert "of sample 3 (0003)" in said
    kept = sorted((tmp_path / "run").rglob("*.safetensors"))
    assert {path.parent.name for path in kept} == {"step_00000004"}, "the last step of the first epoch is the best"
    for path in kept:
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values() if tensor.is_floating_point())


@pytest.mark.parametrize("verb", ["check", "train", "describe"])
def test_an_extent_that_no_stride_divides_is_one_line(verb: str) -> None:
    """That of the config, which ends where the line says, is the twin."""
    said = refuse(verb, CONFIG, "model.extent_m=[-46.08, -11.52, -3, 46, 11.52, 1]")
    assert said.count("\n") <= 1
    assert "along x -46.08 to 46 m are 287.75 pillars of 0.32 m; the network's strides need a multiple of 8" in said
    assert said.rstrip().endswith("let it end at 46.08")
    assert read_config(CONFIG).model.arguments["extent_m"][3] == 46.08
