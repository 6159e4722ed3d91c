"""Other packages as further rows: SciPy, scikit-learn, faiss and fpsample, on torch's number of threads.

They come with the extra `peers`, and are imported only when they run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.agreement import farthest_each_time, same_neighbours
from sightline.bench.case import Implementation, Run, implementation


def neighbour_peers(channels: int) -> tuple[Implementation, ...]:
    """List the neighbour searches: k-d trees for few channels, and the exhaustive search of faiss."""
    trees = (
        implementation("scipy_ckdtree", _scipy_neighbours, same_neighbours, needs="scipy"),
        implementation("sklearn_kdtree", _sklearn_neighbours, same_neighbours, needs="sklearn"),
    )
    return (
        *(trees if channels <= 8 else ()),
        Implementation("faiss_flat", _faiss_neighbours, same_neighbours, "faiss"),
    )


def sampling_peers() -> tuple[Implementation, ...]:
    """List fpsample's plain loop and its buckets, which ignore the given start.

    Its machine code uses fused multiply-add, so that points that almost tie may be exchanged.
    """
    return (
        implementation("fpsample", _fpsample_plain, farthest_each_time, needs="fpsample"),
        implementation("fpsample_buckets", _fpsample_buckets, farthest_each_time, needs="fpsample"),
    )


def _scipy_neighbours(inputs: dict[str, Any]) -> Tensor:
    from scipy.spatial import cKDTree

    workers = torch.get_num_threads()
    return _search_by_cloud(inputs, lambda cloud, count: cKDTree(cloud).query(cloud, k=count, workers=workers)[1])


def _sklearn_neighbours(inputs: dict[str, Any]) -> Tensor:
    from sklearn.neighbors import KDTree

    return _search_by_cloud(inputs, lambda cloud, count: KDTree(cloud).query(cloud, k=count, return_distance=False))


@contextmanager
def _faiss_neighbours(inputs: dict[str, Any]) -> Iterator[Run]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())

    def search(cloud: np.ndarray, count: int) -> np.ndarray:
        index = faiss.IndexFlatL2(cloud.shape[1])
        index.add(cloud)
        return index.search(cloud, count)[1]

    yield lambda: _search_by_cloud(inputs, search)


def _search_by_cloud(inputs: dict[str, Any], search: Any) -> Tensor:
    indices = [search(cloud, inputs["num_neighbours"]) for cloud in inputs["points"].numpy()]
    return torch.from_numpy(np.stack(indices).astype(np.int64))


def _fpsample_plain(inputs: dict[str, Any]) -> Tensor:
    import fpsample

    return _sample_by_cloud(inputs, fpsample.fps_sampling)


def _fpsample_buckets(inputs: dict[str, Any]) -> Tensor:
    import fpsample

    height = 5 if inputs["points"].shape[1] < 2**15 else 7  # as its authors advise for small and large clouds
    return _sample_by_cloud(
        inputs,
        lambda cloud, count, start_idx: fpsample.bucket_fps_kdline_sampling(
            cloud, count, h=height, start_idx=start_idx
        ),
    )


def _sample_by_cloud(inputs: dict[str, Any], sample: Any) -> Tensor:
    indices = [sample(cloud, inputs["num_samples"], start_idx=inputs["start"]) for cloud in inputs["points"].numpy()]
    return torch.from_numpy(np.stack(indices).astype(np.int64))
