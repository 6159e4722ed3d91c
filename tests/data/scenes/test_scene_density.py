"""Density of scenes: planted points on surfaces of known area, and the config that thins dense ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.areas.scenes.sets.scene_density import measure_density
from sightline.areas.scenes.sets.scene_folder import SceneFolder
from sightline.config import read_config
from sightline.config.own_config import read_shipped, render_over
from sightline.parts.voxels.grids import GridSummary
from tests.cases import run_each


def quiet(done: int, total: int, message: str) -> None:
    """Progress that nobody looks at."""


def box_room(per_m2: float, *, size: Sequence[float] = (5, 4, 2.5), noise_m: float = 0.01, seed: int = 0) -> np.ndarray:
    """Floor, ceiling and four walls of a room with so many points on a square metre, some millimetres off."""
    generator = np.random.default_rng(seed)
    parts = []
    for axis in range(3):
        first, second = (other for other in range(3) if other != axis)
        for side in (0.0, size[axis]):
            count = round(per_m2 * size[first] * size[second])
            points = generator.uniform(0, 1, (count, 3)) * size
            points[:, axis] = side
            parts.append(points)
    points = np.concatenate(parts)
    return points + generator.normal(0, noise_m, points.shape)


@pytest.mark.parametrize("per_m2", [30, 60, 200, 500, 3000])
@pytest.mark.parametrize("size", [(5, 4, 2.5), (12, 9, 3)])
def test_the_density_is_that_of_the_surface(per_m2: float, size: tuple[float, float, float]) -> None:
    found = measure_density([box_room(per_m2, size=size)])
    assert found.per_m2 == pytest.approx(per_m2, rel=0.15)
    assert (found.grid_m is not None) == (per_m2 >= 200)
    area = 2 * (size[0] * size[1] + size[0] * size[2] + size[1] * size[2])
    if found.grid_m is not None:
        assert found.num_kept == pytest.approx(100 * area, rel=0.4)


def test_small_scenes_have_a_finer_grid_and_few_points_none() -> None:
    table_top = measure_density([0.05 * box_room(2000)])
    assert table_top.grid_m == pytest.approx(0.05 * 0.1, rel=0.1)
    assert measure_density([0.05 * box_room(40)]).grid_m is None
    assert measure_density([np.zeros((5000, 3))]).per_m2 > 0


@run_each("per_m2, expected", [(60, 60**-0.5), (400, 0.05), (900, 0.04), (5_000, 0.04)])
def test_voxels_are_as_large_as_the_spacing_of_the_points(per_m2: float, expected: float) -> None:
    """To two digits, at least 4 cm, of small scenes in proportion; most neighbours on a surface are then voxels."""
    room = box_room(per_m2, size=(5.5, 4, 0.5), noise_m=0.0)
    found = measure_density([room]).voxel_m
    assert found == pytest.approx(expected, rel=0.1)
    assert len(f"{found:g}".strip("0.")) <= 2
    assert measure_density([0.05 * room]).voxel_m == pytest.approx(0.05 * max(per_m2**-0.5, 5.5 / 125), rel=0.1)
    grid = GridSummary(found)
    grid.add(torch.from_numpy(room))
    assert grid.neighbours > 6
    assert not grid.list_doubts()


@pytest.mark.parametrize("per_m2", [60, 500])
def test_dense_rooms_are_said_to_be_and_thinned_by_the_config(per_m2: float, tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/c"):
        path = tmp_path / f"in/{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        points = box_room(per_m2)
        np.savez(path, points=points, label=np.arange(len(points)) % 2)
    options = {"up_axis": "z", "unit": "m"}
    assert ("which is dense" in SceneFolder.survey(tmp_path / "in", **options)["density"]) == (per_m2 == 500)
    SceneFolder.prepare(source=tmp_path / "in", target=tmp_path / "set", name="scene_folder", progress=quiet, **options)
    words = SceneFolder.propose(SceneFolder.open_folder(tmp_path / "set"), read_shipped("segment/own_rooms"))
    if per_m2 == 60:
        assert words == []
        return
    (tmp_path / "own.yaml").write_text(render_over("segment/own_rooms", [*words, f"data.root={tmp_path / 'set'}"]))
    new, old = read_config(tmp_path / "own.yaml", ()), read_config(Path("segment/own_rooms"), ())
    for part, added in (("train", "voxel_sample"), ("evaluate", "voxel_sample")):
        stages, before = getattr(new.transforms, part), getattr(old.transforms, part)
        assert [stage for stage in stages if stage.name not in (added, "crop_points")] == [
            stage for stage in before if stage.name != "crop_points"
        ]
        (grid,) = (stage for stage in stages if stage.name == added)
        assert grid.arguments["size_m"] == 0.1
    assert grid.arguments["score_all"] is True
