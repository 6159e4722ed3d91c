"""Batches that are finished on a device: read there without transforms, which run where the step does."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from typing import Protocol, TypeGuard

import torch

from sightline.contract.pytree import tree_leaves
from sightline.contract.types import Batch
from sightline.engine.batch_stream import BatchStream
from sightline.engine.device import to_device

logger = logging.getLogger(__name__)

_RTOL, _ATOL = 1e-5, 1e-6
"""Of fields that a device computes, from those of the host: logarithms and sines differ in their last digits."""


class RawReader(Protocol):
    """Reader whose batches can be finished elsewhere."""

    @property
    def can_finish(self) -> bool: ...

    def read_raw(self, keys: object) -> Batch: ...

    def finish(self, raw: Batch) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class DeviceData:
    """Stream of raw batches, and the function that finishes one on its device."""

    stream: BatchStream
    finish: Callable[[Batch], Batch]


def find_device_data(stream: BatchStream, device: torch.device, step: int) -> DeviceData | None:
    """Return how a stream's batches are finished on a device; None, logged with the reason, if they are the host's.

    No list says which transforms can: the batch of a step is read both ways, and both must have the same numbers.
    """
    reader = stream.reader
    if not _is_raw_reader(reader) or not reader.can_finish:
        logger.info("transforms run on the host: the data set is read sample by sample, or a transform mixes samples")
        return None
    raw = dataclasses.replace(stream, reader=reader.read_raw)
    with (
        contextlib.closing(stream.iterate(step, step + 1)) as whole,
        contextlib.closing(raw.iterate(step, step + 1)) as parts,
    ):
        expected, given = next(whole)[0], to_device(next(parts)[0], device)
    try:
        found = reader.finish(given)
    except (RuntimeError, TypeError, ValueError) as error:  # of another device, or that reads numbers of this one
        logger.info("transforms run on the host: %s", " ".join(str(error).split())[:200])
        return None
    if (name := _find_difference(found, to_device(expected, device))) is not None:
        logger.info("transforms run on the host: on the device '%s' has other numbers", name)
        return None
    logger.info("transforms run on the device")
    return DeviceData(raw, reader.finish)


def _is_raw_reader(reader: object) -> TypeGuard[RawReader]:
    return hasattr(reader, "read_raw") and hasattr(reader, "finish")


def _find_difference(found: Batch, expected: Batch) -> str | None:
    """Return the name of a field that differs, or that one of both lacks."""
    ours, theirs = dict(tree_leaves(found)), dict(tree_leaves(expected))
    if different := ours.keys() ^ theirs.keys():
        return min(different)
    for name, values in theirs.items():
        same_form = ours[name].shape == values.shape and ours[name].dtype == values.dtype
        if not same_form or not torch.allclose(ours[name], values, rtol=_RTOL, atol=_ATOL, equal_nan=True):
            return name
    return None
