"""What all tests of checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from sightline.areas.clouds.sets import synthetic_shapes
from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.areas.scans.sets.synthetic_lidar import SyntheticLidar


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
def _scans_and_scenes_are_made_once() -> Iterator[None]:
    """The same for scenes of crowds, and for scans of streets of a quarter of a thousand columns or fewer."""

    def describe_street(dataset: SyntheticLidar) -> tuple[object, ...] | None:
        cast = dataset._sensor, dataset._num_columns, dataset._disturbance, dataset._data_seed
        return cast if dataset._num_columns <= 256 else None

    with pytest.MonkeyPatch.context() as patch:
        _remember(patch, SyntheticLidar, "scan", describe_street)
        _remember(patch, SyntheticCrowds, "scene", lambda each: (each._split, each._size, each._data_seed))
        yield


def _remember(patch: pytest.MonkeyPatch, owner: Any, name: str, describe: Callable[[Any], Any]) -> None:
    """Make what a set returns once, unless it has no description."""
    made: dict[object, Any] = {}
    own = getattr(owner, name)

    def remembered(dataset: Any, *place: object) -> Any:
        described = describe(dataset)
        if described is None:
            return own(dataset, *place)
        if (described, place) not in made:
            result = made[described, place] = own(dataset, *place)
            for array in result if isinstance(result, tuple) else ():  # those of a scan
                array.flags.writeable = False
        return made[described, place]

    patch.setattr(owner, name, remembered)
