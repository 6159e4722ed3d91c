"""The published recipes for parts and scenes, on small sets in the true layouts: trained, and evaluated again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.command import succeed
from tests.data.clouds.shapenet_part_writers import LAYOUTS, prepare, write_layout
from tests.data.scenes.scene_writers import write_s3dis
from tests.engine.published_weights import saved, small_state
from tests.marks import long_but
from tests.processes import ROOT

PARTS = {
    "shapenet_part_dgcnn": ("model.num_neighbours=4", "model.embedding=16"),
    "shapenet_part_pct": ("evaluate.votes=2",),
    "shapenet_part_point_bert": (
        "model.width=12",
        "model.num_groups=6",
        "model.group_size=4",
        "model.num_centres=[8, 6]",
        "schedule.warmup_epochs=0",
    ),
    "shapenet_part_point_transformer": (
        "model.widths=[16, 32]",
        "model.strides=[1, 4]",
        "model.num_blocks=[1, 1]",
        "model.num_neighbours=[4, 4]",
    ),
    "shapenet_part_point_transformer_dense": ("model.num_blocks=[1, 1]", "model.width=16", "model.num_neighbours=4"),
    "shapenet_part_pointnet": (),
    "shapenet_part_pointnet2": ("model.num_centres=[8, 4]", "model.radii=[0.5, 1.0]"),
}
"""What brings each recipe down to shapes of some 20 points."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("recipes"))


def prepared(folder: Path) -> Path:
    """ShapeNetPart prepared from each layout, and S3DIS."""
    for layout in LAYOUTS:
        prepare(write_layout(layout, folder / "in" / layout), folder / layout)
    source = write_s3dis(folder / "in" / "rooms")
    succeed("data", "prepare", "s3dis", "--from", source, "--to", folder / "rooms")
    return folder


def assert_trains_and_repeats(config: str, run: Path, *overrides: str, figure: str) -> None:
    """One epoch; evaluated again, the run says the same of its last checkpoint."""
    small = ("train.epochs=1", "train.batch_size=8", "log.tensorboard=false", *overrides)
    places = ("--device", "cpu", "--no-check", "--out", run)
    succeed("train", ROOT / f"configs/segment/{config}.yaml", *small, *places)
    metrics = json.loads((run / "final.json").read_text())["metrics"]
    assert 0 <= metrics[figure] <= 1
    succeed("evaluate", run, "--device", "cpu", "--json", run / "again.json")
    repeated = json.loads((run / "again.json").read_text())["metrics"]
    assert {name: value for name, value in repeated.items() if name in metrics} == metrics
    assert not math.isnan(repeated[figure])


WITH_NORMALS = {
    "shapenet_part_pointnet2",
    "shapenet_part_point_transformer",
    "shapenet_part_point_transformer_dense",
}
"""The HDF5 release has none; its refusal is tested with the set."""


PAIRS = [(one, other) for one in LAYOUTS for other in PARTS if one != "hdf5" or other not in WITH_NORMALS]
IN_THE_SUITE = list({config: (layout, config) for layout, config in (*PAIRS, ("text", "shapenet_part_pct"))}.values())


KEPT = [pair for pair in IN_THE_SUITE if pair[1] in ("shapenet_part_pct", "shapenet_part_pointnet")]


@pytest.mark.parametrize(("layout", "config"), long_but(KEPT, IN_THE_SUITE))
def test_recipes_for_parts(folder: Path, layout: str, config: str) -> None:
    """Each in one layout; in all of them: tests/long/test_published_recipes.py."""
    assert_parts_are_trained(folder, layout, config)


def assert_parts_are_trained(folder: Path, layout: str, config: str) -> None:
    """Shapes of 20 to 26 points, thinned to 16 or, where every shape has 24, to 24; scored on all of them."""
    count = 16 if layout == "text" else 24
    thinned = [f"transforms.{part}.0.num_points={count}" for part in ("train", "evaluate")]
    overrides = (f"data.root={folder / layout}", *thinned, *PARTS[config])
    assert_trains_and_repeats(config, folder / f"{layout}_{config}", *overrides, figure="instance_miou")


def test_recipe_for_scenes(folder: Path) -> None:
    """Rooms of 65 m with some 30 points: blocks of 40 m, 12 points at a time."""
    overrides = (
        f"data.root={folder / 'rooms'}",
        "data.repeats=3",
        "model.num_neighbours=4",
        "model.embedding=16",
        "transforms.train.0.size_m=40.0",
        "transforms.train.0.num_points=12",
        "transforms.train.0.fewest=8",
        "task.blocks={size_m: 40.0, stride_m: 20.0, num_points: 12}",
    )
    assert_trains_and_repeats("s3dis_dgcnn", folder / "scenes", *overrides, figure="miou")


@pytest.mark.parametrize(
    ("layout", "facts", "data", "overrides", "figure"),
    [
        (
            "yanx27_pointnet_parts",
            {"num_classes": 50, "in_channels": 6, "num_categories": 16},
            "text",
            ("transforms.evaluate.0.num_points=32",),
            "instance_miou",
        ),
        (
            "yanx27_pointnet_scenes",
            {"num_classes": 13, "in_channels": 9},
            "rooms",
            ("task.blocks={size_m: 40.0, stride_m: 20.0, num_points: 12}", "evaluate.select=test"),
            "miou",
        ),
    ],
)
def test_published_weights_are_evaluated_by_their_own_recipe(
    folder: Path, tmp_path: Path, layout: str, facts: dict[str, int], data: str, overrides: tuple[str, ...], figure: str
) -> None:
    """Random weights in the shapes of the published ones: converted for the set that is there, scored on all of it."""
    file, run = saved(tmp_path / "a.pth", small_state(layout, **facts)), tmp_path / "run"
    given = (f"data.root={folder / data}", "log.tensorboard=false", *overrides)
    succeed("data", "convert-weights", file, "--layout", layout, "--to", run, *given)
    succeed("evaluate", run, "--device", "cpu", "--json", tmp_path / "scores.json")
    assert 0 <= json.loads((tmp_path / "scores.json").read_text())["metrics"][figure] < 0.5
