"""Whether the raw items of a data set stay what they are, epoch after epoch: their digests, read in this very process.

Edits in place of what a data set stores die with a worker process that made them; here there is none that could hide
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
    """16 hexadecimal digits of the names, types, shapes and bytes of a sample's numbers, by BLAKE2b."""
    state = hashlib.blake2b(digest_size=8)
    for path, tensor in array_leaves(dict(sorted(sample.items()))):
        state.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}:".encode())
        state.update(as_bytes(tensor).tobytes())
    return state.hexdigest()


@dataclass(frozen=True)
class RawReads:
    """The digests of a raw item in each of some epochs, read and transformed in turn, and then read `again`."""

    epochs: tuple[int, ...]
    first: tuple[str, ...]
    again: tuple[str, ...]

    @classmethod
    def read(cls, reader: BatchReader, *, index: int, seed: int, epochs: Sequence[int]) -> RawReads:
        """Read an item in each epoch as `reader` does, transforms included: these too could write into it."""
        first = tuple(_digest(reader, SampleKey(index, epoch, seed)) for epoch in epochs)
        return cls(tuple(epochs), first, tuple(_digest(reader, SampleKey(index, epoch, seed)) for epoch in epochs))

    @property
    def is_pure(self) -> bool:
        """Whether reading an epoch again gives the same bits."""
        return self.first == self.again

    @property
    def is_constant(self) -> bool:
        """Whether all epochs have the same bits."""
        return len({*self.first, *self.again}) == 1

    @property
    def line(self) -> str:
        """The same in words."""
        which = f"epoch {self.epochs[0]}" if len(self.epochs) == 1 else f"epochs {_listed(self.epochs)}"
        if self.is_constant:
            return f"raw item the same in {which}, also when read again (digest {self.first[0]})"
        if self.is_pure:
            shown = ", ".join(f"{epoch}: {digest}" for epoch, digest in zip(self.epochs, self.first, strict=True))
            return f"raw item drawn anew in each epoch, the same when an epoch is read again (digests {shown})"
        shown = ", ".join((*self.first, *self.again))
        return (
            f"RAW ITEM CHANGES by being read: {which}, then again, {shown}; run `sightline check`, which names the line"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        digests = {
            str(epoch): [first, again] for epoch, first, again in zip(self.epochs, self.first, self.again, strict=True)
        }
        return {"digests": digests, "is_constant": self.is_constant, "is_pure": self.is_pure}


def _listed(epochs: Sequence[int]) -> str:
    is_whole = list(epochs) == list(range(epochs[0], epochs[-1] + 1))
    return f"{epochs[0]} to {epochs[-1]}" if is_whole else ", ".join(map(str, epochs))


def _digest(reader: BatchReader, key: SampleKey) -> str:
    """Taken before any transform has run on the item; they run afterwards."""
    stages = reader.sample_stages(key)
    digest = item_digest(next(stages)[1])
    for _ in stages:
        pass
    return digest
