"""Collation of samples to batches: equal shapes are stacked, ragged fields as their Field declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.contract.errors import DataError
from sightline.contract.types import Batch, Field, Sample, SampleKey


def collate(samples: Sequence[Sample], keys: Sequence[SampleKey], fields: Mapping[str, Field]) -> Batch:
    """Collate samples to one batch: stack, concatenate (adds `offsets`), pad (adds `<name>_mask`) or list, as declared.

    Raises DataError naming the sample and field if samples do not fit together.
    """
    batch: Batch = {}
    for name in samples[0]:
        declared = fields.get(name)
        values = [_get_value(sample, name, key) for sample, key in zip(samples, keys, strict=True)]
        mode = declared.collate if declared is not None else "stack"
        if mode == "list":
            batch[name] = values
        elif declared is not None and mode == "concatenate":
            batch[name] = torch.cat([torch.as_tensor(value) for value in values])
            _add_offsets(batch, values, name, declared.offsets, keys)
        elif mode == "pad":
            batch[name], batch[f"{name}_mask"] = _pad([torch.as_tensor(value) for value in values])
        else:
            batch[name] = _stack(values, name, keys)
    batch["sample_index"] = torch.tensor([key.index for key in keys], dtype=torch.int64)
    return batch


def batch_keys(fields: Mapping[str, Field], features: Sequence[str] = ()) -> frozenset[str]:
    """Return the keys of batches with these fields."""
    keys = {"sample_index", *fields, *({"features"} if features else ())}
    keys |= {f"{name}_mask" for name, field in fields.items() if field.collate == "pad"}
    keys |= {field.offsets for field in fields.values() if field.collate == "concatenate"}
    return frozenset(keys)


def _get_value(sample: Sample, name: str, key: SampleKey) -> Any:
    """Return a field of a sample. Raises DataError if it is missing."""
    if name not in sample:
        raise DataError(f"sample {key.index}: has no '{name}', which other samples of its batch have")
    return sample[name]


def _add_offsets(batch: Batch, values: Sequence[Any], name: str, offsets_key: str, keys: Sequence[SampleKey]) -> None:
    """Add the offsets (B + 1,) int64 of a concatenated field; fields that share them need equal lengths."""
    lengths = torch.tensor([len(value) for value in values])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    if offsets_key in batch and not torch.equal(batch[offsets_key], offsets):
        index = int((batch[offsets_key].diff() != lengths).nonzero()[0])
        raise DataError(
            f"sample {keys[index].index}: '{name}' has {int(lengths[index])} rows, other concatenated fields have "
            f"{int(batch[offsets_key].diff()[index])}"
        )
    batch[offsets_key] = offsets


def _pad(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad with zero rows to the longest, (B, longest, ...), with a mask (B, longest) that is True for real rows."""
    longest = max(len(value) for value in values)
    padded = values[0].new_zeros((len(values), longest, *values[0].shape[1:]))
    mask = torch.zeros(len(values), longest, dtype=torch.bool)
    for row, value in enumerate(values):
        padded[row, : len(value)] = value
        mask[row, : len(value)] = True
    return padded, mask


def _stack(values: list[Any], name: str, keys: Sequence[SampleKey]) -> Any:
    """Stack values, also within dicts and tuples. Raises DataError naming the first sample of another shape."""
    first = values[0]
    if isinstance(first, dict):
        return {inner: _stack([value[inner] for value in values], f"{name}.{inner}", keys) for inner in first}
    if isinstance(first, str):
        return values
    if isinstance(first, list | tuple) and first and not isinstance(first[0], int | float):
        return type(first)(
            _stack(list(column), f"{name}[{i}]", keys) for i, column in enumerate(zip(*values, strict=True))
        )
    tensors = [torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else torch.as_tensor(v) for v in values]
    for tensor, key in zip(tensors, keys, strict=True):
        if tensor.shape != tensors[0].shape:
            raise DataError(
                f"sample {key.index}: '{name}' has shape {tuple(tensor.shape)}, sample {keys[0].index} has "
                f"{tuple(tensors[0].shape)}; declare its field as concatenate, pad or list"
            )
    return torch.stack(tensors)
