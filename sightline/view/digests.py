"""Digests of a data set's raw items, read in this process: do they stay the same from epoch to epoch?

In-place edits of a data set's storage are lost with the worker process that made them; reading without workers shows
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sightline.data.loading.batch_reader import BatchReader
from sightline.data.loading.sample_arrays import array_leaves, as_bytes
from sightline.types import Sample, SampleKey

__all__ = ["RawReads", "item_digest"]


def item_digest(sample: Sample) -> str:
    """Compute the BLAKE2b digest (16 hex digits) of the names, dtypes, shapes and bytes of a sample's arrays."""
    state = hashlib.blake2b(digest_size=8)
    for path, tensor in array_leaves(dict(sorted(sample.items()))):
        state.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}:".encode())
        state.update(as_bytes(tensor).tobytes())
    return state.hexdigest()


@dataclass(frozen=True)
class RawReads:
    """Digests of one raw item per epoch: `first` when read and transformed in turn, `again` when read once more."""

    epochs: tuple[int, ...]
    first: tuple[str, ...]
    again: tuple[str, ...]

    @classmethod
    def read(cls, reader: BatchReader, *, index: int, seed: int, epochs: Sequence[int]) -> RawReads:
        """Read an item twice in each epoch by `reader`, transforms included: they too could write into it."""
        first = tuple(_digest(reader, SampleKey(index, epoch, seed)) for epoch in epochs)
        return cls(tuple(epochs), first, tuple(_digest(reader, SampleKey(index, epoch, seed)) for epoch in epochs))

    @property
    def is_pure(self) -> bool:
        """True if reading an epoch again returns the same bits."""
        return self.first == self.again

    @property
    def is_constant(self) -> bool:
        """True if all epochs have the same bits."""
        return len({*self.first, *self.again}) == 1

    @property
    def line(self) -> str:
        """One line of text: whether the raw item changed, with its digests."""
        span = f"epoch {self.epochs[0]}" if len(self.epochs) == 1 else f"epochs {_format_epochs(self.epochs)}"
        if self.is_constant:
            return f"raw item the same in {span}, also when read again (digest {self.first[0]})"
        if self.is_pure:
            shown = ", ".join(f"{epoch}: {digest}" for epoch, digest in zip(self.epochs, self.first, strict=True))
            return f"raw item drawn anew in each epoch, the same when an epoch is read again (digests {shown})"
        shown = ", ".join((*self.first, *self.again))
        return (
            f"RAW ITEM CHANGES by being read: {span}, then again, {shown}; run `sightline check`, which names the line"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        digests = {
            str(epoch): [first, again] for epoch, first, again in zip(self.epochs, self.first, self.again, strict=True)
        }
        return {"digests": digests, "is_constant": self.is_constant, "is_pure": self.is_pure}


def _format_epochs(epochs: Sequence[int]) -> str:
    is_whole = list(epochs) == list(range(epochs[0], epochs[-1] + 1))
    return f"{epochs[0]} to {epochs[-1]}" if is_whole else ", ".join(map(str, epochs))


def _digest(reader: BatchReader, key: SampleKey) -> str:
    """Compute the digest of the raw item, and then run its transforms."""
    stages = reader.sample_stages(key)
    digest = item_digest(next(stages)[1])
    for _ in stages:
        pass
    return digest
