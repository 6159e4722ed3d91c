"""Voxels and heat maps that disagree with the frame and its joints, each way of it named."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.ops.heat_maps import gaussian_heatmaps
from sightline.ops.voxels import CubePlacement
from sightline.workbench.check.checks.data.misplaced_targets import measure_widths, misplaced_heatmap, misplaced_volume
from sightline.workbench.check.context import Context
from tests.doctor.planting import assert_complete
from tests.doctor.posing import make_pose, with_transform
from tests.planted.pose import undo_augmentation


def found(built: TrainingSetup) -> list[Finding]:
    context = Context(built, World())
    return [*misplaced_volume(context), *misplaced_heatmap(context)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> TrainingSetup:
    return make_pose(tmp_path_factory.mktemp("pose"))


class _Voxelize:
    """`voxelize` with something done to what it is given or to what it gives."""

    adds: Any

    def __init__(
        self,
        inner: Any,
        *,
        before: Callable[[CubePlacement], CubePlacement] = lambda p: p,
        after: Callable[[Tensor], Tensor] = lambda v: v,
        millimetres: float = 1.0,
    ) -> None:
        self.inner, self.before, self.after, self.millimetres = inner, before, after, millimetres
        self.adds = inner.adds

    def __call__(self, draws: Any, *, depth: Tensor, camera: Tensor, placement: Tensor) -> dict[str, Tensor]:
        rows = self.before(CubePlacement.from_rows(placement)).to_rows()
        given = self.inner(draws, depth=depth * self.millimetres, camera=camera, placement=rows)
        return {"volume": self.after(given["volume"])}


class _Draw:
    """`draw_heatmaps`, likewise."""

    def __init__(
        self,
        inner: Any,
        *,
        before: Callable[[CubePlacement], CubePlacement] = lambda p: p,
        after: Callable[[Tensor], Tensor] = lambda v: v,
    ) -> None:
        self.inner, self.before, self.after = inner, before, after
        self.adds = inner.adds

    def __call__(self, draws: Any, *, joints: Tensor, visible: Tensor, placement: Tensor) -> dict[str, Tensor]:
        rows = self.before(CubePlacement.from_rows(placement)).to_rows()
        return {"heatmaps": self.after(self.inner(draws, joints=joints, visible=visible, placement=rows)["heatmaps"])}


def about_another_centre(placement: CubePlacement) -> CubePlacement:
    moved = torch.linspace(-30, 30, 3 * len(placement), dtype=torch.float64).view(-1, 3)
    return dataclasses.replace(placement, reference_mm=placement.reference_mm + moved)


def about_a_moved_centre(placement: CubePlacement) -> CubePlacement:
    return dataclasses.replace(placement, reference_mm=placement.reference_mm + torch.tensor([20.0, 0.0, 0.0]))


def inverse_scale(placement: CubePlacement) -> CubePlacement:
    return dataclasses.replace(placement, scale=1 / placement.scale)


VOLUMES: dict[str, tuple[dict[str, Any], str, str]] = {
    "axes": ({"after": lambda v: v.transpose(-1, -3)}, "data.layout", "z, y, x"),
    "not varied": ({"before": undo_augmentation}, "data.augment_target_mismatch", "not augmented"),
    "inverse scale": ({"before": inverse_scale}, "data.augment_target_mismatch", "inverse"),
    "metres": ({"millimetres": 1e-3}, "data.normalisation", "metres"),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_other_voxels_are_named(built: TrainingSetup, name: str) -> None:
    arguments, cause, told = VOLUMES[name]
    (finding,) = found(with_transform(built, "voxelize", lambda inner: _Voxelize(inner, **arguments)))
    assert (finding.code, finding.severity, finding.cause) == ("misplaced-volume", "error", cause)
    assert told in finding.summary
    assert_complete(finding)


def test_voxels_about_another_centre_are_named(tmp_path: Path) -> None:
    """Cubes that are not varied: the centre lies 4.4 voxels off in every sample."""
    plain = "transforms.train=[{name: place_cube, size: 44}, {name: voxelize}, {name: draw_heatmaps}]"
    wrong = with_transform(
        make_pose(tmp_path, plain), "voxelize", lambda inner: _Voxelize(inner, before=about_a_moved_centre)
    )
    finding = next(f for f in found(wrong) if f.code == "misplaced-volume")
    assert finding.severity == "error"
    assert finding.cause in ("data.centre", "data.projection")


HEATMAPS: dict[str, tuple[dict[str, Any], str, str]] = {
    "axes": ({"after": lambda h: h.transpose(-1, -3)}, "data.layout", "z, y, x"),
    "two axes": ({"after": lambda h: h.transpose(-2, -3)}, "data.layout", "y, x, z"),
    "not varied": ({"before": undo_augmentation}, "data.augment_target_mismatch", "do not follow"),
    "inverse scale": ({"before": inverse_scale}, "data.augment_target_mismatch", "inverse"),
    "half a cell": (
        {"before": lambda p: dataclasses.replace(p, shift=p.shift - 1.0)},
        "data.target_encoding",
        "+0.50, +0.50, +0.50",
    ),
    "a centre": ({"before": about_another_centre}, "data.centre", "in every sample"),
}


@pytest.mark.parametrize("name", HEATMAPS)
def test_other_targets_are_named(built: TrainingSetup, name: str) -> None:
    arguments, cause, told = HEATMAPS[name]
    (finding,) = found(with_transform(built, "draw_heatmaps", lambda inner: _Draw(inner, **arguments)))
    assert (finding.code, finding.severity, finding.cause) == ("misplaced-heatmap", "error", cause)
    assert told in finding.summary
    assert_complete(finding)


class _WrongSigma:
    """A target of the right place whose exponent lacks the 2: a deviation of sigma / sqrt(2); or twice as wide."""

    def __init__(self, inner: Any, factor: float) -> None:
        self.inner, self.factor, self.adds = type(inner)(sigma=inner.sigma * factor), factor, inner.adds

    def __call__(self, draws: Any, *, joints: Tensor, visible: Tensor, placement: Tensor) -> dict[str, Tensor]:
        return self.inner(draws, joints=joints, visible=visible, placement=placement)


@pytest.mark.parametrize("factor", [2.0, 0.5, 2**-0.5])
def test_another_width_is_named(built: TrainingSetup, factor: float) -> None:
    (finding,) = found(with_transform(built, "draw_heatmaps", lambda inner: _WrongSigma(inner, factor)))
    assert (finding.code, finding.cause) == ("misplaced-heatmap", "data.target_encoding")
    assert finding.evidence["measured_cells"] == pytest.approx(1.7 * factor, rel=0.05)
    assert_complete(finding)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data.reference={name: truth}",),
        ("transforms.train=[{name: place_cube, size: 32, axes: zyx}, {name: voxelize}, {name: draw_heatmaps}]",),
        ("transforms.train=[{name: place_cube, size: 44, compat: release}, {name: voxelize}, {name: draw_heatmaps}]",),
        ("transforms.train=[{name: place_cube, size: 44}, {name: voxelize}, {name: draw_heatmaps, sigma: 1.2}]",),
        ("transforms.train=[{name: place_cube, size: 44}, {name: voxelize}, {name: draw_heatmaps, targets: one_hot}]",),
    ],
)
def test_right_ones_are_not_flagged(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    assert found(make_pose(tmp_path, *overrides)) == []


@pytest.mark.parametrize("sigma", [3.4, 0.85])
def test_maps_twice_or_half_as_wide_as_published_get_a_warning(tmp_path: Path, sigma: float) -> None:
    """Whether the recipe asks for them or a transform of one's own, whose width no recipe states, draws them."""
    words = [f"transforms.{part}.2.sigma={sigma}" for part in ("train", "evaluate")]
    (finding,) = found(make_pose(tmp_path, *words))
    assert (finding.code, finding.severity, finding.cause) == ("misplaced-heatmap", "warning", "data.target_encoding")
    assert finding.summary.endswith("times as wide as the published ones")
    assert finding.evidence["measured_cells"] == pytest.approx(sigma, rel=0.05)
    assert_complete(finding)
    own = make_pose(tmp_path, *words)
    steps = own.config.transforms
    renamed = [
        dataclasses.replace(each, name="own_maps") if each.name == "draw_heatmaps" else each for each in steps.train
    ]
    config = dataclasses.replace(own.config, transforms=dataclasses.replace(steps, train=tuple(renamed)))
    (finding,) = found(dataclasses.replace(own, config=config))
    assert finding.severity == "warning"


def test_width_is_read_from_any_place_within_a_cell() -> None:
    joints = torch.rand(5, 3, 3, dtype=torch.float64) * 2 + 11
    for sigma in (1.2, 1.7, 2.0):
        maps = gaussian_heatmaps(joints, cells=24, sigma=sigma, dtype=torch.float64)
        assert (measure_widths(maps) / sigma - 1).abs().max() < 0.01


# --- over seeds -------------------------------------------------------------------------------------------------------

WIDTHS = {
    "twice as wide": 3.4,
    "half as wide": 0.85,
    "published": 1.7,
    "a quarter wider": 2.1,
    "a quarter narrower": 1.36,
}


def is_flagged(folder: Path, sigma: float, size: int, seed: int) -> bool:
    """Whether maps of this width are reported, of hands of another seed, in cubes of this size."""
    parts = ("train", "evaluate")
    words = [f"transforms.{part}.{key}" for part in parts for key in (f"0.size={size}", f"2.sigma={sigma}")]
    context = Context(make_pose(folder, *words, f"seed={seed}", f"data.data_seed={seed}"), World())
    return bool(misplaced_heatmap(context))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for name, sigma in WIDTHS.items():
            for size in (44, 88):
                count = sum(is_flagged(Path(place), sigma, size, seed) for seed in range(10))
                sys.stdout.write(f"| {name} | {sigma} | {size} | {count} |\n")
                sys.stdout.flush()
