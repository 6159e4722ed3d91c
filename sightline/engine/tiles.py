"""Predictions of large samples by tiles: a few tiles at a time, so that memory does not grow with the sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sightline.contract.errors import ConfigError
from sightline.contract.task import Tiling
from sightline.contract.types import Batch, Sample, SampleKey
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.sample_stream import transform_samples
from sightline.store.loading.transform_pipeline import NamedTransform

PredictTiles = Callable[[Sequence[SampleKey], Sequence[Sample]], Mapping[str, Any]]
"""Function from samples before their transforms, with the keys that they draw by, to the predictions of their batch."""


@dataclass(frozen=True)
class TileReader:
    """Reader of the tiles of a data set's samples; figures of such predictions end in `suffix`."""

    tiling: Tiling
    reader: BatchReader
    transforms: Sequence[NamedTransform]
    suffix: str

    def read_whole(self, keys: Sequence[SampleKey]) -> Iterator[tuple[SampleKey, Sample]]:
        """Read the samples of a batch one by one, before their transforms."""
        for key in keys:
            yield key, self.reader.read_sample(key)

    def read_tiles(self, keys: Sequence[SampleKey], tiles: Sequence[Sample]) -> Batch:
        """Return the transformed batch of some tiles."""
        return transform_samples(tiles, keys, self.transforms, self.reader.dataset.info)


def make_tiling(task: Any, *, name: str, option: str, size_px: int, overlap: float, min_score: float = 0.0) -> Tiling:
    """Make the tiling of a task of this name. Raises ConfigError, naming the option, for a task that has none."""
    make = task.make_tiling
    if make is None:
        raise ConfigError(f"{option}: the task '{name}' does not merge the predictions of tiles; leave it out")
    tiling: Tiling = make(size_px=size_px, overlap=overlap, min_score=min_score)
    return tiling


def predict_by_tiles(
    tiling: Tiling,
    samples: Iterable[tuple[SampleKey, Sample]],
    first: Mapping[str, Any],
    predict: PredictTiles,
    *,
    batch_size: int,
) -> Mapping[str, Any]:
    """Return the predictions `first` of a batch of whole samples, merged with those of their tiles.

    `samples` are those of the batch before their transforms, in order; the tiles of one are predicted at most
    `batch_size` at a time, in order, and draw by its key.
    """
    passes = []
    for (key, sample), of_whole in zip(samples, tiling.collect(first), strict=True):
        tiles, collected = tiling.divide(sample), [of_whole]
        for begin in range(0, len(tiles), batch_size):
            chosen = tiles[begin : begin + batch_size]
            collected += tiling.collect(predict([key] * len(chosen), chosen))
        passes.append(collected)
        del sample, tiles  # a large one, while the next is read
    return first if all(len(of_sample) == 1 for of_sample in passes) else tiling.merge(first, passes)
