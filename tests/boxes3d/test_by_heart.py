"""Four frames are learnt by heart: boxes, classes and headings come back."""

from __future__ import annotations

import pytest
import torch

from sightline.areas.boxes3d.metrics.boxes3d_ap import Boxes3dAp
from sightline.config import read_config
from sightline.contract.types import SampleKey
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.engine.loop import train
from tests.processes import ROOT

STEPS = 150
WORDS = (
    "data.train_size=4",
    "data.test_size=1",
    "data.num_columns=512",
    "transforms.train=[{name: limit_extent, extent_m: [-46.08, -11.52, -3, 46.08, 11.52, 1], min_points: 5}]",
    "train.batch_size=4",
    f"train.epochs={STEPS}",
    f"evaluate.every={STEPS}",
)


@pytest.mark.long
def test_four_frames_are_learnt_by_heart() -> None:
    config = read_config(ROOT / "configs/boxes3d/synthetic_streets_pointpillars.yaml", WORDS)
    built = build(config, World())
    train(built.job, World(), lambda record, stop_requested: False)
    part, network, task = built.data.train, built.job.model.eval(), built.job.task
    keys = [SampleKey(int(index), 0, 0) for index in part.indices]
    assert len(keys) == 4
    batch = part.reader(keys)
    with torch.no_grad():
        predictions = task.predict(network, batch)
    names = part.dataset.info.facts["class_names"]
    metric = Boxes3dAp(class_names=names)
    state = metric.new_state()
    rows = {name: predictions[name] for kind in ("detections3d", "truth3d") for name in (kind, f"{kind}_offsets")}
    metric.update(state, sample_index=batch["sample_index"], **rows)
    figures = metric.compute(state)
    assert figures["ap_overlap"] >= 0.9
    assert figures["yaw_error_rad"] <= 0.1
