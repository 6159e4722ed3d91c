"""Batches that are finished on a device: read without transforms, which run where the step does.

Samples whose reading depends on nothing but their index stay there, if they have room.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeGuard

import torch

from sightline.contract.pytree import tree_leaves, tree_map
from sightline.contract.types import Batch, SampleKey
from sightline.engine.batches.stream import BatchStream
from sightline.engine.device.transfer import to_device
from sightline.ops.waits import read_list

logger = logging.getLogger(__name__)

_RTOL, _ATOL = 1e-5, 1e-6
"""Of fields that a device computes, from those of the host: logarithms and sines differ in their last digits."""


class RawReader(Protocol):
    """Reader whose batches can be finished elsewhere."""

    draw_keys: Sequence[str]

    @property
    def can_finish(self) -> bool:
        """True if whole batches are read, and all that their transforms draw depends on keys."""

    def __call__(self, keys: Sequence[SampleKey]) -> Batch: ...

    def read_raw(self, keys: Sequence[SampleKey]) -> Batch:
        """Read a batch without transforms, for `finish`."""

    def make_draw_keys(self, keys: Sequence[SampleKey]) -> Batch:
        """Return what the draws of a batch depend on, by the names of `draw_keys`."""

    def reads_index_alone(self, keys: Sequence[SampleKey]) -> bool:
        """Return True if the samples of these keys depend on their index alone, and can stay on a device."""

    def finish(self, raw: Batch) -> Batch:
        """Transform a batch of `read_raw` on its device."""


@dataclass(frozen=True)
class DeviceData:
    """Stream of batches, what is kept of them on their device, and the function that finishes one there."""

    stream: BatchStream
    keep: Callable[[Batch], Batch] = lambda batch: batch
    finish: Callable[[Batch], Batch] = lambda batch: batch


_NAMED = "(named)"
"""Key of a batch whose samples are on the device, which a graph of its step has, too."""


class ResidentSamples:
    """Raw samples that stay on a device once they were read: a later batch of them is gathered there.

    Such a batch is named by its `sample_index` (B,) and the keys of its draws. Workers read what is not on the device
    yet. A batch of another form than the first, such as one that is padded to its longest sample, passes as it is.
    """

    def __init__(self, reader: RawReader, first: Batch, size: int) -> None:
        """Make room for `size` samples like those of `first`, a raw batch on the device."""
        self._reader = reader
        self._names = {"sample_index", *reader.draw_keys, _NAMED}
        self._fields = {
            name: values.new_empty((size, *values.shape[1:]))
            for name, values in first.items()
            if name not in self._names
        }
        self._is_here = torch.zeros(size, dtype=torch.bool).share_memory_()

    def read(self, keys: Sequence[SampleKey]) -> Batch:
        """Read a raw batch; of one whose samples are all on the device, only what names them."""
        index = torch.tensor([key.index for key in keys])
        if self._is_here[index].all():
            return {"sample_index": index, **self._reader.make_draw_keys(keys), _NAMED: True}
        return self._reader.read_raw(keys)

    def keep(self, batch: Batch) -> Batch:
        """Keep the samples of a batch of `read`, which was sent to the device, and return what names them."""
        if _NAMED in batch:
            return batch
        form = {name: (values.shape[1:], values.dtype) for name, values in self._fields.items()}
        fields = {name: values for name, values in batch.items() if name not in self._names}
        if form != {name: (values.shape[1:], values.dtype) for name, values in fields.items()}:
            return batch
        rows = batch["sample_index"]
        for name, values in self._fields.items():
            values.index_copy_(0, rows, fields[name])
        self._is_here[torch.tensor(read_list(rows))] = True
        return {**{name: batch[name] for name in batch if name in self._names}, _NAMED: True}

    def finish(self, batch: Batch) -> Batch:
        """Gather the samples of a batch that is named, and transform them."""
        if not batch.get(_NAMED):
            return self._reader.finish({name: values for name, values in batch.items() if name != _NAMED})
        samples = {name: values[batch["sample_index"]] for name, values in self._fields.items()}
        return self._reader.finish({**samples, **{name: batch[name] for name in self._names if name != _NAMED}})


def find_device_data(
    stream: BatchStream, device: torch.device, step: int, *, max_bytes: float = 0.0
) -> DeviceData | None:
    """Return how a stream's batches are finished on a device; None, logged with the reason, if they are the host's.

    No list says which transforms can: the batch of a step is read both ways, and both must have the same numbers.
    Samples stay on the device if all of them together take at most `max_bytes`, and are the same in another epoch.
    """
    reader = stream.reader
    if stream.prepare is not None:
        logger.info("transforms run on the host: the network's first numbers are made of their results there")
        return None
    if not _is_raw_reader(reader) or not reader.can_finish:
        logger.info("transforms run on the host: the data set is read sample by sample, or a transform mixes samples")
        return None
    keys = stream.step_keys(step)[0]
    raw = reader.read_raw(keys)
    expected, on_device = reader(keys), to_device(raw, device)

    def finish(batch: Batch) -> Batch:
        return _lower(reader.finish(batch))

    try:
        finished = finish(on_device)
    except Exception as error:  # noqa: BLE001 - on the host the same transform is known to work
        logger.info("transforms run on the host: %s", " ".join(str(error).split())[:200])
        return None
    if (name := _find_difference(finished, to_device(expected, device))) is not None:
        logger.info("transforms run on the host: on the device '%s' has other numbers", name)
        return None
    logger.info("transforms run on the device")
    try:
        samples = _keep_samples(reader, keys, raw, on_device, finished, int(stream.plan.indices.max()) + 1, max_bytes)
    except Exception as error:  # noqa: BLE001 - they can be sent each time
        samples = " ".join(str(error).split())[:200]
    if isinstance(samples, str):
        logger.info("samples are sent to the device for each step: %s", samples)
        return DeviceData(replace(stream, reader=reader.read_raw), finish=finish)
    logger.info("samples stay on the device")
    resident = samples
    return DeviceData(
        replace(stream, reader=resident.read), resident.keep, lambda batch: _lower(resident.finish(batch))
    )


def _keep_samples(
    reader: RawReader,
    keys: Sequence[SampleKey],
    raw: Batch,
    on_device: Batch,
    finished: Batch,
    size: int,
    max_bytes: float,
) -> ResidentSamples | str:
    """Return a store of `size` samples on the device of `on_device`, or the reason why they cannot stay there.

    They can if they depend on nothing but their index: a data set that reads more of a key is refused.
    """
    if not reader.reads_index_alone(keys):
        return "they depend on the epoch, the step or the seed"
    later = reader.read_raw([replace(key, epoch=key.epoch + 1, step=key.step + 1) for key in keys])
    first, second = ({n: v for n, v in batch.items() if n not in reader.draw_keys} for batch in (raw, later))
    if not all(isinstance(values, torch.Tensor) and len(values) == len(keys) for values in first.values()):
        return "a field has not one row for each sample"
    if raw["sample_index"].tolist() != [key.index for key in keys] or _find_difference(first, second, 0.0, 0.0):
        return "they differ from epoch to epoch"
    if (num_bytes := size * _count_bytes(on_device) / len(keys)) > max_bytes:
        return f"all of them take {num_bytes / 1e9:.3g} GB, and {max_bytes / 1e9:.3g} GB are set aside"
    samples = ResidentSamples(reader, on_device, size)
    again = _lower(samples.finish(samples.keep(on_device)))
    return samples if _find_difference(again, finished, 0.0, 0.0) is None else "gathered, they have other numbers"


def _lower(batch: Batch) -> Batch:
    """Return a batch with numbers as `to_device` sends them."""
    lowered: Batch = tree_map(batch, lambda path, tensor: tensor.float() if tensor.is_floating_point() else tensor)
    return lowered


def _count_bytes(batch: Batch) -> int:
    return sum(values.nbytes for _, values in tree_leaves(batch))


def _is_raw_reader(reader: object) -> TypeGuard[RawReader]:
    return hasattr(reader, "read_raw") and hasattr(reader, "finish")


def _find_difference(actual: Batch, expected: Batch, rtol: float = _RTOL, atol: float = _ATOL) -> str | None:
    """Return the name of a field that differs, or that one of both lacks."""
    ours, theirs = dict(tree_leaves(actual)), dict(tree_leaves(expected))
    if different := ours.keys() ^ theirs.keys():
        return min(different)
    for name, values in theirs.items():
        same_form = ours[name].shape == values.shape and ours[name].dtype == values.dtype
        if not same_form or not _agree(ours[name], values, rtol, atol):
            return name
    return None


def _agree(actual: torch.Tensor, expected: torch.Tensor, rtol: float, atol: float) -> bool:
    if actual.is_floating_point():
        return torch.allclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
    return torch.equal(actual, expected)
