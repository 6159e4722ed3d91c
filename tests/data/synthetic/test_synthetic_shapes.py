"""The embedded data set: exact geometry, purity, disjoint splits, counts, and a task worth learning."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial import cKDTree
from sklearn.ensemble import RandomForestClassifier

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.contract.errors import ConfigError
from sightline.contract.registry import data
from sightline.contract.types import Batch, ComponentConfig, SampleKey
from tests.cases import run_each
from tests.limits import count_calls

NAMES = SyntheticShapes(split="train").info.facts["class_names"]
PARTS = SyntheticShapes(split="train").info.facts["part_names"]
# float32 coordinates up to 1, and the products of two of them
BOUND = 8 * np.finfo(np.float32).eps


def keys(index: Sequence[int], *, epoch: int = 0, seed: int = 0) -> list[SampleKey]:
    return [SampleKey(int(i), epoch, seed) for i in index]


def clouds_of(name: str, *, num_points: int = 2048, count: int = 3) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Points, normals and parts of the first samples of a class, in float64."""
    shapes = SyntheticShapes(split="train", num_points=num_points)
    batch = shapes.get_batch(keys(np.flatnonzero(shapes.strata == NAMES.index(name))[:count]))
    fields = (batch["points"].double().numpy(), batch["normals"].double().numpy(), batch["part"].numpy())
    return list(zip(*fields, strict=True))


def of_part(cloud: tuple[np.ndarray, np.ndarray, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    points, normals, part = cloud
    chosen = part == PARTS.index(name)
    return points[chosen], normals[chosen]


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_the_ring_of_a_stand_is_a_torus() -> None:
    for cloud in clouds_of("ring_stand"):
        points, normals = of_part(cloud, "ring_stand_ring")

        def off_surface(solution: np.ndarray, points: np.ndarray = points) -> np.ndarray:
            x, y, z, ring, tube = solution
            from_ring = np.hypot(points[:, 0] - x, points[:, 2] - z) - ring
            return np.hypot(from_ring, points[:, 1] - y) - tube

        middle = (points.max(0) + points.min(0)) / 2
        start = [*middle, 0.4, np.ptp(points[:, 1]) / 2]
        solution = least_squares(off_surface, start, xtol=1e-15, ftol=1e-15, gtol=1e-15).x
        assert np.abs(off_surface(solution)).max() < BOUND
        # the gradient of the distance is the normal; central differences err by h^2 / tube^2
        step = 1e-5
        gradient = [off_surface(solution, points + d) - off_surface(solution, points - d) for d in step * np.eye(3)]
        assert np.abs(np.stack(gradient, 1) / (2 * step) - normals).max() < BOUND / solution[4]


@run_each("name", NAMES)
def test_normals_are_unit_and_perpendicular_to_chords(name: str) -> None:
    """On a circle, sphere or plane a chord is perpendicular to the sum of the normals at its ends, exactly.

    On a cone it misses by |dr| |dn|^2 / (2 s), s the normal's share away from the axis: above 0.06 for the flattest
    one, a goblet's foot. On a torus it misses by R (1 - cos a) |d cos v|, where the arc a is at most length / (R - r)
    and |dv| at most |dn|: by length^2 |dn| R / (2 (R - r)^2), below 10 length^2 |dn| for the smallest, a mug's handle.
    """
    for cloud in clouds_of(name, num_points=4096, count=2):
        assert np.abs(np.linalg.norm(cloud[1], axis=1) - 1).max() < BOUND
        for part in np.unique(cloud[2]):
            points, normals = of_part(cloud, PARTS[part])
            length, near = cKDTree(points).query(points, k=5)
            chord = points[near[:, 1:]] - points[:, None]
            turned = ((normals[near[:, 1:]] - normals[:, None]) ** 2).sum(-1)
            miss = np.abs((chord * (normals[near[:, 1:]] + normals[:, None])).sum(-1))
            length = length[:, 1:]
            is_smooth = (turned < 0.05) & (length < 0.05)
            allowed = length * turned / (2 * 0.06) + 10 * length**2 * np.sqrt(turned) + BOUND
            assert is_smooth.mean() > 0.1
            assert (miss <= allowed)[is_smooth].all()


@run_each("name", NAMES)
def test_flat_and_round_walls_face_outwards(name: str) -> None:
    """The lowest points look down or sideways, the highest up or sideways: nothing is inside out there."""
    for points, normals, _ in clouds_of(name):
        height = points[:, 2]
        assert normals[height < height.min() + 1e-3][:, 2].min() < 0.05
        assert (normals[height > height.max() - 1e-6][:, 2] > -0.05).all()


def test_every_cloud_fills_the_unit_sphere_and_shows_all_its_parts() -> None:
    shapes = SyntheticShapes(split="test")
    batch = shapes.get_batch(keys(range(240)))
    points, facts = batch["points"], shapes.info.facts
    assert points.double().mean(1).abs().max() < BOUND
    assert (points.double().norm(dim=-1).amax(1) - 1).abs().max() < BOUND
    assert points.abs().max() <= 1
    for part, label in zip(batch["part"], batch["label"], strict=True):
        assert tuple(part.unique().tolist()) == facts["parts_of_category"][label]
        # the smallest part, a grip's or a pole's or a handle's, has 1 % of the area or more in all but rare solids
        assert part.bincount()[part.unique()].min() >= 3


# --- purity -----------------------------------------------------------------------------------------------------------


def assert_same(first: Batch, second: Batch) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_batches_of_any_size_and_order_hold_the_same_samples(noise: float) -> None:
    index = np.random.default_rng(0).permutation(480)[:70]
    together = SyntheticShapes(split="test", num_points=200, noise=noise).get_batch(keys(index))
    assert together["sample_index"].tolist() == index.tolist()
    for shapes in (SyntheticShapes(split="test", num_points=200, noise=noise) for _ in range(2)):
        for row in np.random.default_rng(1).permutation(len(index))[:25]:
            sample = shapes[SampleKey(int(index[row]), epoch=5, seed=99)]
            assert set(sample) == set(shapes.info.fields)
            assert all(torch.equal(sample[name], together[name][row]) for name in sample)


def test_remembered_clouds_are_those_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = SyntheticShapes(split="train", num_points=100)
    first = shapes.get_batch(keys(range(40)))
    first_bits = {name: field.clone() for name, field in first.items()}
    for field in first.values():
        field.zero_()
    assert_same(shapes.get_batch(keys(range(40))), first_bits)
    assert_same(pickle.loads(pickle.dumps(shapes)).get_batch(keys(range(40))), first_bits)
    monkeypatch.setattr("sightline.areas.clouds.sets.synthetic_shapes._MAX_CACHE_BYTES", 0)
    assert_same(SyntheticShapes(split="train", num_points=100).get_batch(keys(range(40))), first_bits)


def test_a_key_twice_in_a_batch_gives_the_sample_twice() -> None:
    batch = SyntheticShapes(split="train", num_points=50).get_batch(keys([7, 3, 7]))
    assert torch.equal(batch["points"][0], batch["points"][2])
    assert not torch.equal(batch["points"][0], batch["points"][1])


PINNED_DIGESTS = ["be57617150ba191f", "bd92dbcd85e49eec"]
PINNED_FLOATS = {
    "train": [0.1281494, 0.0824375, 0.1734761, 0.397677, 0.4535769, 0.4171454],
    "test": [0.1283617, 0.0674812, 0.1882766, 0.4185903, 0.4691519, 0.4084015],
}


def test_a_pinned_hash_holds_the_integers_and_rounded_means_the_floats() -> None:
    """An alarm for any change of the content, on any platform: labels and parts exactly, floats to 1e-6."""
    digests = []
    for split in ("train", "test"):
        batch = SyntheticShapes(split=split).get_batch(keys(range(100)))
        digest = hashlib.sha256()
        for name in ("label", "part"):
            digest.update(batch[name].numpy().astype("<i8").tobytes())
        digests.append(digest.hexdigest()[:16])
        spread = batch["points"].double().pow(2).mean((0, 1)).tolist()
        tilt = batch["normals"].double().abs().mean((0, 1)).tolist()
        assert [*spread, *tilt] == pytest.approx(PINNED_FLOATS[split], abs=1e-6)
    assert digests == PINNED_DIGESTS


def test_splits_seeds_and_indices_share_no_cloud() -> None:
    def signatures(split: str, data_seed: int) -> set[bytes]:
        shapes = SyntheticShapes(split=split, data_seed=data_seed, train_size=480, num_points=8)
        return {points.numpy().tobytes() for points in shapes.get_batch(keys(range(480)))["points"]}

    found = [signatures(split, seed) for split in ("train", "test") for seed in (0, 1)]
    assert len(set().union(*found)) == 4 * 480


def test_noise_moves_points_and_keeps_the_normals_of_the_surface() -> None:
    clean, noisy = (SyntheticShapes(split="train", noise=noise).get_batch(keys(range(30))) for noise in (0.0, 0.05))
    for name in ("normals", "part", "label"):
        assert torch.equal(clean[name], noisy[name])
    assert noisy["points"].abs().max() <= 1
    # The second scaling shrinks each cloud by one factor a; the residual to a * clean is normal with spread a * 0.05.
    for before, after in zip(clean["points"].double(), noisy["points"].double(), strict=True):
        factor = (before * after).sum() / (before * before).sum()
        spread = ((after - factor * before) / factor).std()
        # spread of 3,072 numbers: 5 standard errors are 6.4 %; the fit of a and of the mean takes 4 of them away;
        # a's own error is below 0.05 / sqrt(600) = 0.2 %
        assert abs(spread / 0.05 - 1) < 0.07


# --- fewer of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["class", "parts"])
def test_a_fraction_holds_the_same_clouds_and_as_many_of_each_class(target: str) -> None:
    """60 of each of twelve classes; a tenth is 6, and each of its clouds is one of the whole part, label and all."""
    whole = SyntheticShapes(split="train", train_size=720, num_points=16, target=target)  # type: ignore[arg-type]
    tenth = SyntheticShapes(split="train", train_size=720, num_points=16, target=target, fraction=0.1)  # type: ignore[arg-type]
    assert np.bincount(tenth.strata).tolist() == [6] * 12
    assert tenth.info.split_sizes == {"train": 72, "test": 480}
    everything = whole.get_batch(keys(range(720)))["points"].numpy()
    row_of = {cloud.tobytes(): row for row, cloud in enumerate(everything)}
    batch = tenth.get_batch(keys(range(72)))
    rows = [row_of[cloud.tobytes()] for cloud in batch["points"].numpy()]
    assert whole.strata[rows].tolist() == tenth.strata.tolist()
    assert [whole.sample_name(row) for row in rows] == [tenth.sample_name(index) for index in range(72)]
    assert batch["sample_index"].tolist() == list(range(72))
    labels = batch["label"] if target == "class" else batch["category"]
    assert labels.tolist() == tenth.strata.tolist()


# --- what it says of itself -------------------------------------------------------------------------------------------


def test_facts_agree_with_the_samples() -> None:
    shapes = data.build(ComponentConfig("synthetic_shapes", {"num_points": 64}), facts={"split": "train"})
    facts, batch = shapes.info.facts, shapes.get_batch(keys(range(len(shapes))))
    assert facts["class_counts"] == (160,) * 12 == tuple(torch.bincount(batch["label"]).tolist())
    assert np.array_equal(shapes.strata, batch["label"].numpy())
    assert facts["num_classes"] == len(facts["class_names"]) == len(set(facts["class_names"])) == 12
    assert facts["num_parts"] == len(facts["part_names"]) == len(set(facts["part_names"])) == 30
    assert sum(facts["parts_of_category"], ()) == tuple(range(30))
    for name, parts in zip(facts["class_names"], facts["parts_of_category"], strict=True):
        assert all(facts["part_names"][part].startswith(f"{name}_") for part in parts)
    assert shapes.info.split_sizes == {"train": 1920, "test": 480}
    assert set(SyntheticShapes.card()) == {"layout", "obtain", "terms"}
    for name, field in shapes.info.fields.items():
        assert str(batch[name].dtype) == f"torch.{field.dtype}"
        assert tuple(batch[name].shape[1:]) == tuple(int(size) for size in field.shape.split())
        assert batch[name].min() >= field.low
        assert batch[name].max() <= field.high


def test_class_counts_are_apportioned() -> None:
    # 100 over 12 classes: 8 each, and the 4 left over go to the first ones
    assert SyntheticShapes(split="train", train_size=100).info.facts["class_counts"] == (9,) * 4 + (8,) * 8
    counts = SyntheticShapes(split="train", train_size=4000, imbalance=16.0).info.facts["class_counts"]
    # a geometric progression with ratio 16**(1/11) between neighbours, each count rounded by less than one
    ideal = 16.0 ** -(np.arange(12) / 11)
    assert np.abs(np.array(counts) - 4000 * ideal / ideal.sum()).max() < 1
    assert sum(counts) == 4000
    assert sum(SyntheticShapes(split="test", test_size=5).info.facts["class_counts"]) == 5


def test_wrong_split_and_index_are_refused() -> None:
    with pytest.raises(ConfigError, match="no split 'validation'; it has train and test"):
        SyntheticShapes(split="validation")
    shapes = SyntheticShapes(split="test")
    for index in (480, -1):
        with pytest.raises(IndexError, match=f"sample {index} of 'test', which has 480"):
            shapes.get_batch(keys([0, index]))


def test_opening_makes_no_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """And calls no more for a large set than for a small one."""
    monkeypatch.setattr(SyntheticShapes, "_make_chunk", lambda *_: pytest.fail("a cloud is made"))
    few, many = (
        count_calls(lambda size=size: SyntheticShapes(split="train", train_size=size)) for size in (1200, 12_000)
    )
    assert many <= few + 100


def test_the_classes_can_be_learned_but_not_from_the_size_of_the_box() -> None:
    histograms, sizes, labels = {}, {}, {}
    for split in ("train", "test"):
        batch = SyntheticShapes(split=split).get_batch(keys(range(360)))
        points = batch["points"].numpy()
        cell = (np.clip((points + 1) / 2, 0, 0.999) * 6).astype(int) @ [36, 6, 1]
        histograms[split] = np.stack([np.bincount(row, minlength=216) for row in cell])
        sizes[split] = np.ptp(points, axis=1)
        labels[split] = batch["label"].numpy()

    def accuracy(features: dict[str, np.ndarray]) -> float:
        forest = RandomForestClassifier(40, random_state=0).fit(features["train"], labels["train"])
        return float(forest.score(features["test"], labels["test"]))

    by_shape, by_size = accuracy(histograms), accuracy(sizes)
    # chance is 1/12; the standard error of an accuracy over 360 samples is at most 2.6 %
    assert by_shape > 0.85
    assert by_size < 0.75
