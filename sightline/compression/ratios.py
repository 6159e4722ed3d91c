"""Compression ratios to float32: of codes alone, with codebooks, and of the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from sightline.compression.bit_packing import packed_length
from sightline.compression.packed_tensors import unique_tensors


class CompressionRatios(NamedTuple):
    """Compression ratios to float32: of the weights' codes alone (as HAQ counts), with codebooks, and of the file."""

    weights: float
    codebook: float
    file: float


def compression_ratios(
    layers: Iterable[tuple[int, int, int]], *, file_bytes: int, state: Mapping[str, Tensor]
) -> CompressionRatios:
    """Compute the ratios of a quantised model to float32: codes, codes and codebooks, the file.

    `layers` contains (number of weights, bits, bytes of the codebook) per layer; `state` is that of the float model.
    The file is compared with all of that state, the other sizes with the layers' weights.
    """
    layers = list(layers)
    count = sum(size for size, _, _ in layers)
    coded = sum(packed_length(size, bits) + book for size, bits, book in layers)
    file = file_bytes / float_bytes(state)
    if not count:  # every tensor is stored as it is
        return CompressionRatios(1.0, 1.0, file)
    return CompressionRatios(sum(size * bits for size, bits, _ in layers) / (32 * count), coded / (4 * count), file)


def float_bytes(state: Mapping[str, Tensor]) -> int:
    """Count the bytes of a float model's state, shared tensors once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in unique_tensors(state)[0].values())
