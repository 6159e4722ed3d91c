"""B3.38 to B3.40: a network as ONNX, boxes over HTTP, and anchors that stand in the air."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline
from sightline.engine.distributed import World
from tests.boxes3d.vehicles import PARTS, SIZES, list_vehicles, make_cloud, prepare_vehicles
from tests.command import run_here, succeed
from tests.limits import HANG_S
from tests.mission.rows import row
from tests.mission.small import CPU, skip_but
from tests.mission.trial import Edit
from tests.trained import copy_run, trained_run

_FRAME = 1
"""One of those that the run has learnt by heart."""


def _assert_found(classes: list[str], boxes: np.ndarray) -> None:
    """Expect the vehicles of the frame: boxes (M, 7) near theirs, each of its class."""
    names, expected = list_vehicles(_FRAME)
    place = np.linalg.norm(boxes[:, None, :2] - expected[:, :2], axis=2).argmin(axis=1)
    assert sorted(place.tolist()) == [0, 1, 2, 3]
    assert classes == [names[number] for number in place]
    off = np.abs(boxes - expected[place])
    off[:, 6] = np.minimum(off[:, 6] % (2 * math.pi), -off[:, 6] % (2 * math.pi))
    assert (off < [0.35, 0.35, 0.1, 0.4, 0.2, 0.2, 0.15]).all(), off


# --- ONNX -------------------------------------------------------------------------------------------------------------


def _gather(cloud: np.ndarray, numbers: dict[str, Any]) -> dict[str, np.ndarray]:
    """Gather points (N, 4) in pillars as a file describes it, in plain Python."""
    low, high = np.array(numbers["extent_m"][:3], np.float32), np.array(numbers["extent_m"][3:], np.float32)
    pillars: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
    for point in cloud[((cloud[:, :3] >= low) & (cloud[:, :3] < high)).all(axis=1)]:
        column, line = ((point[:2] - low[:2]) / np.array(numbers["pillar_m"], np.float32)).astype(int).tolist()
        pillars[line, column].append(point)
    kept = [*pillars.items()][: numbers["max_pillars"]]
    table = np.zeros((1, len(kept), numbers["max_points"], 4), np.float32)
    for place, (_, points) in enumerate(kept):
        own = points[: numbers["max_points"]]
        table[0, place, : len(own)] = own
    counts = [min(len(points), numbers["max_points"]) for _, points in kept]
    return {
        "pillars": table,
        "num_points": np.array([counts]),
        "cells": np.array([[cell for cell, _ in kept]]),
    }


def _decode(outputs: dict[str, np.ndarray], numbers: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (A, 7), scores (A,) and classes (A,) at the anchors that a file describes."""
    anchors = numbers["anchors"]
    rows = [
        [x, y, kind["z_m"], *kind["size_m"], yaw]
        for y in anchors["y_m"]
        for x in anchors["x_m"]
        for kind in anchors["classes"]
        for yaw in anchors["yaw_rad"]
    ]
    at, codes = np.array(rows), outputs["codes"][0].astype(np.float64)
    unit = np.column_stack([np.hypot(at[:, 3], at[:, 4])] * 2 + [at[:, 5]])
    yaw, offset = at[:, 6] + codes[:, 6], numbers["direction_offset_rad"]
    yaw = (yaw - offset) % math.pi + offset + math.pi * outputs["direction"][0].argmax(axis=1)
    boxes = np.column_stack([at[:, :3] + codes[:, :3] * unit, at[:, 3:6] * np.exp(codes[:, 3:6]), yaw])
    logits = outputs["logits"][0]
    return boxes, 1 / (1 + np.exp(-logits.max(axis=1))), logits.argmax(axis=1)


@row(
    "B3.38",
    "run the network of 3D boxes in another program, by a file of ONNX that says what is done before and after",
    "`sightline export RUN --out FILE.onnx`",
)
def _exported(work: Path) -> None:
    """Pillars gathered, and boxes decoded, in plain Python by the file's description find the vehicles of a frame."""
    import onnxruntime

    run = copy_run("vehicles", work / "copy")
    prepare_vehicles(work)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"root: .*", f"root: {work / 'set'}", text, count=1))
    succeed("export", run, "--out", work / "net.onnx")
    about = json.loads((work / "net.onnx.json").read_text())
    cloud = make_cloud(list_vehicles(_FRAME)[1])
    (gathering,) = [each for each in about["before"] if each["name"] == "gather_pillars"]
    session = onnxruntime.InferenceSession(work / "net.onnx")
    names = [output.name for output in session.get_outputs()]
    tables = _gather(cloud, gathering["arguments"])
    outputs = dict(zip(names, session.run(names, tables), strict=True))
    boxes, scores, label = _decode(outputs, about["numbers"])
    kept: list[int] = []
    for place in np.argsort(-scores)[: (scores >= 0.3).sum()].tolist():
        if all(np.linalg.norm(boxes[place, :2] - boxes[other, :2]) > 2 for other in kept):
            kept.append(place)
    _assert_found([about["class_names"][label[place]] for place in kept], boxes[kept])
    nothing = {name: values[:, :0] for name, values in tables.items()}
    empty = dict(zip(names, session.run(names, nothing), strict=True))
    assert _decode(empty, about["numbers"])[1].max() < 0.3


# --- HTTP -------------------------------------------------------------------------------------------------------------


@row(
    "B3.39",
    "get the boxes of a scan over HTTP, from a file or from its points",
    "`sightline serve RUN`",
)
def _served(work: Path) -> None:
    """The vehicles of a frame that the run has learnt, none of the ground alone; millimetres are refused."""
    from starlette.testclient import TestClient

    from sightline.workbench.serve.app import Limits, open_app

    cloud = make_cloud(list_vehicles(_FRAME)[1])
    loaded, limits = sightline.load_run(trained_run("vehicles")), Limits(max_seconds=HANG_S)
    with open_app(loaded, World(), limits=limits) as app, TestClient(app) as client:
        uploaded = client.post("/predict", files={"file": ("scan.bin", cloud.tobytes())})
        stated = client.post("/predict", json={"points": cloud.tolist()})
        empty = client.post("/predict", json={"points": make_cloud(np.zeros((0, 7))).tolist()})
        other = client.post("/predict", json={"points": (cloud * [1000, 1000, 1000, 1]).tolist()})
    for answer in (uploaded, stated):
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert found["num_points"] == len(cloud)
        assert found["num_boxes"] == len(found["boxes"])
        boxes = [[*box["centre_m"], *box["size_m"], box["yaw_rad"]] for box in found["boxes"]]
        _assert_found([box["class"] for box in found["boxes"]], np.array(boxes))
    assert empty.json()["boxes"] == []
    assert other.status_code == 422
    assert "twice what the run was trained on" in other.json()["error"]
    scores = [[box["score"] for box in answer.json()["boxes"]] for answer in (uploaded, stated)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


# --- checks -----------------------------------------------------------------------------------------------------------


def _check(config: Path, *words: str) -> list[dict[str, Any]]:
    """Check a config by one code; return its findings, notes aside."""
    report = config.with_name("found.json")
    own = (*PARTS, "train.batch_size=4", "loader.workers=0", skip_but("anchor-coverage"))
    run_here("check", config, *own, *words, *CPU, "--json", report)
    found = json.loads(report.read_text())["findings"]
    return [finding for finding in found if finding["code"] == "anchor-coverage" and finding["severity"] != "note"]


@row(
    "B3.40",
    "be told before training that anchors stand in the air, of which class, and where its boxes stand",
    "`sightline check own.yaml`",
)
def _anchors_in_the_air(work: Path) -> None:
    """Boxes stand 1.7 m below the sensor; anchors of a car that is a metre higher are named, and what to set."""
    config = prepare_vehicles(work)
    plain = ("transforms.train=[]",)  # scales would move boxes
    assert not _check(config, *plain)
    assert not _check(config, *plain, *(f"task.anchors.{name}.bottom=-1.45" for name in SIZES))
    found = _check(config, *plain, *(f"task.anchors.{name}.bottom=-0.7" for name in SIZES))
    assert len(found) == len(SIZES)
    for name in SIZES:
        (finding,) = [each for each in found if f"'{name}'" in json.dumps(each)]
        text = json.dumps(finding)
        assert "1.00 m above its boxes" in text
        assert "their bottom is at -0.70 m" in text
        assert f"set task.anchors.{name}.bottom=-1.70" in text
        assert "8 boxes in 4 training frames" in text


MUTANTS: dict[str, Edit] = {
    "B3.38": Edit("areas/boxes3d/task.py", "boxes[0, 0, :, 0, 2].tolist()", "boxes[0, 0, :, 0, 1].tolist()"),
    "B3.39": Edit(
        "workbench/serve/inputs.py",
        'np.save(content, _to_numbers(document["points"]))',
        'np.save(content, _to_numbers(document["points"])[:, [1, 0, 2, 3]])',
    ),
    "B3.40": Edit("areas/boxes3d/rules.py", "_MAX_OFF_M = 0.3", "_MAX_OFF_M = 3.0"),
}
"""One edit a row that breaks its feature and raises nothing."""
