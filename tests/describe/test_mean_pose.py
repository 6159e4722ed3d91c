"""The mean-pose predictor against its definition in NumPy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sightline.contract.dataset import Dataset
from sightline.contract.types import SampleKey
from sightline.engine.run_data import DataSubset
from sightline.training.mean_pose import mean_pose_error_mm, pose_baselines
from tests.doctor.planting import make
from tests.doctor.posing import make_pose


class _Poses(Dataset):
    """Joints, some of them hidden, and reference points; single samples alone."""

    def __init__(self, seed: int, count: int) -> None:
        draw = np.random.default_rng(seed)
        self.joints = draw.normal([0, 0, 350], 40, (count, 3, 3)).astype(np.float32)
        self.visible = draw.random((count, 3)) < 0.8
        self.reference = draw.normal([0, 0, 350], 20, (count, 3)).astype(np.float32)
        self.info = SimpleNamespace(fields=dict.fromkeys(("joints", "visible", "reference")))

    def __len__(self) -> int:
        return len(self.joints)

    def __getitem__(self, key: SampleKey) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(np.asarray(getattr(self, name)[key.index]))
            for name in ("joints", "visible", "reference")
        }


def test_is_what_its_definition_gives() -> None:
    train, test = _Poses(0, 40), _Poses(1, 23)
    moved = train.joints - train.reference[:, None]
    pose = (moved * train.visible[..., None]).sum(0) / train.visible.sum(0)[:, None]
    error = np.linalg.norm(test.joints - test.reference[:, None] - pose, axis=-1)[test.visible].mean()
    parts = [DataSubset(each, np.arange(count), None, "") for each, count in ((train, 40), (test, 23))]  # type: ignore[arg-type]
    found = mean_pose_error_mm(parts[1], SimpleNamespace(train=parts[0]))  # type: ignore[arg-type]
    assert found == pytest.approx(error, rel=1e-6)


def test_stands_beside_a_run_of_poses_and_of_nothing_else(tmp_path: Path) -> None:
    built = make_pose(tmp_path)
    told = pose_baselines(built.data.test, built.data)["yardsticks"]["mean_error_mm"]
    (error_mm,) = told.values()
    assert 20 < error_mm < 50  # hands of 40 frames against the mean of as many: some 33 mm of many
    clouds = make(tmp_path)
    assert pose_baselines(clouds.data.test, clouds.data) == {}
