"""Batches of samples that do not come from a data set, such as those of files, or tiles of larger ones."""

from __future__ import annotations

from collections.abc import Sequence

from sightline.contract.dataset import Dataset
from sightline.contract.types import Batch, DataInfo, Sample, SampleKey
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform


class _SampleStream(Dataset):
    """Samples as a data set that is read once, in order."""

    def __init__(self, info: DataInfo, samples: Sequence[Sample]) -> None:
        self.info = info
        self._size = len(samples)
        self._samples = iter(samples)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: SampleKey) -> Sample:
        return next(self._samples)


def transform_samples(
    samples: Sequence[Sample], keys: Sequence[SampleKey], transforms: Sequence[NamedTransform], info: DataInfo
) -> Batch:
    """Make the transformed batch of samples with the fields of `info`; random draws depend on their keys."""
    return BatchReader(_SampleStream(info, samples), transforms)(keys)
