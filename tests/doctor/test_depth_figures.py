"""Checks of data on hands of MSRA: silent on healthy frames, and a mix-up of units is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sightline.areas.pose.sets.hand_sets import MsraHands
from sightline.doctor.finding import Finding
from sightline.engine.distributed import World
from sightline.workbench.check.context import Context
from sightline.workbench.check.run_subject import examine_run
from sightline.workbench.check.suite import all_rules
from tests.data.depth.depth_trees import no_progress, write_msra
from tests.doctor.planting import Wrapped, make, with_data

OF_DATA = ("channel-contract", "data-mutation", "non-finite-data")
"""They look at data sets alone, so the rest of the run may be anything."""


def judge(folder: Path, dataset: Any) -> tuple[Context, list[Finding]]:
    built = make(folder, "data.train_size=16", "data.test_size=12", "train.batch_size=4", "evaluate.select=test")
    context = Context(with_data(built, lambda inner: dataset), World())
    all_rules()
    return context, [finding for finding in examine_run(context)[1] if finding.code in OF_DATA]


@pytest.mark.parametrize("middle_mm", [130.0, 329.0, 580.0])
def test_hands_as_near_as_in_msra_are_not_taken_for_metres(tmp_path: Path, middle_mm: float) -> None:
    """Joints of MSRA lie at 122 to 599 mm, 329 mm in the mean."""
    source = tmp_path / "source" / "cvpr15_MSRAHandGestureDB"
    frames = {f"P{subject}/{gesture}": 5 for subject in range(3) for gesture in range(1, 4)}
    write_msra(source, frames, middle_mm=middle_mm)
    MsraHands.prepare(source=source, target=tmp_path / "msra", name="msra_hands", progress=no_progress)
    hands = MsraHands(split="train", root=str(tmp_path / "msra"), subject=0)
    context, found = judge(tmp_path, hands)
    assert found == []
    assert context.statistics[0].num_sampled == 16
    wrong = Wrapped(hands, lambda batch, keys: {**batch, "joints": batch["joints"] / 1000})
    (finding, *_) = judge(tmp_path, wrong)[1]
    assert finding.cause == "data.normalisation"
    assert "'joints'" in finding.summary
    assert finding.summary.endswith("of its declared range: another unit?")
