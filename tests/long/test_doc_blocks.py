"""Every block of the pages but the tour runs, in the order of its page, unless it is marked as needing more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import run_here
from tests.doc_blocks import OTHER_PAGES, ROOT, TOUR, blocks_of, lay_out, run_block

PAGES = [page for page in OTHER_PAGES if page != TOUR and any(block.needs is None for block in blocks_of(page))]
TOUR_RUN = (
    "configs/classify/synthetic_shapes_pointnet.yaml",
    "train.epochs=1",
    "data.train_size=96",
    "data.test_size=24",
)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the configs lies what the tour leaves: runs/tour."""
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    tour = run_here("train", *TOUR_RUN, "--no-check", "--out", "runs/tour")
    assert tour.code == 0, tour.err
    for block in blocks_of(page):
        if block.needs is None:
            run_block(block)
