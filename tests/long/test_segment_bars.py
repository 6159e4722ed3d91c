"""The shipped recipes of segmentation that need no files reach their bars on shapes and rooms that they never saw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("config", "metric", "bar"),
    [
        ("synthetic_shapes_point_transformer", "instance_miou", 0.90),
        ("synthetic_shapes_point_transformer_dense", "instance_miou", 0.85),
        ("synthetic_shapes_dgcnn", "instance_miou", 0.85),
        ("synthetic_rooms_point_transformer", "miou", 0.75),
    ],
)
def test_the_recipe_reaches_its_bar(config: str, metric: str, bar: float, tmp_path: Path) -> None:
    run = tmp_path / config
    words = ["train", str(ROOT / "configs" / "segment" / f"{config}.yaml"), "--out", str(run), "--device", "cpu"]
    subprocess.run([sys.executable, "-m", "sightline", *words], check=True, cwd=ROOT)
    assert json.loads((run / "final.json").read_text())["metrics"][metric] >= bar
