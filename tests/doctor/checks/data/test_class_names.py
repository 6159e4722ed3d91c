"""Names of classes that are not those of the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.contract.types import Field, Sample
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.class_names import class_names
from sightline.workbench.check.context import Context
from tests.doctor.planting import assert_complete, assert_healthy, caught, make
from tests.doctor.segmenting import CLASS_NAMES, Edited, make_parts, make_rooms

ORDER_A = (
    *("ceiling", "floor", "wall", "beam", "column", "window", "door"),
    *("table", "chair", "sofa", "bookcase", "board", "clutter"),
)
ORDER_B = (*ORDER_A[:7], "chair", "table", "bookcase", "sofa", "board", "clutter")


def named(*names: str, **more: Any) -> Callable[[Any], Any]:
    return lambda inner: Edited(inner, facts={"class_names": names, **more})


def found(built: TrainingSetup) -> list[Finding]:
    findings = class_names(Context(built, World()))
    for finding in findings:
        assert_complete(finding)
    return findings


def test_a_name_that_stands_twice(tmp_path: Path) -> None:
    finding = caught(
        make_rooms(tmp_path, named("floor", "wall", "ceiling", "wall")), "class-names", "data.label_mapping"
    )
    assert "'wall' is at the indices 1, 3" in finding.measured


def test_parts_that_number_their_classes_differently(tmp_path: Path) -> None:
    """The first name that differs is told, and that the names are the same ones."""
    built = make_rooms(tmp_path, wrap_test=named("floor", "chair", "ceiling", "wall"))
    finding = caught(built, "class-names", "data.label_mapping")
    assert finding.measured == "class_names[1] is 'chair' here"
    assert "'wall'" in finding.expected
    assert (finding.where.dataset or "").endswith("/test")


def test_parts_with_other_classes(tmp_path: Path) -> None:
    (finding,) = found(make_rooms(tmp_path, wrap_test=named(*CLASS_NAMES[:3], "table")))
    assert (finding.severity, finding.cause) == ("error", "cfg.class_count")


def test_names_in_another_order_than_the_labels(tmp_path: Path) -> None:
    """Both parts agree, and both are wrong: what is called ceiling lies below what is called floor."""
    finding = caught(make_rooms(tmp_path, named("ceiling", "wall", "floor", "chair")), "class-names",
                     "data.label_mapping", "warning")  # fmt: skip
    assert "'ceiling' is below the one called 'floor'" in finding.summary
    assert "24 of 24 rooms, by 3 on average" in finding.measured


def test_chairs_that_are_called_floor(tmp_path: Path) -> None:
    (finding, *_) = found(make_rooms(tmp_path, named("chair", "wall", "ceiling", "floor")))
    assert "'chair' is below the one called 'floor'" in finding.summary


def test_an_up_axis_that_is_another(tmp_path: Path) -> None:
    def turn(sample: Sample, index: int) -> Sample:
        return {**sample, "points": sample["points"][:, [0, 2, 1]]}

    finding = caught(make_rooms(tmp_path, lambda inner: Edited(inner, turn)), "class-names", "cfg.axis_swap", "warning")
    assert "apart along y, but the up axis is z" in finding.summary


def real_room(shared: Path, names: Sequence[str]) -> Callable[[Any], Any]:
    """Every sample is the one real room, every hundredth point of it."""
    with np.load(shared / "data" / "s3dis_one_room.npz") as room:
        points = torch.from_numpy(room["xyz"][::101].astype(np.float32))
        label = torch.from_numpy(room["label"][::101].astype(np.int64))
    grey = torch.full((len(points), 1), 0.5)

    def wrap(inner: Any) -> Any:
        fields = {**inner.info.fields, "label": Field("points", "int64", low=0, high=12, collate="concatenate")}
        facts = {"class_names": tuple(names), "num_classes": 13}
        return Edited(inner, lambda s, i: {"points": points, "grey": grey, "label": label}, facts=facts, fields=fields)

    return wrap


def test_the_orders_of_s3dis_on_a_real_room(tmp_path: Path, shared: Path) -> None:
    """Its labels are in order A. Under the names of order B tables are chairs, and bookcases sofas."""
    assert found(make_rooms(tmp_path, real_room(shared, ORDER_A))) == []
    finding, *_ = found(make_rooms(tmp_path, real_room(shared, ORDER_B)))
    assert (finding.severity, finding.cause) == ("warning", "data.label_mapping")
    assert "the other public order of S3DIS" in finding.summary


def test_healthy_runs(tmp_path: Path) -> None:
    assert_healthy(make_rooms(tmp_path))
    for built in (make_parts(tmp_path), make(tmp_path), make_rooms(tmp_path, named("floor", "a", "b", "c"))):
        assert found(built) == []
