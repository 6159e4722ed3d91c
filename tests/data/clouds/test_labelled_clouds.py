"""Normals and fractions on the sets that have them: the input widens, bits stay pure, the test part stays whole."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.data.clouds.cloud_preparation import EstimatedNormals
from sightline.data.clouds.modelnet import ModelNet40
from sightline.data.loading.batch_reader import stratified_subset
from sightline.data.synthetic.synthetic_shapes import SyntheticShapes
from sightline.errors import DataError
from sightline.geometry.surfaces import estimate_normals
from sightline.types import SampleKey
from tests.data.clouds.modelnet_writers import prepare, write_npz, write_text


def keys(*indices: int) -> list[SampleKey]:
    return [SampleKey(index, 0, 0) for index in indices]


@pytest.mark.parametrize(("normals", "width"), [("none", 3), ("file", 6), ("estimated", 6)])
def test_the_input_width_follows_the_normals(normals: str, width: int) -> None:
    shapes = SyntheticShapes(split="train", train_size=12, num_points=64, normals=normals)  # type: ignore[arg-type]
    assert shapes.info.facts["in_channels"] == width
    assert shapes.info.features == (("normals",) if width == 6 else ())


def test_estimated_normals_of_solids_are_near_the_exact_ones() -> None:
    """Up to the sign, which the estimate cannot know; edges are where it is off. The median is far from them."""
    exact = SyntheticShapes(split="train", train_size=12, num_points=512, normals="file").get_batch(keys(*range(12)))
    found = SyntheticShapes(split="train", train_size=12, num_points=512, normals="estimated")
    batch = found.get_batch(keys(*range(12)))
    assert torch.equal(batch["points"], exact["points"])
    cosine = (batch["normals"] * exact["normals"]).sum(dim=2).abs()
    assert (
        cosine.median() > 0.97
    )  # a plane through 16 of 512 points of a unit ball spans 0.35 rad: cos(0.35 / 2) = 0.98
    assert torch.equal(found[SampleKey(7, 3, 1)]["normals"], batch["normals"][7])
    other = pickle.loads(pickle.dumps(found))
    assert torch.equal(other.get_batch(keys(7))["normals"][0], batch["normals"][7])


def test_a_set_too_large_to_remember_gives_the_same_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    points = SyntheticShapes(split="test", test_size=6, num_points=64).get_batch(keys(4, 1, 4))["points"].numpy()
    index = np.array([4, 1, 4])
    small = EstimatedNormals(6, 64, str).estimate(index, points)
    monkeypatch.setattr("sightline.data.clouds.cloud_preparation._MAX_CACHE_BYTES", 0)
    np.testing.assert_array_equal(EstimatedNormals(6, 64, str).estimate(index, points), small)
    np.testing.assert_array_equal(small[1], estimate_normals(torch.from_numpy(points[1:2]))[0].numpy())


def test_a_cloud_without_normals_is_named() -> None:
    line = np.linspace(0, 1, 32, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    with pytest.raises(DataError, match=r"^lamp_3: its normals cannot be estimated .*set normals: none"):
        EstimatedNormals(9, 32, lambda index: f"lamp_{index}").estimate(np.array([3]), line[None])


def test_modelnet_trains_on_a_fraction(tmp_path: Path) -> None:
    """The small set: three airplanes, a bed, two night stands."""
    prepare(write_text(tmp_path / "in"), tmp_path / "set")
    whole, part, test = (
        ModelNet40(split=split, root=str(tmp_path / "set"), fraction=fraction, normals="file")
        for split, fraction in (("train", 1.0), ("train", 0.5), ("test", 0.5))
    )
    assert [len(part), len(whole), len(test)] == [4, 6, 2]
    assert sorted(np.bincount(part.strata)[[0, 2, 23]].tolist()) == [1, 1, 2]
    assert part.info.facts["class_counts"] == tuple(np.bincount(part.strata, minlength=40).tolist())
    assert part.info.split_sizes == {"train": 4, "test": 2}
    names = [whole.sample_name(index) for index in range(6)]
    for index in range(4):
        twin = whole[SampleKey(names.index(part.sample_name(index)), 0, 0)]
        for name, value in part[SampleKey(index, 0, 0)].items():
            assert torch.equal(value, twin[name])


def test_a_release_without_normals_says_what_to_do(tmp_path: Path) -> None:
    prepare(write_npz(tmp_path / "in.npz"), tmp_path / "set")
    with pytest.raises(DataError, match=r"holds no normals \(layout npz\); set normals: estimated or none"):
        ModelNet40(split="train", root=str(tmp_path / "set"), normals="file")


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999, 1.0])
def test_a_fraction_of_every_stratum(fraction: float) -> None:
    """Counts worked out apart from the code: round to the nearest, halves to even, at least one."""
    strata = np.repeat([5, 2, 9], [1, 15, 100])
    taken = stratified_subset(strata, fraction, seed=3)
    assert (np.diff(taken) > 0).all()
    for stratum, size in ((5, 1), (2, 15), (9, 100)):
        assert (strata[taken] == stratum).sum() == max(1, np.rint(fraction * size))
    assert len(np.unique([stratified_subset(strata, 0.5, seed=s).tobytes() for s in range(20)])) == 20
