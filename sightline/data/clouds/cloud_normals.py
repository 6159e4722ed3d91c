"""Estimated normals of labelled clouds, cached in memory if the set is small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from sightline.errors import DataError
from sightline.geometry.normals import estimate_normals

__all__ = ["EstimatedNormals", "Normals", "estimated_normals"]

Normals: TypeAlias = Literal["none", "file", "estimated"]
"""Source of the normals of a cloud: none, the stored file, or planes fitted to neighbouring points."""

_NUM_NEIGHBOURS = 16
_MAX_CACHE_BYTES = 2**28


class EstimatedNormals:
    """Cache of the estimated normals of `size` clouds; the same bits alone and in any batch.

    `name_of` returns the name of a sample for error messages. The cache is not pickled.
    """

    def __init__(self, size: int, num_points: int, name_of: Callable[[int], str]) -> None:
        self._shape = (size, num_points, 3)
        self._name_of = name_of
        self._cache: np.ndarray | None = None
        self._is_cached = np.zeros(size, dtype=bool)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": None, "_is_cached": np.zeros(self._shape[0], dtype=bool)}

    def estimate(self, index: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Estimate the normals (B, N, 3) float32, a new array, of the samples `index` (B,) with `points` (B, N, 3).

        Raises DataError naming the sample if a point has no normal.
        """
        if np.prod(self._shape) * 4 > _MAX_CACHE_BYTES:
            return np.stack([self._estimate(int(i), cloud) for i, cloud in zip(index, points, strict=True)])
        if self._cache is None:
            self._cache = np.empty(self._shape, dtype=np.float32)
        for i, cloud in zip(index, points, strict=True):
            if not self._is_cached[i]:
                self._cache[i] = self._estimate(int(i), cloud)
                self._is_cached[i] = True
        return self._cache[index]

    def _estimate(self, index: int, cloud: np.ndarray) -> np.ndarray:
        return estimated_normals(cloud, where=self._name_of(index))


def estimated_normals(points: np.ndarray, *, where: str) -> np.ndarray:
    """Estimate the normals (N, 3) float32 of one cloud (N, 3), alone so that its bits depend on no other cloud.

    Planes are fitted to distinct points, so that a cloud with repeated points has normals too.
    Raises DataError, beginning with `where`, if a point has no normal.
    """
    distinct, inverse = np.unique(points, axis=0, return_inverse=True)
    if len(distinct) < len(points):
        return estimated_normals(distinct, where=where)[inverse]
    try:
        return estimate_normals(torch.from_numpy(points)[None], num_neighbours=_NUM_NEIGHBOURS)[0].numpy()
    except ValueError as error:
        raise DataError(
            f"{where}: its normals cannot be estimated ({error}); set normals: none, or leave it out"
        ) from error
