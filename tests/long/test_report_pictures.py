"""The report of a run of every task in a real browser: its scripts complain of nothing, and it is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.long.report_pictures import FOLDER, MAX_BYTES, RUNS, make_page, take_picture
from tests.view.test_browser import BROWSER


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("task", RUNS)
def test_the_page_of_every_task_is_drawn(task: str, tmp_path: Path) -> None:
    assert take_picture(make_page(task, tmp_path), tmp_path / "picture.png") == ""
    shown, stored = (Image.open(path).convert("L") for path in (tmp_path / "picture.png", FOLDER / f"{task}.png"))
    assert shown.width == stored.width
    assert shown.height == pytest.approx(stored.height, rel=0.1), "look at it, and write it again"
    assert len(np.unique(np.asarray(shown))) > 30


@pytest.mark.parametrize("task", RUNS)
def test_the_pictures_in_the_docs_are_small(task: str) -> None:
    assert (FOLDER / f"{task}.png").stat().st_size < MAX_BYTES
