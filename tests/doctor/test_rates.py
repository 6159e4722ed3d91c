"""Healthy programs that are drawn, rates of false alarms, and what a rule without a known rate may say."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from sightline.doctor import rates
from sightline.doctor.evidence.reading import Split
from sightline.doctor.examine import list_rules
from sightline.doctor.finding import Fault
from sightline.doctor.rates import MAX_RATE, Rate, sum_binomial
from sightline.doctor.rules import Rule
from tests.doctor.asking import recorded
from tests.doctor.healthy.program import draw
from tests.doctor.observing import observe
from tests.doctor.rates import PAGE, PATH, WAITING, list_waiting, with_section

DRAWS = (3, 16, 21, 38, 57, 78)
"""Views, label smoothing of a confident network, short texts twice, as many classes as steps, heads of as many samples
as widths, a whole graph: most had a false alarm once."""


@pytest.fixture
def _written(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    document = {"waiting": ["doctor.rules.few"], "rules": {"doctor.rules.few": [9, 0], "doctor.rules.many": [700, 0]}}
    document["rules"] |= {"doctor.rules.loud": [700, 9]}  # type: ignore[attr-defined]
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
    names = {"doctor.rules.many": "error", "doctor.rules.few": "error", "doctor.rules.loud": "note", "other": "note"}
    assert {name: "error" if rates.may_alarm(name) else "note" for name in names} == names
    for is_statistical, severity in ((True, "note"), (False, "error")):
        rule = Rule("x", "error", ("loss.form",), "h", "d", lambda **_: None, (), is_statistical)
        assert rule.build(Fault("s", measured="m")).severity == severity


def test_the_page_has_the_numbers_of_the_file() -> None:
    text, document = PAGE.read_text(encoding="utf-8"), json.loads(PATH.read_text(encoding="utf-8"))
    assert text == with_section(text, document), "run `python -m tests.doctor.rates`"
    counts = {name: Rate(*numbers) for name, numbers in document["rules"].items()}
    assert document["waiting"] == list_waiting(counts)
    statistical = {rule.name for rule in list_rules() if rule.is_statistical}
    named = {f"doctor.rules.{module}.{rule}" for module, rules in WAITING.items() for rule in rules.split()}
    assert named <= statistical


def test_a_program_is_drawn_from_its_seed() -> None:
    first, second, other = (list(draw(seed).model.parameters()) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other, strict=False))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", DRAWS)
def test_nothing_is_said_of_a_drawn_program(seed: int) -> None:
    with recorded() as asked:
        alarms = observe(draw(seed).run)
    assert [alarm for alarm in alarms if alarm.severity in ("error", "warning")] == []
    assert len(asked) > 20
    assert not any(asked.values()), asked


def test_equal_samples_are_chance_or_an_overlap() -> None:
    assert Split("", 3, 684, 170, 0, num_repeats=6, is_coarse=True).chance > 0.1
    assert Split("", 60, 684, 170, 0, num_repeats=0, is_coarse=True).chance < 1e-20
