"""Curves of every length and form: what is measured over them applies or does not, and never fails."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest

from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.evidence import MEASUREMENTS, Evidence
from sightline.doctor.evidence.levels import Levels
from sightline.doctor.examine import examine
from sightline.doctor.record import ModeGap, Record
from sightline.doctor.trace import Series, Trace

LENGTHS = (1, 2, 8, 20, 200, 1000)
STRIDES = (1, 50)
"""Steps between two that are logged."""
FORMS: dict[str, Callable[[float], float]] = {
    "still": lambda _: 0.7,
    "zero": lambda _: 0.0,
    "falls": lambda part: math.exp(-5 * part),
    "rises": lambda part: 1 + part,
    "waves": lambda part: 1 + math.sin(40 * part),
    "below zero": lambda part: -(10 ** (6 * part)),
    "breaks": lambda part: math.nan if part > 0.5 else 1.0,
    "bursts": lambda part: math.inf if part > 0.9 else 1.0,
}


def draw(form: str, length: int) -> list[float]:
    return [FORMS[form](place / length) for place in range(length)]


def make_evidence(form: str, length: int, stride: int) -> Evidence:
    losses = draw(form, length)
    record = Record(metric="accuracy", is_over=True)
    trace = Trace(is_over=True)
    series = trace.losses.setdefault(("loop.py", 1), Series())
    for place, loss in enumerate(losses):
        step = (place + 1) * stride
        series.add(loss)
        record.add_line({"split": "train", "step": step, "loss/total": loss})
        record.weights.add(step, abs(loss))
        if place % 2 == 1:
            record.add_line({"split": "test", "step": step, "accuracy": loss})
    trace.rates["optimizer"] = [abs(loss) for loss in losses]
    levels = record.main_losses
    record.modes.append(ModeGap(length * stride, "", 0.1, 0.1, 1.0, None, "", False, levels.level, levels.start))
    curve = [((place + 1) * stride, loss) for place, loss in enumerate(losses)]
    given = {"record": record, "loss_curve": curve, "level_source": lambda: Levels(1.0, 0.8, 0.8, are_maps=True)}
    return Evidence({"trace": trace, **given}, math.inf)


@pytest.mark.parametrize("form", FORMS)
def test_no_measurement_and_no_rule_fails_on_a_curve(form: str) -> None:
    num_judged = 0
    for length, stride in itertools.product(LENGTHS, STRIDES):
        evidence = make_evidence(form, length, stride)
        made = [name for name in MEASUREMENTS if evidence.offers((name,))]
        for name in made:
            answer = attempt(name, evidence.get, {"name": name})
            assert not (isinstance(answer, MissingError) and answer.kind == "failed"), (length, stride, str(answer))
        for judgement in examine(evidence).judgements:
            num_judged += judgement.outcome in ("held", "broken")
            assert judgement.outcome != "failed", (length, stride, judgement.rule.code, judgement.reason)
    assert num_judged > len(LENGTHS) * len(STRIDES)
