"""Curves of runs: which numbers are drawn where, and what is refused."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageFont

from sightline.contract.errors import DataError, UserError
from sightline.draw.charts import BOTTOM, FONT_SIZE, HEIGHT, LEFT, RIGHT, TOP, WIDTH, ChartPanel, Series, render_svg
from sightline.runs.curves import draw_runs, encode_curves
from sightline.runs.run_documents import read_lines
from tests.command import succeed
from tests.runs.small import ROOT, SMALL

SVG = "{http://www.w3.org/2000/svg}"
TIMES = {"time_s": 1.0, "time_s/data": 0.1}
TRAIN = {"epoch": 0, "split": "train", "num_samples": 8, "grad_norm": 2.0, "lr": 0.1, "chance": 3.4, "negatives": 30.0}
LINES = [
    {"step": 2, **TRAIN, **TIMES, "loss/intra": 3.0, "loss/total": 3.0, "intra_of_chance": 0.9},
    {"step": 4, **TRAIN, **TIMES, "loss/intra": 1.0, "loss/total": 1.0, "intra_of_chance": 0.3},
    {"step": 4, "epoch": 0, "split": "validation", **TIMES, "loss/intra": None, "alignment": 0.5},
]


def titles(svg: str) -> list[str]:
    return [text.text or "" for text in ET.fromstring(svg).iter(f"{SVG}text") if text.get("font-weight") == "600"]


def legend(svg: str) -> list[str]:
    return [text.text or "" for text in ET.fromstring(svg).iter(f"{SVG}text") if text.get("font-size") == "12"]


def test_losses_come_first_and_stand_against_chance() -> None:
    svg = encode_curves({"": LINES})
    assert titles(svg) == ["loss/intra", "loss/total", "lr", "intra_of_chance", "alignment"]
    assert legend(svg) == ["train", "train, chance", "validation"]


def heights(svg: str, title: str) -> list[list[float]]:
    """The curves of a panel in its own units, read off its axis of even steps."""
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        texts = list(group.iter(f"{SVG}text"))
        if texts[0].text == title:
            ticks = [(float(t.get("y", "")) - 4, float(t.text or "")) for t in texts if t.get("text-anchor") == "end"]
            (low, first), (high, last) = ticks[0], ticks[-1]
            lines = (line.attrib["points"].split() for line in group.iter(f"{SVG}polyline"))
            return [
                [first + (float(p.split(",")[1]) - low) / (high - low) * (last - first) for p in line] for line in lines
            ]
    raise AssertionError(f"no panel {title}")


def test_the_line_of_chance_lies_at_its_level() -> None:
    """3.4 beside the losses 3 and 1; 1 beside their shares 0.9 and 0.3."""
    svg = encode_curves({"": LINES})
    train, chance = heights(svg, "loss/intra")
    assert (train, chance) == (pytest.approx([3.0, 1.0], abs=0.01), pytest.approx([3.4, 3.4], abs=0.01))
    train, chance = heights(svg, "intra_of_chance")
    assert (train, chance) == (pytest.approx([0.9, 0.3], abs=0.01), pytest.approx([1.0, 1.0], abs=0.01))


def test_runs_are_told_apart_by_name() -> None:
    svg = encode_curves({"a": LINES, "b": LINES[:1]})
    assert {"a train", "b train", "a train, chance", "b train, chance", "a validation"} == set(legend(svg))


def test_linear_axes_lie_where_round_numbers_are() -> None:
    """x 0 to 100 and y -1 to 1 span the panel; the middle of both is its middle."""
    panel = ChartPanel(
        "metric", "step", (Series("a", ((0, -1.0), (50, 0.0), (100, 1.0))),), x_scale="linear", y_scale="linear"
    )
    line = ET.fromstring(render_svg([[panel]])).find(f".//{SVG}g/{SVG}polyline")
    assert line is not None
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    top, bottom = TOP, HEIGHT - BOTTOM
    middle = ((LEFT + WIDTH - RIGHT) / 2, (top + bottom) / 2)
    assert places == [(LEFT, bottom), middle, (WIDTH - RIGHT, top)]


@pytest.mark.parametrize("scale", ["linear", "logarithmic"])
@pytest.mark.parametrize(
    ("first", "last"),
    [(0.1, 123_456), (100_000, 123_456), (123_456, 123_460), (1e6, 1e6 + 1), (1.1e-5, 1.2e-5), (2e7, 3e10), (1, 1e15)],
)
def test_labels_of_axes_fit_and_are_told_apart(first: float, last: float, scale: Any) -> None:
    """Widths by the font that the picture is drawn with; a label of an even step is its exact value."""
    ends = ((first, first), (last, last))
    svg = render_svg([[ChartPanel("a", "b", (Series("c", ends),), x_scale=scale, y_scale=scale)]])
    group = ET.fromstring(svg).find(f".//{SVG}g")
    assert group is not None
    texts = list(group.iter(f"{SVG}text"))
    beside = [t for t in texts if t.get("text-anchor") == "end"]
    below = [t for t in texts if t.get("text-anchor") == "middle" and t.text != "b"]
    assert len({t.text for t in beside}) == len(beside)
    assert min(float(t.get("x", "")) - text_width(t) for t in beside) >= 0
    places = [(float(t.get("x", "")), text_width(t) / 2) for t in below]
    assert places[-1][0] + places[-1][1] <= WIDTH
    assert all(a + half <= b - other for (a, half), (b, other) in pairwise(places))
    if scale == "linear":
        assert len({t.text for t in below}) == len(below)
        drawn = heights(svg, "a")[0]
        assert drawn == pytest.approx([first, last], abs=1e-3 * (last - first))


def text_width(text: ET.Element) -> float:
    return float(ImageFont.load_default(float(text.get("font-size", FONT_SIZE))).getlength(text.text or ""))


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0, 1e-12, 1e9])
def test_a_single_value_has_an_axis_too(value: float) -> None:
    svg = render_svg([[ChartPanel("flat", "step", (Series("a", ((5, value),)),), x_scale="linear", y_scale="linear")]])
    assert "nan" not in svg + render_svg([[ChartPanel("logarithmic", "step", (Series("a", ((4, 10), (8, 10))),))]])
    assert "inf" not in svg
    texts = [t.text or "" for t in ET.fromstring(svg).iter(f"{SVG}text") if t.text not in ("a", "flat", "step")]
    assert sum(text == "0" for text in texts) == 2, "both axes begin at 0, or end there"
    assert "5" in texts


@pytest.mark.parametrize("values", [(0.3, 0.1 + 0.2), (1.0, 1.0 + 1e-13), (1e16, 1e16 + 2), (-0.7, -0.7 - 1e-16)])
def test_values_that_differ_by_rounding_are_drawn_as_one(values: tuple[float, ...]) -> None:
    """As an accuracy that two evaluations sum in another order: a run with `log.curves` ended without final.json."""
    points = tuple((float(step), value) for step, value in enumerate(values))
    svg = render_svg([[ChartPanel("flat", "step", (Series("a", points),), x_scale="linear", y_scale="linear")]])
    assert heights(svg, "flat")[0] == pytest.approx(values, rel=1e-2)


def test_names_that_do_not_fit_beside_one_another_stand_below() -> None:
    panels = [ChartPanel("p", "x", tuple(Series(f"a long name {i}", ((1, 2), (2, 3))) for i in range(4)))]
    tree = ET.fromstring(render_svg([panels]))
    places = [(t.get("x"), t.get("y")) for t in tree.iter(f"{SVG}text") if t.get("font-size") == "12"]
    assert len({y for _, y in places}) == 4  # one panel is as wide as one such name
    assert len(set(places)) == 4


def test_the_curves_of_several_runs_are_drawn_in_one_picture(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss/total": 2.0}\n')
    assert titles(draw_runs([tmp_path / "a", tmp_path / "b"])) == ["loss/total"]
    with pytest.raises(UserError, match="a run is given twice"):
        draw_runs([tmp_path / "a", tmp_path / "a"])


def test_what_is_no_run_or_edited_is_named_and_a_cut_last_line_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match=r"metrics\.jsonl: is missing"):
        read_lines(file)
    file.write_text('{"step": 1}\n{"step": 2, "sp')
    assert read_lines(file) == [{"step": 1}]
    file.write_text('{"directory": "a\u2028b\x85c"}\n')  # JSON leaves these as they are, and Python ends lines there
    assert read_lines(file) == [{"directory": "a\u2028b\x85c"}]
    file.write_text('{"step": 1, "s\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: is not JSON"):
        read_lines(file)
    file.write_text('12\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: is not a JSON object"):
        read_lines(file)


def test_a_training_draws_its_curves_where_the_config_asks_for_it(tmp_path: Path) -> None:
    words = [*SMALL, "train.steps=2", "--no-check", "--device", "cpu"]
    config = ROOT / "configs/classify/synthetic_shapes_pointnet.yaml"
    for name, more in (("plain", []), ("drawn", ["log.curves=true"])):
        succeed("train", config, *words, *more, "--out", tmp_path / name)
    assert not (tmp_path / "plain" / "results.svg").exists()
    assert (tmp_path / "drawn" / "results.svg").read_text() == draw_runs([tmp_path / "drawn"])
    weights = [tmp_path / name / "checkpoints/last/model.safetensors" for name in ("plain", "drawn")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
