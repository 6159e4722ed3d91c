"""The embedded scenes: exact ground truth, purity, disjoint splits, sizes, and pinned bits."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from sightline.areas.scenes.sets.s3dis_files import CLASS_NAMES, CLUTTER, ORDERS
from sightline.areas.scenes.sets.synthetic_rooms import SyntheticRooms, furnish_room
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import Sample, SampleKey
from sightline.store.loading.batch_reader import BatchReader

EPS = np.finfo(np.float32).eps
LABEL = {name: label for label, name in enumerate(CLASS_NAMES)}


def room(index: int, **arguments: object) -> Sample:
    return SyntheticRooms(split="train", **arguments)[SampleKey(index, 0, 0)]  # type: ignore[arg-type]


def of_class(sample: Sample, name: str) -> np.ndarray:
    return sample["points"][sample["label"] == LABEL[name]].double().numpy()


def layout(index: int) -> np.ndarray:
    """The size of a training room, from the layout alone."""
    return furnish_room(Draws.for_samples([SampleKey(index, 0, 0)]).stream("layout")).size


def test_both_orders_name_the_same_thirteen_classes() -> None:
    assert len(CLASS_NAMES) == 13
    assert sorted(ORDERS["A"]) == sorted(ORDERS["B"]) == sorted(set(CLASS_NAMES))
    assert [name for a, name in zip(ORDERS["A"], ORDERS["B"], strict=True) if a != name] == [
        *("chair", "table", "bookcase", "sofa")
    ]
    assert CLASS_NAMES[CLUTTER] == "clutter"


@pytest.mark.parametrize("index", range(4))
def test_bare_surfaces_lie_where_the_room_ends(index: int) -> None:
    sample, size = room(index, noise_m=0.0), layout(index)
    bound = 8 * EPS * size.max()
    assert np.abs(of_class(sample, "floor")[:, 2]).max() < bound
    assert np.abs(of_class(sample, "ceiling")[:, 2] - size[2]).max() < bound
    walls = of_class(sample, "wall")
    from_wall = np.minimum(np.abs(walls[:, :2]), np.abs(walls[:, :2] - size[:2])).min(axis=1)
    assert from_wall.max() < bound
    for name in ("column", "beam"):
        inside = of_class(sample, name)
        assert ((inside >= -bound) & (inside <= size + bound)).all()


@pytest.mark.parametrize("index", range(4))
def test_openings_leave_no_wall_behind_them(index: int) -> None:
    """Seen along the wall's normal, no point of a wall lies within a door's or a window's outline or a board's."""
    sample = room(index, noise_m=0.0, points_per_m2=400.0)
    size, walls = layout(index), of_class(sample, "wall")
    num_checked = 0
    for name in ("door", "board"):
        things = of_class(sample, name)
        if not len(things):
            continue
        # all rooms have one door and at most one board: which wall it is at follows from where it is thin
        normal = int(np.ptp(things[:, :2], axis=0).argmin())
        along = 1 - normal
        low, high = things[:, [along, 2]].min(0) + 0.08, things[:, [along, 2]].max(0) - 0.08
        near = np.abs(walls[:, normal] - things[:, normal].mean()) < 0.3
        inside = ((walls[:, [along, 2]] > low) & (walls[:, [along, 2]] < high)).all(axis=1)
        assert near.any()
        assert not (near & inside).any()
        num_checked += 1
    assert num_checked
    assert (of_class(sample, "window")[:, 2] < size[2]).all()


def test_points_are_spread_evenly() -> None:
    """On a square metre of the bare ceiling lie `points_per_m2` points: a Poisson process, 5 deviations."""
    sample, size = room(0, points_per_m2=500.0, noise_m=0.0), layout(0)
    ceiling = of_class(sample, "ceiling")
    counts, _, _ = np.histogram2d(
        ceiling[:, 0], ceiling[:, 1], bins=[np.arange(0, int(size[0]) + 1), np.arange(0, int(size[1]) + 1)]
    )
    assert np.abs(counts.max() - 500) < 5 * np.sqrt(500)
    assert abs(np.median(counts) - 500) < 5 * np.sqrt(500)
    inner = ceiling[((ceiling[:, :2] > 0.3) & (ceiling[:, :2] < size[:2] - 0.3)).all(axis=1)]
    distances = cKDTree(ceiling).query(inner, k=2)[0][:, 1]
    # away from edges the nearest of a Poisson process of density d is 1 / (2 sqrt(d)) away on average, with a relative
    # deviation of 0.52 (Clark and Evans 1954); neighbours share distances, hence twice the standard error
    assert abs(distances.mean() * 2 * np.sqrt(500) - 1) < 5 * 2 * 0.52 / np.sqrt(len(inner))


def test_every_class_occurs_and_rooms_differ_in_size() -> None:
    counts = np.stack([np.bincount(room(i)["label"], minlength=13) for i in range(24)])
    assert (counts.sum(0) > 0).all()
    for name in ("ceiling", "floor", "wall", "door", "window", "table", "chair", "bookcase"):
        assert (counts[:, LABEL[name]] > 0).mean() > 0.9, name
    sizes = counts.sum(1)
    assert len(set(sizes.tolist())) > 20
    assert sizes.max() < 2.5 * sizes.min()


def test_colours_tell_something_and_not_all() -> None:
    samples = [room(i) for i in range(16)]
    colours = np.concatenate([s["colours"].numpy() for s in samples])
    labels = np.concatenate([s["label"].numpy() for s in samples])
    assert colours.dtype == np.float32
    assert colours.min() >= 0
    assert colours.max() <= 1
    means = np.stack([colours[labels == label].mean(0) for label in range(13)])
    nearest = ((colours[:, None] - means) ** 2).sum(-1).argmin(1)
    recall = np.mean([(nearest[labels == label] == label).mean() for label in range(13)])
    assert 1.5 / 13 < recall < 0.5, "above chance, far from solved by colour alone"


def test_a_room_is_a_pure_function_of_seed_split_and_index() -> None:
    rooms = SyntheticRooms(split="train")
    first = rooms[SampleKey(3, 0, 0)]
    first["points"].zero_()
    again, copied = rooms[SampleKey(3, 7, 9)], pickle.loads(pickle.dumps(rooms))[SampleKey(3, 0, 0)]
    alone = room(3)
    for other in (again, copied):
        assert all(torch.equal(other[name], alone[name]) for name in alone)
    assert not torch.equal(room(3, data_seed=1)["label"], alone["label"])
    test = SyntheticRooms(split="test")[SampleKey(3, 0, 0)]
    assert len(test["label"]) != len(alone["label"])
    longer = SyntheticRooms(split="train", train_size=500)[SampleKey(3, 0, 0)]
    assert torch.equal(longer["points"], alone["points"]), "more rooms leave the first ones as they are"


def test_pinned_bits() -> None:
    """Labels are integers of exact arithmetic; coordinates are pinned to a tenth of a millimetre."""
    digest = hashlib.sha256()
    for index in (0, 1):
        sample = room(index)
        digest.update(sample["label"].numpy().astype("<i8").tobytes())
        digest.update(np.floor(sample["points"].double().numpy() * 1e4 + 0.5).astype("<i8")[::50].tobytes())
    assert digest.hexdigest()[:16] == "6508525ffabfd8fb"


def test_batches_are_ragged_and_labelled_as_promised() -> None:
    rooms = SyntheticRooms(split="test", test_size=3)
    keys = [SampleKey(i, 0, 0) for i in range(3)]
    batch = BatchReader(rooms)(keys)
    sizes = [len(rooms[key]["label"]) for key in keys]
    assert batch["offsets"].tolist() == [0, *np.cumsum(sizes).tolist()]
    assert batch["features"].shape == (sum(sizes), 3)
    assert torch.equal(batch["features"], batch["colours"])
    assert rooms.info.facts["in_channels"] == 6
    plain = SyntheticRooms(split="test", test_size=3, colours=False)
    assert plain.info.facts["in_channels"] == 3
    assert "features" not in BatchReader(plain)(keys)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no split 'validation'"):
        SyntheticRooms(split="validation")
    with pytest.raises(ConfigError, match="points_per_m2 1e\\+09 makes"):
        room(0, points_per_m2=1e9)
    with pytest.raises(IndexError, match="sample 40 of 'test', which has 40"):
        SyntheticRooms(split="test")[SampleKey(40, 0, 0)]
