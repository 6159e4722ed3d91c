"""Pictures of compression, read back as XML: marks where the numbers are, bars as long as the bits."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from sightline.compress.policy import FP32, Activation, LayerCost, WeightFormat
from sightline.draw.charts import COLORS
from sightline.studies.compression_report import bits_svg, pareto_svg

SVG = "{http://www.w3.org/2000/svg}"


def texts(root: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{SVG}text")]


def test_a_mark_for_each_point_and_a_line_through_the_front() -> None:
    found = {"uniform": [(100_000, 0.6), (200_000, 0.3)], "a<b": [(100_000, 0.4), (250_000, 0.35)]}
    root = ElementTree.fromstring(pareto_svg(found, counted="file"))
    assert {"Pareto front", "uniform", "a<b", "kilobytes of the file"} <= set(texts(root))
    marks = [
        (each.get("fill"), float(each.get("cx", 0)), float(each.get("cy", 0))) for each in root.iter(f"{SVG}circle")
    ]
    by_color = {color: [(x, y) for fill, x, y in marks if fill == color] for color in COLORS[:3]}
    assert [len(each) for each in by_color.values()] == [2, 2, 2]
    front, uniform, other = by_color.values()
    assert front == [other[0], uniform[1]]
    (line,) = root.iter(f"{SVG}polyline")
    assert line.get("points") == " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
    (x0, y0), (x1, y1) = uniform
    assert x1 - x0 == pytest.approx((other[1][0] - x0) * 100 / 150, abs=0.2)
    assert other[0][1] - y0 == pytest.approx((y1 - y0) * 0.2 / 0.3, abs=0.2)


def test_losses_far_apart_are_on_a_logarithmic_axis() -> None:
    assert "0.001" in texts(ElementTree.fromstring(pareto_svg({"one": [(1e5, 2.0), (2e5, 0.004)]}, counted="codebook")))


@pytest.mark.parametrize("last", [WeightFormat("codebook", 1), FP32])
def test_bars_are_as_long_as_the_bits(last: WeightFormat) -> None:
    layers = [LayerCost(name, size, 1, 1) for name, size in (("a.weight", 12_000), ("b.weight", 7), ("c.weight", 300))]
    middle = WeightFormat("linear", 8, activation=Activation(4, 1.0, True))
    root = ElementTree.fromstring(
        bits_svg({"c.weight": last, "a.weight": WeightFormat("codebook", 4), "b.weight": middle}, layers)
    )
    bars = [float(each.get("width", 0)) for each in root.iter(f"{SVG}rect") if each.get("height") in ("9", "3")]
    most = max(8, last.bits)
    assert bars == pytest.approx([300 * bits / most for bits in (4, 8, 4, last.bits)], abs=0.1)
    found = texts(root)
    assert [each for each in found if each.endswith(".weight")] == ["a.weight", "b.weight", "c.weight"]
    assert "4 · 12,000 weights" in found
    assert {"codebook", "linear", "input"} <= set(found)
    width = float(root.get("width", 0))
    assert all(float(each.get("x", 0)) < width for each in root.iter(f"{SVG}text"))
