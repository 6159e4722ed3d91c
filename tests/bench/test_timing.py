"""Times, agreement and growth: numbers worked by hand, with a clock that the test moves."""

from __future__ import annotations

import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest
import torch

from benchmarks.case import BenchmarkResult, Quartiles, Seconds, allclose, equal
from benchmarks.geometry import farthest_each_time, same_neighbours
from benchmarks.growth import describe_growth, fit_exponent, growth_cases, panels
from benchmarks.runner import ENOUGH_S, interleave, ratios, read_clocks
from sightline.draw.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, ChartPanel, Series, render_svg

# --- forms in turn, medians and ratios: numbers worked by hand, with a clock that the test moves ---------------------


class Clock:
    """CPU seconds that pass only where a form says so; the wall goes twice as fast."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> Seconds:
        return Seconds(self.now, 2 * self.now)

    def form(self, name: str, *seconds: float) -> Callable[[], None]:
        """Takes these seconds, call after call; the last of them for ever."""
        left = list(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_quartiles_are_those_worked_by_hand() -> None:
    """Of 1 2 3 4: positions 0.75, 1.5 and 2.25 between the four places 0 to 3."""
    assert Quartiles.from_values([4.0, 1.0, 3.0, 2.0]) == Quartiles(2.5, 1.75, 3.25)
    assert Quartiles.from_values([5.0, 1.0, 3.0]) == Quartiles(3.0, 2.0, 4.0)
    assert Quartiles.from_values([7.0]) == Quartiles(7.0, 7.0, 7.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    """8/2, 6/3, 9/1 are 4, 2, 9: median 4, quartiles 3 and 6.5. The ratio of the medians, 8/2, is not what is asked."""
    before = [Seconds(8.0, 0.0), Seconds(6.0, 0.0), Seconds(9.0, 0.0)]
    after = [Seconds(2.0, 0.0), Seconds(3.0, 0.0), Seconds(1.0, 0.0)]
    assert ratios(before, after) == Quartiles(4.0, 3.0, 6.5)


def test_forms_take_turns_and_the_order_alternates() -> None:
    clock = Clock()
    interleave({name: clock.form(name, 1.0) for name in "abc"}, repeats=3, clocks=clock)
    assert "".join(clock.calls) == "abc" + "abc" + "cba" + "abc"  # the first round is the unmeasured one


def test_short_calls_are_repeated_and_reported_per_call() -> None:
    """A call of 3 ms is made 7 times, 21 ms, the first whole number of them that reaches 20 ms."""
    clock = Clock()
    found = interleave({"short": clock.form("short", 0.003), "long": clock.form("long", 1.0)}, repeats=2, clocks=clock)
    assert math.ceil(ENOUGH_S / 0.003) == 7
    assert clock.calls.count("short") == 1 + 2 * 7
    assert clock.calls.count("long") == 1 + 2
    assert [each.cpu for each in found["short"]] == pytest.approx([0.003, 0.003])
    assert [each.wall for each in found["long"]] == pytest.approx([2.0, 2.0])


def test_the_work_of_a_process_counts_once_it_ended() -> None:
    """A child that works for a third of a second costs this process next to nothing; it states its own time."""
    before = read_clocks()
    command = "import time\nwhile time.process_time() < 0.3: pass\nprint(time.process_time())"
    own_s = float(subprocess.run([sys.executable, "-c", command], check=True, capture_output=True).stdout)
    assert 0.9 * own_s < read_clocks().cpu - before.cpu < own_s + 0.5


# --- what counts as the same numbers, and what does not --------------------------------------------------------------


# Distances from point 0: 0, 1, 1, 4, 9. Points 1 and 2 tie.
CLOUD = {"points": torch.tensor([[[0.0], [1.0], [-1.0], [2.0], [3.0]]])}


def neighbours(*first_row: int) -> torch.Tensor:
    """Rows of 3 neighbours; all but the first row are right: the nearest two sides and the point."""
    return torch.tensor([[list(first_row), [1, 0, 3], [2, 0, 1], [3, 1, 4], [4, 3, 1]]])


def test_equal_names_the_first_difference() -> None:
    fault = equal(None, torch.tensor([[1, 2, 3]]), torch.tensor([[1, 5, 4]]))
    assert fault == "2 of 3 entries differ, first (0, 1): 5, not 2"
    assert equal(None, torch.arange(3), torch.arange(3)) is None
    assert "shape" in str(equal(None, torch.arange(3), torch.arange(4)))


def test_neighbours_may_differ_among_equal_distances_alone() -> None:
    assert same_neighbours(CLOUD, neighbours(0, 1, 2), neighbours(0, 2, 1)) is None
    fault = same_neighbours(CLOUD, neighbours(0, 1, 2), neighbours(0, 1, 3))
    assert fault == "1 of 5 points have other neighbours, first cloud 0, point 0"
    assert same_neighbours(CLOUD, neighbours(0, 1, 2), neighbours(1, 0, 2)) is not None, "nearest first"


def test_a_neighbour_named_twice_is_not_one_of_equal_distance() -> None:
    """Points 1 and 2 are equally far, but 1 and 1 is no answer."""
    assert same_neighbours(CLOUD, neighbours(0, 1, 2), neighbours(0, 1, 1)) == "it names a neighbour twice"
    assert same_neighbours(CLOUD, neighbours(0, 1, 1), neighbours(0, 1, 2)) == "the baseline names a neighbour twice"


def test_a_tolerance_is_relative_to_the_largest_number() -> None:
    before, after = torch.tensor([100.0, 1.0]), torch.tensor([100.0, 1.05])
    assert allclose(1e-3)(None, before, after) is None  # 0.05 of 100 is half of what is allowed
    assert "allowed is 0.0001" in str(allclose(1e-4)(None, before, after))
    assert allclose(1.0)(None, before, torch.tensor([float("nan"), 1.0])) is not None
    assert "it gives ['b']" in str(allclose(1.0)(None, {"a": before}, {"b": before}))


def test_farthest_points_are_judged_along_their_own_way() -> None:
    """On 0 1 -1 2 3: from 0 the farthest is 3 (place 4), then -1 (1 away from 0, place 2), 1 and 2 tie with 1."""
    expected = torch.tensor([[0, 4, 2, 1, 3]])
    for right in ([0, 4, 2, 1, 3], [0, 4, 1, 2, 3], [0, 4, 3, 1, 2], [2, 4, 1, 0, 3]):
        assert farthest_each_time(CLOUD, expected, torch.tensor([right])) is None, right
    fault = farthest_each_time(CLOUD, expected, torch.tensor([[0, 3, 4, 2, 1]]))
    assert fault == "cloud 0, place 1: point 3 is not the farthest from those before it"
    assert farthest_each_time(CLOUD, expected, torch.tensor([[0, 4, 4, 2, 1]])) is not None


# --- exponents worked by hand, panels of results, and curves that lie where their numbers say -------------------------


SVG = "{http://www.w3.org/2000/svg}"
GROWTH = growth_cases(("geometry",), "batch", is_quick=True)
PLACES = [place for place in GROWTH if place.family == "nearest neighbours"]


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
    assert [place.value for place in PLACES] == [1, 2]
    results = [result(f"{place.case.name}/sightline", 0.5 * place.value, 4.0 * place.value) for place in PLACES]
    (seconds,), (memory,) = panels(PLACES, results)
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
    (seconds,), (memory,) = panels(PLACES, [result(f"{PLACES[0].case.name}/sightline", 1.0, 2.0, (None, None))])
    assert seconds is not None
    assert [len(line.points) for line in seconds.series] == [1, 1]
    assert memory is None
    assert render_svg([[seconds], [memory]]).count("<g ") == 1


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
