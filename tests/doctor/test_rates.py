"""Healthy programs that are drawn, rates of false alarms, and what a rule without a known rate may say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sightline.doctor import rates
from sightline.doctor.attempts import attempt
from sightline.doctor.check import make_subject
from sightline.doctor.evidence import Evidence
from sightline.doctor.evidence.data.reading import Split
from sightline.doctor.evidence.levels import Levels
from sightline.doctor.evidence.matched import Apart
from sightline.doctor.evidence.places import Order
from sightline.doctor.evidence.run import Plateau
from sightline.doctor.evidence.samples import Ends
from sightline.doctor.finding import Fault
from sightline.doctor.rates import MAX_RATE, Rate, sum_binomial
from sightline.doctor.record import ModeGap, Record
from sightline.doctor.rules import Rule, find_by
from sightline.doctor.rules.outcomes import mode_gap
from sightline.doctor.rules.run import trivial_plateau
from sightline.doctor.rules.samples import end_is_not_learnt
from sightline.doctor.rules.targets import boxes_apart, other_places
from tests.doctor.asking import recorded
from tests.doctor.healthy.program import draw, list_draws
from tests.doctor.healthy.rare import RARE
from tests.doctor.observing import observe
from tests.doctor.rates import PAGE, PATH, measure, with_section

DRAWS = (3, 16, 21, 38, 57, 78)
"""Views, label smoothing of a confident network, short texts twice, as many classes as steps, heads of as many samples
as widths, a whole graph: most had a false alarm once."""


RARE_DRAWS = [("captions", 0), ("bounded", 48), ("bounded", 75), ("distilled", 402)]
"""Items without an end, whose embedding declares what fills them up; numbers behind a bound, of which a few or
all are 0 at some weights; shares of classes that are 0."""


@pytest.fixture
def _written(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    rules = {"doctor.rules.few": [9, 0], "doctor.rules.many": [700, 0], "doctor.rules.loud": [700, 9]}
    runs = {"doctor.rules.of_runs": [40, 0], "areas.loud": [40, 1], "doctor.rules.few": [40, 0]}
    document = {"rules": rules, "runs": runs}
    monkeypatch.setattr(rates, "_read", lambda: document)
    rates.may_alarm.cache_clear()
    yield
    rates.may_alarm.cache_clear()


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    """Numbers of scipy.stats.beta.ppf(0.95, alarms + 1, asked - alarms)."""
    for asked, alarms, bound in ((600, 0, 0.0049804434), (948, 1, 0.0049942062), (4000, 900, 0.2361304222)):
        assert Rate(asked, alarms).bound == pytest.approx(bound, rel=1e-4)
    assert Rate(600, 0).is_low
    assert not Rate(597, 0).is_low
    assert not Rate(0, 0).is_low
    assert MAX_RATE == 0.005
    assert sum_binomial(3, 2, 0.5) == pytest.approx(7 / 8)


@pytest.mark.usefixtures("_written")
def test_a_statistic_without_a_known_rate_is_a_note() -> None:
    alarming = "doctor.rules.many", "doctor.rules.of_runs", "areas.never_asked"
    assert all(map(rates.may_alarm, alarming))
    assert not any(map(rates.may_alarm, ("doctor.rules.few", "doctor.rules.loud", "areas.loud", "plugin.other")))
    for is_statistical, severity in ((True, "note"), (False, "error")):
        rule = Rule("x", "error", ("loss.form",), "h", "d", lambda **_: None, (), is_statistical)
        assert rule.build(Fault("s", measured="m")).severity == severity


def test_the_page_has_the_numbers_of_the_file() -> None:
    text, document = PAGE.read_text(encoding="utf-8"), json.loads(PATH.read_text(encoding="utf-8"))
    assert text == with_section(text, document), "run `python -m tests.doctor.rates`"


def test_rates_are_counted_by_what_is_drawn_and_by_whole_runs() -> None:
    """A row that was run again counts as it was last for its rules, and as it was first for the whole."""
    alarm = [{"severity": "warning"}]
    known = {"commit": "a", "crash": "", "alarms": []}
    lines = [
        {**known, "kind": "healthy", "asked": {"x": False, "y": False}},
        {**known, "kind": "rare", "asked": {"x": False}, "alarms": [{"severity": "note"}]},
        {**known, "kind": "run", "asked": {"x": False, "z": True}, "alarms": alarm},
    ]
    measured = measure(lines, [{**lines[0], "alarms": alarm}, *lines[1:]])
    checks = {"checks": Rate(1, 1), "rare_checks": Rate(1, 0), "run_checks": Rate(1, 1)}
    counts = {"rules": {"x": Rate(2, 0), "y": Rate(1, 0)}, "runs": {"x": Rate(1, 0), "z": Rate(1, 1)}}
    assert measured == {"commit": "a", "anew": [], **checks, **counts}
    assert measure(lines, lines, lines[1:], ["x"])["rules"] == {"x": Rate(1, 0), "y": Rate(1, 0)}
    assert measure(lines, lines, lines[1:], ["y"])["rules"]["y"] == Rate(0, 0)


@pytest.mark.parametrize("kind", ["", "captions"])
def test_a_program_is_drawn_from_its_seed(kind: str) -> None:
    first, second, other = (list(draw(seed, kind).model.parameters()) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other, strict=False))


def test_rare_programs_are_rows_of_their_own() -> None:
    rows = list_draws(3, first=600)
    assert [row.id for row in rows if row.kind == "healthy"] == ["healthy/600", "healthy/601", "healthy/602"]
    assert sum(row.kind == "rare" for row in rows) == sum(each.num for each in RARE.values())
    assert "healthy/masked/600" in {row.id for row in rows}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "seed"), [*(("", seed) for seed in DRAWS), *RARE_DRAWS])
def test_nothing_is_said_of_a_drawn_program(kind: str, seed: int) -> None:
    with recorded() as asked:
        alarms = observe(draw(seed, kind).run)
    assert [alarm for alarm in alarms if alarm.severity != "note"] == []
    assert len(asked) > 20
    assert not any(asked.values()), asked


def test_equal_samples_are_chance_or_an_overlap() -> None:
    assert Split("", 3, 684, 170, 0, num_repeats=6, is_coarse=True).chance > 0.1
    assert Split("", 60, 684, 170, 0, num_repeats=0, is_coarse=True).chance < 1e-20


def test_what_drawn_programs_showed_is_no_alarm() -> None:
    """Boxes in a unit other than that of outputs, items without an end, a weak signal, a lag, one number for all."""
    assert find_by(boxes_apart, apart=[Apart("", at_target=3.59, along_one=3.55, along_two=3.51)]) == []
    assert len(find_by(boxes_apart, apart=[Apart("", at_target=0.0, along_one=1.0, along_two=0.9)])) == 1
    for is_declared in (True, False):
        assert len(find_by(end_is_not_learnt, ends=Ends(0, 0, [3, 4, 5], is_declared))) == (not is_declared)
    for own in (-0.23, 0.01):
        turned = Order("", "turned by 180 degrees", own=own, other=0.06, t=15.8)
        assert len(find_by(other_places, orders=[turned])) == (own > 0)
    weak = Levels(0.69, 0.693, 0.692, are_maps=False)
    (found,) = find_by(trivial_plateau, plateau=Plateau(50, 150, 0.69, 0.69), trained_levels=weak)
    assert found.severity == "note"
    for ratio in (1.12, 100.0):
        gap = ModeGap(60, "1", 2.04, 0.03, ratio, "body.1", "", False, loss=0.744, start=2.0)
        record = Record(modes=[gap], is_over=True)
        assert len(find_by(mode_gap, record=record, mode_gaps=[gap])) == (ratio > 2)
    loss = lambda outputs, target: (outputs - target).square().mean()  # noqa: E731
    subject = make_subject(nn.Linear(2, 1), loss, [(torch.randn(4, 2), torch.tensor(0.5))], None)
    missing = attempt("", Evidence({"subject": subject}, math.inf).get, {"name": "whole_turns"})
    assert missing.kind == "apply"
