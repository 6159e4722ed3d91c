"""The line that says how much data a run has, before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.verbs.train import _told_data
from tests.doctor.planting import make


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "samples: 216 of training, 24 of validation, held out of the training part, 24 of test"),
        (["evaluate.select=test"], "samples: 240 of training, 24 of test"),
    ],
)
def test_the_samples_of_every_part_are_told(overrides: list[str], told: str, tmp_path: Path) -> None:
    """A tenth of 240 is held out where the test part does not choose."""
    assert _told_data(make(tmp_path, *overrides).data) == told
