"""Shipped and published recipes: all that the suite leaves out of checks, fits, processes and bars."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.workbench.check.context import Context
from sightline.workbench.check.run_subject import examine_run
from sightline.workbench.check.suite import all_rules
from tests.conftest import ROOT
from tests.doctor.test_healthy_runs import assert_parts_are_healthy, assert_shipped_is_healthy, assert_small_is_healthy
from tests.fit.test_fit import assert_fitted
from tests.long.classify_tables import main
from tests.recipes import recipes
from tests.runs import test_recipes as published
from tests.runs.recipe_traces import RECIPES
from tests.runs.test_recipe_traces import assert_numbers_of_one_process, traces_of

# --- checks of shipped configs and of small runs ----------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes())
def test_shipped_configs_are_healthy(name: str) -> None:
    """V2V on its 88 voxels a side takes 2 GB."""
    assert_shipped_is_healthy(name)


@pytest.mark.parametrize("model", ["pointnet", "dgcnn"])
@pytest.mark.parametrize("seed", [2, 3])
def test_small_runs_are_healthy_whatever_the_seed(tmp_path: Path, model: str, seed: int) -> None:
    assert_small_is_healthy(tmp_path, model, seed)


@pytest.mark.parametrize("seed", [2, 3])
def test_small_runs_on_parts_are_healthy_whatever_the_seed(tmp_path: Path, seed: int) -> None:
    assert_parts_are_healthy(tmp_path, seed)


# --- The checks of detection find nothing in the shipped recipes, whatever crowds are drawn ---


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("assigner", ["own", "atss"])
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_shipped_detectors_are_not_flagged(name: str, assigner: str, seed: int) -> None:
    words = [f"seed={seed}", f"data.data_seed={seed}"]
    words += [] if assigner == "own" else [f"task.assigner.name={assigner}"]
    built = build(read_config(ROOT / f"configs/detect/synthetic_crowds_{name}.yaml", words), World())
    all_rules()
    _, found = examine_run(Context(built, World()))
    assert found == [], list(map(str, found))


# --- larger networks fitted by their own optimisers -------------------------------------------------------------------


CASES = {
    "segment/synthetic_shapes_point_transformer": (
        "data.num_points=64",
        "model={widths: [8, 16], strides: [1, 4], num_neighbours: [4, 4], num_blocks: [1, 1]}",
    ),
    "segment/synthetic_shapes_dgcnn": ("data.num_points=64", "model.num_neighbours=6", "model.embedding=64"),
    "classify/synthetic_shapes_pointnet": ("data.num_points=32",),
    "segment/synthetic_shapes_point_transformer_dense": ("data.num_points=128",),
    "contrast/synthetic_shapes_crosspoint": ("data.num_points=256",),
}


@pytest.mark.parametrize("name", CASES)
def test_a_larger_recipe_is_fitted(name: str) -> None:
    assert_fitted(name, CASES[name])


# --- Published recipes on small sets in the true layouts: all that the suite leaves out ---


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.prepare_detection(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.prepared(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize("kind", ["fcos", "retinanet", "retinanet_freeanchor", "retinanet_s3", "yolox_simota"])
def test_a_published_detector_is_checked_and_trained(photos: Path, tmp_path: Path, kind: str) -> None:
    published.assert_checked_and_trained(photos, tmp_path, f"crowdhuman_{kind}")


@pytest.mark.parametrize(("layout", "config"), [pair for pair in published.PAIRS if pair not in published.IN_THE_SUITE])
def test_a_recipe_for_parts_is_trained(parts: Path, layout: str, config: str) -> None:
    published.assert_parts_are_trained(parts, layout, config)


# --- one, two and three processes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, 3])
def traces_of_processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Five samples are dealt 3 + 2, or 2 + 2 + 1."""
    return traces_of(request.param, tmp_path_factory.mktemp("traces"), RECIPES)


@pytest.mark.processes
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_give_the_numbers_of_one_process(traces_of_processes: dict[str, Any], recipe: str) -> None:
    assert_numbers_of_one_process(traces_of_processes, recipe)


# --- segmentation of shapes and rooms never seen ----------------------------------------------------------------------


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


# --- one recipe, four models ------------------------------------------------------------------------------------------


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
