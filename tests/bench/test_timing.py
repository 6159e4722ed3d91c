"""Forms in turn, medians and ratios: numbers worked by hand, with a clock that the test moves."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest

from sightline.bench.case import Quartiles, Seconds
from sightline.bench.runner import ENOUGH_S, interleave, ratios, read_clocks


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


def test_a_busy_spell_slows_both_sides_of_a_pair_and_no_ratio() -> None:
    """The second round takes ten times as long for both; the ratio stays 3 in every round."""
    clock = Clock()
    forms = {"plain": clock.form("plain", 3, 3, 30, 3), "fast": clock.form("fast", 1, 1, 10, 1)}
    found = interleave(forms, repeats=3, clocks=clock)
    assert [each.cpu for each in found["plain"]] == [3, 30, 3]
    assert ratios(found["plain"], found["fast"]) == Quartiles(3.0, 3.0, 3.0)


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
