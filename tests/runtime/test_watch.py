"""Each planted bug is named at the step at which it is true; healthy loops raise nothing; nothing changes."""

from __future__ import annotations

import pytest
import torch

from tests.runtime.healthy_loops import LOOPS, Loop
from tests.runtime.planted_loops import PLANTS


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_named_at_its_step(name: str) -> None:
    torch.manual_seed(0)
    plant = PLANTS[name]
    findings = plant.run().findings
    assert findings, "nothing was found"
    first = findings[0]
    assert (first.code, first.cause) == (plant.code, plant.cause), "\n".join(map(str, findings))
    assert first.phase == "runtime"
    assert (first.where.step or 0) <= plant.step or plant.step == 0


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_a_healthy_loop_raises_nothing(loop: Loop) -> None:
    torch.manual_seed(0)
    assert loop().findings == []
