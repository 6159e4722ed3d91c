"""Base class of data sets: what they contain, and how they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from sightline.contract.types import Batch, Copies, DataInfo, Sample, SampleKey


class Dataset(ABC):
    """Data set: a map from keys to samples. Pure: a key gives the same bits, and reading changes nothing stored.

    Its constructor takes `split`, the part of the data to read, such as `train` or `test`. What has a default below is
    overridden where a set has more to offer: by a method, by an attribute of the class or of the instance.
    """

    info: DataInfo
    """Facts, the fields of a sample, and the number of samples of each split."""

    get_batch: Callable[[Sequence[SampleKey]], Batch] | None = None
    """`get_batch(keys)`: a whole batch at once, of a set in memory."""
    collate: Callable[[list[Sample]], Batch] | None = None
    """`collate(samples)`: the batch, with every key of `info.fields`."""
    strata: Any = None
    """One class per sample (an array), for stratified splits."""
    repeats: int = 1
    """How often an epoch visits every sample; all first visits come first, and one part holds all of a sample."""
    fingerprint: str | None = None
    """Text that changes whenever the same arguments and keys may give other samples; features are cached by it."""
    content_sha256: str | None = None
    """SHA-256 of all that its files hold, wherever they are; runs and processes compare it, or `fingerprint`."""
    copies: Copies | None = None
    """Digests of every sample: the same sample in two splits is reported."""
    doubts: Sequence[str] = ()
    """What was found in its samples when they were prepared, and may spoil a training: `check` says it."""
    baselines: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    """Metric → {simple prediction: its figure}, shown next to the metrics of a run."""
    pictures: Any = None
    """The rendered views that `image` comes from."""
    label_map: Any = None
    """Of a set of scans: from the ids of files of predicted labels to its classes."""
    prepare: ClassVar[Callable[..., Any] | None] = None
    """`prepare(*, source, target, name, progress, ...)`, of the class: what `sightline data prepare` calls."""
    card: ClassVar[Callable[..., Any] | None] = None
    """`card()`, of the class: what `sightline data info` prints."""
    expected_info: ClassVar[Callable[..., DataInfo] | None] = None
    """`expected_info(*, ...)`, of the class: the `info` of a set that is not prepared yet."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples of the split, `repeats` visits of each."""

    @abstractmethod
    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the sample of a key, with every key of `info.fields`."""

    def sample_name(self, index: int) -> str:
        """Return the name of a sample in reports: its index, unless the set has names."""
        return str(index)


def get_data_digest(dataset: Dataset) -> str | None:
    """Return the text that identifies the contents of a data set; None for one that states none."""
    return dataset.content_sha256 or dataset.fingerprint
