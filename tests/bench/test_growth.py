"""Exponents worked by hand, panels from results, and a drawing whose curves lie where their numbers say."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from benchmarks.suites import describe_growth, fit_exponent, growth_cases, panels
from sightline.bench.case import BenchmarkResult, Quartiles, Seconds
from sightline.draw.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, ChartPanel, Series, render_svg
from sightline.errors import UserError

SVG = "{http://www.w3.org/2000/svg}"


def result(
    name: str, ours: float, theirs: float, peaks: tuple[int | None, int | None] = (2**20, 2**22)
) -> BenchmarkResult:
    return BenchmarkResult(name, "textbook", Quartiles(1, 1, 1), Seconds(ours, 0), Seconds(theirs, 0), *peaks)


def test_a_power_law_gives_its_power() -> None:
    assert fit_exponent(Series("a", tuple((x, 5 * x**1.5) for x in (1.0, 2.0, 8.0)))) == pytest.approx(1.5)
    assert fit_exponent(Series("a", ((2.0, 3.0), (4.0, 3.0)))) == 0
    assert math.isnan(fit_exponent(Series("a", ((2.0, 3.0),))))


def test_least_squares_on_logarithms_worked_by_hand() -> None:
    """Logarithms to base 2: x 0 1 2, y 0 3 2. Slope = sum((x - 1)(y - 5/3)) / 2 = (5/3 + 1/3) / 2 = 1."""
    assert fit_exponent(Series("a", ((1.0, 1.0), (2.0, 8.0), (4.0, 4.0)))) == pytest.approx(1.0)


def test_panels_hold_a_family_and_an_axis() -> None:
    places = [
        place for place in growth_cases(("geometry",), "batch", is_quick=True) if place.family == "nearest neighbours"
    ]
    assert [place.value for place in places] == [1, 2]
    results = [result(f"{place.case.name}/sightline", 0.5 * place.value, 4.0 * place.value) for place in places]
    (seconds,), (memory,) = panels(places, results)
    assert seconds is not None
    assert memory is not None
    assert seconds.x_title == "batch"
    assert {line.name: line.points for line in seconds.series} == {
        "textbook": ((1, 4.0), (2, 8.0)),
        "sightline": ((1, 0.5), (2, 1.0)),
    }
    assert {line.name: line.points for line in memory.series} == {
        "textbook": ((1, 4.0), (2, 4.0)),
        "sightline": ((1, 1.0), (2, 1.0)),
    }
    lines = describe_growth([[seconds], [memory]])
    assert [row[2:] for row in lines[:2]] == [
        ("textbook", "4 to 8", "1 to 2", "1.00"),
        ("sightline", "0.5 to 1", "1 to 2", "1.00"),
    ]


def test_what_was_not_measured_is_not_drawn() -> None:
    places = [
        place for place in growth_cases(("geometry",), "batch", is_quick=True) if place.family == "nearest neighbours"
    ]
    (seconds,), (memory,) = panels(places, [result(f"{places[0].case.name}/sightline", 1.0, 2.0, (None, None))])
    assert seconds is not None
    assert [len(line.points) for line in seconds.series] == [1, 1]
    assert memory is None
    assert render_svg([[seconds], [memory]]).count("<g ") == 1


def test_axes_and_suites_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="found 'point', allowed are points, neighbours, batch, all"):
        growth_cases((), "point", is_quick=False)
    with pytest.raises(UserError, match="--grow is for geometry, models; found data"):
        growth_cases(("data", "models"), "batch", is_quick=False)


def test_curves_lie_where_their_numbers_say() -> None:
    """x 1 10 100 spans the panel, 10 its middle; y 1 to 100 spans it from the bottom to the top."""
    panel = ChartPanel("time <s>", "points", (Series("a", ((1, 1), (10, 100), (100, 10))), Series("b", ((1, 10),))))
    tree = ET.fromstring(render_svg([[panel]]))
    line = tree.find(f".//{SVG}g/{SVG}polyline")
    assert line is not None
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    top, bottom, middle = TOP, HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
    assert places == [(LEFT, bottom), (middle, top), (WIDTH - RIGHT, (top + bottom) / 2)]
    texts = [text.text for text in tree.iter(f"{SVG}text")]
    assert {"a", "b", "time <s>", "points", "1", "10", "100"} <= set(texts)


def test_even_axes_and_ranges_lie_where_their_numbers_say() -> None:
    """Of 0.62 to 0.78 a fourth is 0.04, so steps are 0.05 from 0.6 to 0.8, four of them: 0.7 stands in the middle."""
    series = Series("a", ((1, 0.7), (100, 0.75)), ((0.62, 0.78), (0.75, 0.75)))
    tree = ET.fromstring(render_svg([[ChartPanel("accuracy", "labels, %", (series,), y_scale="linear")]]))
    texts = [text.text for text in tree.iter(f"{SVG}text")]
    assert [text for text in texts if text and text.startswith("0.")] == ["0.6", "0.65", "0.7", "0.75", "0.8"]
    top, bottom = TOP, HEIGHT - BOTTOM
    line = tree.find(f".//{SVG}g/{SVG}polyline")
    assert line is not None
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert places == [(LEFT, (top + bottom) / 2), (WIDTH - RIGHT, top + (bottom - top) / 4)]
    bars = [bar.attrib for bar in tree.iter(f"{SVG}line") if bar.attrib.get("stroke-width") == "1.5"]
    assert [float(bars[0][end]) for end in ("x1", "y1", "x2", "y2")] == pytest.approx(
        [LEFT, bottom - 0.1 * (bottom - top), LEFT, top + 0.1 * (bottom - top)], abs=0.051
    )


def test_flat_curves_have_an_axis_too() -> None:
    panel = ChartPanel("flat", "points", (Series("a", ((4, 10), (8, 10))),))
    assert "nan" not in render_svg([[panel]])
    assert "nan" not in render_svg([[ChartPanel("one", "points", (Series("a", ((4, 3),)),))]])
    for value in (0.0, 0.5, -2.0):
        assert "nan" not in render_svg([[ChartPanel("even", "x", (Series("a", ((4, value),)),), y_scale="linear")]])


def test_the_same_panels_give_the_same_text() -> None:
    panel = ChartPanel("p", "x", (Series("a", ((1, 2), (2, 3))),))
    assert render_svg([[panel, None]]) == render_svg([[panel, None]])
    assert render_svg([]).endswith("</svg>\n")
