"""What all tests of checks share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sightline.areas.clouds.sets import synthetic_shapes
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.detect.sets.synthetic_crowds import Scene, SyntheticCrowds
from sightline.areas.scans.sets.synthetic_lidar import Scan, SyntheticLidar


@pytest.fixture(scope="session", autouse=True)
def _clouds_are_made_once() -> Iterator[None]:
    """Hundreds of small runs are on the same clouds, a fifth of the work of a test: each is made for the first one."""
    made: dict[tuple[object, ...], synthetic_shapes._CloudCache] = {}
    own = SyntheticShapes._get_clouds

    def remembered(dataset: SyntheticShapes, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = dataset._labels
        if dataset._cache is None and len(labels) * dataset._num_points <= 2**14:
            key = (dataset._split, dataset._num_points, dataset._noise, dataset._data_seed, labels.tobytes())
            if key not in made:
                made[key] = synthetic_shapes._CloudCache(len(labels), dataset._num_points)
            dataset._cache = made[key]
        return own(dataset, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SyntheticShapes, "_get_clouds", remembered)
        yield


@pytest.fixture(scope="session", autouse=True)
def _streets_are_cast_once() -> Iterator[None]:
    """The same for the scans of a quarter of a thousand columns or fewer; nobody can write into them."""
    made: dict[tuple[object, ...], Scan] = {}
    own = SyntheticLidar.scan

    def remembered(dataset: SyntheticLidar, split: str, index: int) -> Scan:
        if dataset._num_columns > 256:
            return own(dataset, split, index)
        cast = (dataset._sensor, dataset._num_columns, dataset._disturbance, dataset._data_seed)
        key = (*cast, split, index)
        if key not in made:
            made[key] = own(dataset, split, index)
            for array in made[key]:
                array.flags.writeable = False
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SyntheticLidar, "scan", remembered)
        yield


@pytest.fixture(scope="session", autouse=True)
def _crowds_are_painted_once() -> Iterator[None]:
    """The same for the scenes of crowds."""
    made: dict[tuple[object, ...], Scene] = {}
    own = SyntheticCrowds.scene

    def remembered(dataset: SyntheticCrowds, index: int) -> Scene:
        key = (dataset._split, dataset._size, dataset._data_seed, index)
        if key not in made:
            made[key] = own(dataset, index)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SyntheticCrowds, "scene", remembered)
        yield
