"""Each loop of tests/unchanged with each form of batches: the bits of all that it leaves are those of the plain one."""

from __future__ import annotations

import itertools

import pytest

from tests.unchanged.forms import FORMS
from tests.unchanged.loops import LOOPS
from tests.unchanged.test_cells import assert_same_bits, list_daily

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about torch.jit, quantisation and schedules


@pytest.mark.parametrize(("loop", "form"), [*itertools.product(LOOPS, FORMS)])
def test_a_program_leaves_the_same_bits(loop: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of each day get checks of their usual length."""
    assert_same_bits(loop, form, 4.0 if (loop, form) in list_daily() else 0.05, monkeypatch)
