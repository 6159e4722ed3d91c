"""Logits of fresh models that are too sure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.areas.clouds.models.pointnet import PointNetPlain, PointNetPlainOutput
from sightline.engine.distributed import World
from sightline.workbench.check.context import Context
from sightline.workbench.check.step_rules import initial_loss
from tests.doctor.planting import assert_complete, judge, make, with_model


class Louder(PointNetPlain):
    """Logits of another size."""

    size = 1.0

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        logits = super().forward(points=points, features=features)["logits"]
        return {"logits": self.size * logits / logits.std()}


@pytest.mark.parametrize("size", [1.0, 10.0])
def test_an_untrained_model_is_not_sure(tmp_path: Path, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Louder, "size", size)
    torch.manual_seed(0)
    built = with_model(make(tmp_path), Louder(num_classes=12, in_channels=3, embedding=32, dropout=0.0))
    found = judge(initial_loss, Context(built, World()))
    assert [each.cause for each in found] == ["model.init"] * (size > 3)
    for finding in found:
        assert_complete(finding)
