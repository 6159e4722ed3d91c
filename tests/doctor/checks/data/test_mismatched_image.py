"""Pictures of other objects than the clouds beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.clouds.render.rendering import PreparedObjects, RenderSettings, Surface, render_set
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.workbench.check.checks.data.images import mismatched_image
from sightline.workbench.check.context import Context
from tests.data.clouds.cloud_writers import prepare_folder, write_folder
from tests.data.clouds.shapenet_render_writers import prepare, write_release
from tests.doctor.pairing import Pictured, make_pairs, make_pictured
from tests.doctor.planting import caught


class _Next(Pictured):
    """Each object has the picture of the next one, as where two lists are paired by their order."""

    def get_batch(self, keys: Any) -> dict[str, Any]:
        batch = super().get_batch(keys)
        images = [self.views.image(self.sample_name((key.index + 1) % len(self)), 0) for key in keys]
        return {**batch, "image": torch.stack([torch.from_numpy(image) for image in images])}


def on(built: TrainingSetup, kind: type[Pictured]) -> TrainingSetup:
    built.data.train.dataset.__class__ = kind  # type: ignore[assignment]
    return built


def found(built: TrainingSetup) -> list[Any]:
    return mismatched_image(Context(built, World()))


def test_healthy_runs(tmp_path: Path) -> None:
    assert found(make_pictured(tmp_path)) == []
    assert found(make_pairs(tmp_path)) == []  # without pictures


def test_the_picture_of_the_next_object(tmp_path: Path) -> None:
    finding = caught(on(make_pictured(tmp_path), _Next), "mismatched-image", "data.pairing")
    assert "16 of 16 looked at" in finding.summary
    own, whose = finding.evidence["foreign"][0]
    number = int(own.removeprefix("object_"))
    assert whose == f"object_{(number + 1) % 120}"
    assert f"the picture of {own} is of {whose}" in finding.measured


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_pictures_that_nobody_stored(tmp_path: Path, share: float) -> None:
    def edit(batch: dict[str, Any], keys: Any) -> dict[str, Any]:
        is_hit = torch.arange(len(keys)) < share * len(keys)
        return {**batch, "image": torch.where(is_hit[:, None, None, None], 255 - batch["image"], batch["image"])}

    (finding,) = found(make_pictured(tmp_path, edit))
    assert "is none of its own" in finding.measured
    assert f"{int(16 * share)} of 16" in finding.summary


def test_a_prepared_set_of_pairs(tmp_path: Path) -> None:
    """Real files: sound as they are read, and caught where rows of the store are taken one too far."""
    prepare(write_release(tmp_path / "in"), tmp_path / "set", size_px=8)
    data = f"data={{name: shapenet_render, root: '{tmp_path / 'set'}'}}"
    built = make_pairs(tmp_path, data, "train.batch_size=2", "model.points.num_neighbours=4")
    assert found(built) == []
    pictures = built.data.train.dataset.pictures  # type: ignore[attr-defined]
    pictures._rows = np.roll(pictures._rows, 1)
    (finding,) = found(built)
    assert finding.cause == "data.pairing"
    assert str(tmp_path / "set") in finding.expected


def prepared_solids(folder: Path, *, is_exchanged: bool) -> Path:
    """Balls and plates, prepared; where they are exchanged, every ball's name is on a plate, and the reverse."""
    write_folder(folder / "in", per_class=8, suffix=".npy", classes=("ball", "plate"))
    if is_exchanged:
        for number in range(8):
            names = [folder / "in" / kind / f"{kind}_{number:02d}.npy" for kind in ("ball", "plate")]
            held = [np.load(name) for name in names]
            for name, points in zip(names, reversed(held), strict=True):
                np.save(name, points)
    prepare_folder(folder / "in", folder / "set", num_points=256)
    return folder / "set"


@pytest.mark.parametrize("is_exchanged", [False, True])
def test_a_store_of_other_clouds_of_the_same_names(tmp_path: Path, is_exchanged: bool) -> None:
    """The store is sound, and so is every name: only the shapes tell. A rendering of the same set is not flagged."""
    healthy = prepared_solids(tmp_path / "first", is_exchanged=False)
    look = RenderSettings(num_views=4, size_px=24)
    render_set(PreparedObjects(healthy), tmp_path / "views", look=look, num_jobs=1, progress=lambda *told: None)
    read = prepared_solids(tmp_path / "second", is_exchanged=is_exchanged)
    data = f"data={{name: cloud_folder, root: '{read}', views: '{tmp_path / 'views'}'}}"
    built = make_pairs(tmp_path, data, "train.batch_size=2", "model.points.num_neighbours=4")
    if not is_exchanged:
        assert found(built) == []
        return
    (finding,) = found(built)
    assert finding.cause == "data.pairing"
    assert finding.severity == "error"
    assert "10 of 10 looked at" in finding.summary
    assert "sightline data render" in finding.action


class _AsMeshes(PreparedObjects):
    """Centred on their boxes, as meshes are, and `step` objects further on than their names say."""

    step = 0

    def read(self, split: str, index: int) -> Surface:
        points = super().read(split, (index + self.step) % len(self.names[split])).points
        points = points - (points.max(axis=0) + points.min(axis=0)) / 2
        return Surface(points / np.linalg.norm(points, axis=1).max())


@pytest.mark.parametrize("step", [0, 1])
def test_a_store_of_objects_that_look_alike_centred_otherwise(tmp_path: Path, step: int) -> None:
    """Boxes with an antenna: that clouds are centred on their means is no fault, other boxes are."""
    for number in range(20):
        generator = np.random.default_rng(number)
        points = generator.uniform(size=(2000, 3))
        points[np.arange(2000), generator.integers(3, size=2000)] = generator.integers(2, size=2000)
        points[:100] = generator.uniform(1, 2, size=(100, 1))  # an antenna, which moves the box and hardly the mean
        kind = tmp_path / "in" / ("crate", "trunk")[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        np.save(kind / f"box_{number:02d}.npy", points * generator.uniform(0.3, 1.0, size=3))
    prepare_folder(tmp_path / "in", tmp_path / "set", num_points=1024)
    objects = _AsMeshes(tmp_path / "set")
    objects.step = step
    look = RenderSettings(num_views=4, size_px=32)
    render_set(objects, tmp_path / "views", look=look, num_jobs=1, progress=lambda *told: None)
    data = f"data={{name: cloud_folder, root: '{tmp_path / 'set'}', views: '{tmp_path / 'views'}'}}"
    built = make_pairs(tmp_path, data, "train.batch_size=2", "model.points.num_neighbours=4")
    assert [finding.cause for finding in found(built)] == ["data.pairing"] * step
