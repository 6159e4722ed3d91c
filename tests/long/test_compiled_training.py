"""A model that torch compiles trains to the numbers of one that it does not."""

from __future__ import annotations

import shutil

import pytest

from sightline.engine.distributed import World
from tests.contract.run_toys import run as run_toy
from tests.contract.toys import TOYS


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler about itself
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler")
def test_compiling_changes_no_result_beyond_rounding() -> None:
    """In float64 the compiler may reorder a few hundred terms: far below 1e-9 after eight steps."""
    plain = run_toy(TOYS["classify"], World(), 1)
    compiled = run_toy(TOYS["classify"], World(), 1, is_compiled=True)
    totals = [[step["total"] for step in run["trace"]] for run in (compiled, plain)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-9)
