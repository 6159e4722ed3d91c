"""Loops, forms of batches and modes: the bits of all that a program leaves are those that it leaves by itself."""

from __future__ import annotations

import itertools

import pytest

from tests.unchanged.forms import FORMS
from tests.unchanged.loops import LOOPS
from tests.unchanged.modes import MODES, run, short_checks

_NUM_FORMS_OF_EACH = 2
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about torch.jit, quantisation and schedules


def list_daily() -> list[tuple[str, str]]:
    """Each loop with one form, and each form with two loops or more."""
    forms, loops = itertools.cycle(FORMS), list(LOOPS)
    pairs = list(zip(loops, forms, strict=False))
    used = [form for _, form in pairs]
    lacking = [form for form in FORMS for _ in range(_NUM_FORMS_OF_EACH - used.count(form))]
    return pairs + list(zip(loops, lacking, strict=False))


def assert_same_bits(loop: str, form: str, budget_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare what a program leaves in each mode, with checks of so many seconds, with what it leaves by itself."""
    plain = run(loop, form)
    with short_checks(budget_s, monkeypatch):
        found = {mode: run(loop, form, open_context) for mode, open_context in MODES.items()}
    assert found == dict.fromkeys(MODES, plain)


@pytest.mark.parametrize(("loop", "form"), list_daily())
def test_a_program_leaves_the_same_bits(loop: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same_bits(loop, form, 0.05, monkeypatch)
