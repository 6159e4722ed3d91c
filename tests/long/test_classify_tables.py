"""One recipe, four models: on ten classes each is at least PointNet, less what PointNet's own seeds differ by."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.long.classify_tables import main
from tests.long.tables import ROOT


@pytest.mark.shared
def test_every_model_is_at_least_pointnet(shared: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "modelnet40", tmp_path / "tables.json"
    source = shared / "data" / "modelnet40_1024.npz"
    prepare = [sys.executable, "-m", "sightline", "data", "prepare", "modelnet40", "--from", str(source), "--to"]
    subprocess.run([*prepare, str(data)], cwd=ROOT, check=True)
    assert main(["modelnet10", "--folder", str(tmp_path / "runs"), "--data", str(data), "--out", str(out)]) == 0
    pointnet, *others = json.loads(out.read_text())["modelnet10"]
    bar = pointnet["overall_accuracy"] - (pointnet["highest"] - pointnet["lowest"])
    assert [row["name"] for row in others if row["overall_accuracy"] < bar] == []
    assert pointnet["lowest"] >= 0.82
