"""The page's blocks: what they print is escaped, screen readers get it, and a viewer lives among other blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sightline.draw.charts import ChartPanel, Series
from sightline.draw.page import PageBlock, PageChart, PageClouds, PageImage, PageTable, PageText, render_page
from sightline.view.page import encode_page
from sightline.view.stages import Stage, ViewedSample, height_coloring
from tests.view.test_browser import BROWSER, run_in_browser
from tests.view.test_page import data_of

BAD = '<b>&"\x1b[31m'
SHOWN = "&lt;b&gt;&amp;&#34;\\x1b[31m"

HANDS = """
<script>
const style = getComputedStyle(document.documentElement);
const press = (target) => target.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
resized();
draw();
const told = { drawn: screen.pixels.some((pixel) => pixel), before: camera.yaw, dark: dark.matches };
press(document.body); told.outside = camera.yaw;
press(canvas); told.inside = camera.yaw;
told.ground = style.backgroundColor;
told.paper = getComputedStyle(document.querySelector("svg rect")).fill;
told.headings = [...document.querySelectorAll("h1")].map((each) => each.textContent);
document.title = JSON.stringify(told);
</script>
"""


def sample_blocks() -> list[PageBlock]:
    panel = ChartPanel("loss", "step", (Series("train", ((1.0, 2.0), (2.0, 1.0))),), "linear", "linear")
    points = np.random.default_rng(0).uniform(-1, 1, (300, 3))
    viewer = encode_page([ViewedSample("one", (Stage("raw", points, (height_coloring(points, "z"),)),))], title="t")
    return [PageTable(("a", "b"), [("x", 1)]), PageChart([[panel]]), PageClouds(data_of(viewer))]


def test_everything_that_is_printed_is_escaped() -> None:
    blocks = [
        PageText("heading", [BAD]),
        PageText("notes", [BAD]),
        PageTable((BAD, "n"), [(BAD, 1), ("b", 2)], marked=[1]),
        PageImage(np.zeros((2, 2, 3), np.uint8), BAD),
        PageChart([[ChartPanel(BAD, "step", (Series("s", ((1.0, 1.0),)),))]]),
    ]
    page = render_page(BAD, blocks)
    assert "<b>" not in page.replace("<body>", "")
    assert "\x1b" not in page
    assert page.count(SHOWN) == 2 + 2 + 2 + 2 + 1  # title and h1, texts, table, picture twice, label
    assert '<tr class="marked"><td>b</td><td>2</td></tr>' in page
    assert f'alt="{SHOWN}"' in page
    assert f'role="img" aria-label="{SHOWN} by step: s"' in page


def test_a_chart_without_panels_draws_nothing() -> None:
    assert "<figure" not in render_page("t", [PageChart([[]])])


def test_tables_in_markdown_keep_their_bars() -> None:
    assert PageTable(("a", "b"), [("x|y", 1)]).to_markdown() == ["| a | b |", "| --- | --- |", "| x\\|y | 1 |"]


def test_pages_without_clouds_have_no_script() -> None:
    assert "script" not in render_page("t", sample_blocks()[:2])


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("is_dark", [False, True])
def test_a_viewer_among_other_blocks_leaves_them_their_keys(tmp_path: Path, is_dark: bool) -> None:
    """Arrow keys scroll the page unless the viewer has the focus; colours follow the system's scheme, charts' too."""
    told = run_in_browser(render_page("all", sample_blocks()), tmp_path, HANDS, is_dark=is_dark)
    assert told["drawn"]
    assert told["dark"] == is_dark
    assert told["before"] == told["outside"] != told["inside"]
    assert told["headings"] == ["all"]
    ground, paper = (sum(map(int, told[key][4:-1].split(","))) / 3 for key in ("ground", "paper"))
    assert (ground < 60 and paper < 60) if is_dark else (ground > 200 and paper == 255)
