"""The page in a real browser: it draws, turns, switches and hides, and complains of nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.view.page import encode_page
from sightline.view.panels import ImagePanel
from sightline.view.stages import ClassColoring, RgbColoring, Stage, ViewedSample, height_coloring
from tests.limits import HANG_S
from tests.view.test_page import drawn_stage

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

HANDS = """
<script>
window.addEventListener("error", (event) => { document.title = "failed: " + event.message; });
const told = {};
const drawn = () => {
  draw();
  const { pixels } = screen;
  let sum = 0, count = 0;
  for (let i = 0; i < pixels.length; i++) {
    if (pixels[i]) { count += 1; sum = (sum * 31 + pixels[i] + i) % 1000000007; }
  }
  return { sum, count };
};
const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const pressed = (id) => [...document.querySelectorAll(`#${id} [aria-pressed=true]`)].map((b) => b.textContent);
const pointer = (type, id, x, y, more) => canvas.dispatchEvent(
  new PointerEvent(type, { pointerId: id, clientX: x, clientY: y, bubbles: true, ...more }));
canvas.setPointerCapture = () => {};
resized();
told.first = drawn();
told.stages = [...document.querySelectorAll("#stages button")].map((b) => b.textContent);
told.lines = [...document.querySelectorAll("#lines li")].map((li) => li.textContent);
told.legend = [...document.querySelectorAll("#legend button")].map((b) => b.textContent);
told.coloring = pressed("colorings");
press("c"); told.next = pressed("colorings"); told.recoloured = drawn();
press("]"); told.stage = pressed("stages"); press("[");
pointer("pointerdown", 1, 100, 100, { button: 0 });
pointer("pointermove", 1, 160, 120, {});
told.turned = { ...drawn(), yaw: camera.yaw, pitch: camera.pitch };
pointer("pointerup", 1, 160, 120, {});
pointer("pointermove", 1, 300, 300, {});
told.released = camera.yaw === told.turned.yaw;
pointer("pointerdown", 2, 100, 100, {}); pointer("pointerdown", 3, 200, 100, {});
pointer("pointermove", 3, 300, 100, {});
told.pinched = camera.distance;
pointer("pointerup", 2, 0, 0, {}); pointer("pointerup", 3, 0, 0, {});
canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 100 }));
told.wheeled = camera.distance;
canvas.dispatchEvent(new MouseEvent("dblclick"));
chosen.coloring = "";
show();
told.reset = drawn();
document.querySelector("#legend button").click();
told.hidden = drawn();
document.querySelector("#legend button").dispatchEvent(new MouseEvent("click", { shiftKey: true, bubbles: true }));
told.alone = [...chosen.hidden];
told.seen = drawn().count;
press("c"); told.still = drawn().count; chosen.coloring = "";
press(".");
told.flat_hidden = document.querySelector("#flat").hidden;
told.sample = document.querySelector("#subjects").value;
press("]");
told.flat = document.querySelector("#flat").hidden;
told.pictures = [...document.querySelectorAll("#panels img")].map((image) => [image.src.slice(0, 15), image.alt]);
const withBones = drawn();
toggle("voxels");
told.bones = drawn().sum !== withBones.sum;
told.requests = performance.getEntriesByType("resource").length;
if (!document.title.startsWith("failed")) document.title = JSON.stringify(told);
</script>
"""


FLAT = """
<script>
window.addEventListener("error", (event) => { document.title = "failed: " + event.message; });
const size = (id) => { const box = element(id).getBoundingClientRect(); return [box.width, box.height]; };
const seen = (stage) => {
  choose({ stage });
  const pictures = [...document.querySelectorAll("#panels img")].map((image) => image.getBoundingClientRect());
  return {
    space: size("space"), controls: size("controls"), colours: size("colours"), kind: element("kind").textContent,
    pictures: pictures.map((box) => [box.width, box.height]),
  };
};
const pages = data.subjects[0].clouds.map((_, stage) => seen(stage));
const radius = frameOf(data.subjects[0].clouds[2], "z").radius;
if (!document.title.startsWith("failed")) document.title = JSON.stringify({ pages, radius });
</script>
"""


def run_in_browser(page: str, folder: Path, hands: str, *, is_dark: bool = False) -> dict[str, Any]:
    """What the page's title holds in the end, from a window of 900 x 600 pixels."""
    (folder / "page.html").write_text(page.replace("</body>", f"{hands}</body>"))
    assert BROWSER is not None
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,600", "--dump-dom"]
    words.append(f"--blink-settings=preferredColorScheme={int(not is_dark)}")
    place = [f"--user-data-dir={folder / 'profile'}", (folder / "page.html").as_uri()]
    done = subprocess.run([*words, *place], capture_output=True, text=True, timeout=HANG_S)
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found is not None, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    return told


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_pictures_without_a_cloud_fill_the_page_and_strips_its_width(tmp_path: Path) -> None:
    """No pane and no point size for an image; two range images below a cloud, whose far points do not set its frame."""
    none = RgbColoring("image", np.zeros((0, 3), dtype=np.uint8))
    photo = ImagePanel("photo", np.zeros((300, 400, 3), dtype=np.uint8))
    strip = ImagePanel("range", np.zeros((64, 1024, 3), dtype=np.uint8))
    points = np.random.default_rng(0).uniform(-1, 1, (1000, 3))
    points[:3] *= 100 / np.linalg.norm(points[:3], axis=1, keepdims=True)
    empty = np.zeros((0, 3), dtype=np.float32)
    stages = (
        Stage("one", empty, (none,), panels=(photo,)),
        Stage("three", empty, (none,), panels=(photo,) * 3),
        Stage("scan", points, (height_coloring(points, "z"),), panels=(strip, strip)),
    )
    told = run_in_browser(encode_page([ViewedSample("one", stages)], title="t"), tmp_path, FLAT)
    one, three, scan = told["pages"]
    width, height = one["pictures"][0]
    assert one["space"] == one["controls"] == one["colours"] == [0, 0]
    assert (one["kind"], scan["kind"]) == ("image", "cloud")
    assert width > 0.9 * (900 - 330)
    assert height > 300  # of some 480 that the headless window leaves
    assert len(three["pictures"]) == 3
    assert all(each[0] > 0.4 * (900 - 330) for each in three["pictures"])
    assert scan["space"][1] > 100
    assert all(each[0] > 0.9 * (900 - 330) and each[1] >= 80 for each in scan["pictures"])
    assert told["radius"] < 3  # half the diagonal of the bulk is 1.7, of the whole about 100


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    points = random.normal(size=(3000, 3))
    labels = ClassColoring.from_labels("ground truth", random.integers(0, 3, 3000), ("floor", "wall", "chair"))
    rgb = RgbColoring("colours", random.integers(0, 256, (3000, 3)).astype(np.uint8))
    raw = Stage("raw", points, (labels, rgb, height_coloring(points, "z")), unit="m")
    seen = Stage("train 1: scale", points * 2, (labels, height_coloring(points, "z")))
    page = encode_page(
        [ViewedSample("one", (raw, seen)), ViewedSample("two", (raw, drawn_stage()), "camera_y_up")], title="t"
    )
    told = run_in_browser(page, tmp_path, HANDS)
    assert told["stages"] == ["raw", "train 1: scale"]
    assert told["lines"][0] == "3,000 points"
    assert told["legend"] == [f"{name}{count:,}" for name, _, count in labels.legend()]
    assert (told["coloring"], told["next"]) == (["ground truth"], ["colours"])
    assert told["stage"] == ["train 1: scale"]
    assert told["first"]["count"] > 2000
    assert told["recoloured"]["count"] == told["first"]["count"]
    assert told["recoloured"]["sum"] != told["first"]["sum"]
    assert told["turned"]["yaw"] == pytest.approx(np.radians(35) - 60 * 0.008)
    assert told["turned"]["pitch"] == pytest.approx(np.radians(24) + 20 * 0.008)
    assert told["turned"]["sum"] != told["recoloured"]["sum"]
    assert told["released"]
    assert told["pinched"] == pytest.approx(3 * 100 / 200)
    assert told["wheeled"] == pytest.approx(1.5 * np.exp(0.1))
    assert told["reset"] == told["first"]
    assert told["hidden"]["count"] < told["first"]["count"]
    assert set(told["alone"]) == {"wall", "chair"}
    assert told["seen"] == told["still"] < told["hidden"]["count"]  # also where colours know no class
    assert told["sample"] == "1"
    assert (told["flat_hidden"], told["flat"]) == (True, False)
    assert told["pictures"] == [["data:image/png;", "voxels"]]
    assert told["bones"]
    assert told["requests"] == 0
