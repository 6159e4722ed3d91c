"""The turning page of a room: what is between it and the viewer is left out by the rule of the pictures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.draw.drawn_rows import RoomShell, find_shell
from sightline.draw.pictures import Frame, upright_points
from sightline.view.cloud_file import view_file
from sightline.view.page import encode_page
from sightline.view.stages import Stage, ViewedSample, height_coloring
from tests.draw.rooms import make_room
from tests.limits import HANG_S
from tests.view.test_page import data_of, decoded

NODE = shutil.which("node")

STAND_IN = """
const anything = () => new Proxy(() => {}, { get: anything, set: () => true, apply: anything });
const stub = (id) => new Proxy({ value: "1", checked: id === "walls", hidden: false, textContent: "" }, {
  get: (own, key) => (key in own ? own[key] : anything()), set: (own, key, value) => ((own[key] = value), true),
});
const paper = { putImageData() {}, createImageData: (w, h) => ({ data: new Uint8ClampedArray(4 * w * h) }) };
const nodes = {
  data: { textContent: DATA },
  canvas: { clientWidth: 300, clientHeight: 200, addEventListener() {}, getContext: () => paper },
};
const keys = [];
globalThis.document = {
  getElementById: (id) => (nodes[id] ??= stub(id)), createElement: stub, activeElement: null,
  body: { classList: { contains: () => true } }, addEventListener: (_, act) => keys.push(act),
};
globalThis.window = { matchMedia: () => ({ matches: false, addEventListener() {} }), devicePixelRatio: 1 };
globalThis.ResizeObserver = class { observe() {} };
globalThis.requestAnimationFrame = () => {};
globalThis.HTMLSelectElement = globalThis.HTMLInputElement = class {};
"""
"""Stands in for the parts of a browser that the page asks for."""

HANDS = """
resized();
const cloud = data.subjects[0].clouds[0];
const drawn = () => { draw(); return screen.pixels.reduce((sum, pixel) => sum + (pixel !== 0), 0); };
const told = VIEWS.map(([yaw, pitch, distance]) => {
  camera = { ...start, yaw, pitch, distance };
  const count = drawn();
  const isOut = cloud.shell ? [...outsideOf(cloud, cloud.decoded, frameOf(cloud, data.subjects[0].up))] : null;
  return { count, isOut };
});
const { middle, radius } = frameOf(cloud, data.subjects[0].up);
camera = { ...start };
const without = drawn(), press = () => keys.forEach((act) => act({ key: "w", preventDefault() {} }));
press();
const whole = drawn();
process.stdout.write(JSON.stringify({ told, middle, radius, without, whole, hidden: nodes.room.hidden }));
"""


def run_in_node(page: str, views: list[tuple[float, float, float]], folder: Path) -> dict[str, Any]:
    """Look at the first cloud of a page from these yaws, pitches and distances, in a stand-in for a browser."""
    assert NODE is not None
    [text] = re.findall(r'id="data">(.*?)</script>', page, flags=re.DOTALL)
    [script] = re.findall(r"<script>\n(.*?)</script>", page, flags=re.DOTALL)
    stand_in = STAND_IN.replace("DATA", json.dumps(text))
    (folder / "page.js").write_text(stand_in + script + HANDS.replace("VIEWS", json.dumps(views)))
    done = subprocess.run([NODE, folder / "page.js"], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def page_of(points: np.ndarray, frame: Frame = "z", *, is_room: bool = True) -> str:
    stage = Stage("raw", points, (height_coloring(points, "z"),), surroundings="room" if is_room else "none")
    return encode_page([ViewedSample("a room", (stage,), frame)], title="t")


def embedded(page: str) -> np.ndarray:
    """The points (N, 3) as the page reads them."""
    cloud = data_of(page)["subjects"][0]["clouds"][0]
    steps = decoded(cloud["points"], "<u2", -1, 3).astype(np.float64)
    return np.array(cloud["low"]) + steps / 65535 * np.array(cloud["span"])


def test_the_page_holds_the_shell_of_a_room_and_tells_of_it() -> None:
    points, _ = make_room()
    page = page_of(points)
    shell, [cloud] = find_shell(points), data_of(page)["subjects"][0]["clouds"]
    assert shell is not None
    assert np.allclose(cloud["shell"]["walls"], shell.walls)
    assert (cloud["shell"]["floor"], cloud["shell"]["ceiling"]) == (shell.floor, shell.ceiling)
    assert "without the walls, ceiling or floor before the room" in page
    without_ceiling, _ = make_room(has_ceiling=False)
    assert data_of(page_of(without_ceiling))["subjects"][0]["clouds"][0]["shell"]["ceiling"] is None
    for page in (page_of(points, is_room=False), page_of(points[:10])):
        assert data_of(page)["subjects"][0]["clouds"][0]["shell"] is None


@pytest.mark.parametrize(("is_closed", "surroundings"), [(True, "room"), (False, "none")])
def test_a_file_of_a_closed_room_is_drawn_as_one(tmp_path: Path, is_closed: bool, surroundings: str) -> None:
    points, _ = make_room(has_ceiling=is_closed)
    np.save(tmp_path / "a.npy", points[:, [1, 2, 0]])
    (stage,) = view_file(tmp_path / "a.npy", name="a", columns=("x", "y", "z"), up_axis="y").stages
    assert stage.surroundings == surroundings


@pytest.mark.skipif(NODE is None, reason="no node on this machine")
@pytest.mark.parametrize("frame", ["z", "y", "camera_y_down"])
def test_as_it_turns_what_is_before_the_room_is_left_out(frame: Frame, tmp_path: Path) -> None:
    """From far away as in a parallel picture; from within nothing is."""
    points, _ = make_room()
    axes = {"z": [0, 1, 2], "y": [1, 2, 0], "camera_y_down": [1, 2, 0]}[
        frame
    ]  # where the frame has x, y, z of the room
    points = points[:, axes] * {"camera_y_down": (-1, -1, 1)}.get(frame, (1, 1, 1))
    page = page_of(points, frame)
    upright = upright_points(embedded(page), frame)
    shell = find_shell(upright_points(points, frame))
    assert isinstance(shell, RoomShell)
    angles = [(yaw, pitch) for yaw in np.radians(range(0, 360, 35)) for pitch in (0.4, -0.3)]
    within = [(0.3, 0.1, 0.05), (2.5, -0.2, 0.05)]
    told = run_in_node(page, [*((*each, 1e6) for each in angles), *within], tmp_path)
    for (yaw, pitch), seen in zip(angles, told["told"], strict=False):
        towards = np.array([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)])
        is_hidden = shell.hides(upright, towards)
        assert 0.1 < is_hidden.mean() < 0.8
        assert (is_hidden == np.array(seen["isOut"])).all()
    for seen in told["told"][-2:]:
        assert not any(seen["isOut"])
    assert not told["hidden"]
    assert told["whole"] > 1.1 * told["without"] > 0, "a key, or a click, draws the whole room"


@pytest.mark.skipif(NODE is None, reason="no node on this machine")
def test_what_is_no_room_has_nothing_to_leave_out(tmp_path: Path) -> None:
    points, _ = make_room()
    told = run_in_node(page_of(points, is_room=False), [], tmp_path)
    assert told["whole"] == told["without"] > 0
    assert told["hidden"]
