"""Codes of 1 to 8 bits side by side: element i takes bits [i b, (i + 1) b) of the stream, lowest bit first."""

from __future__ import annotations

import numpy as np

__all__ = ["pack_bits", "packed_length", "unpack_bits"]


def packed_length(count: int, bits: int) -> int:
    """The bytes of so many codes; the last one is filled up with zeros."""
    return -(-count * bits // 8)


def pack_bits(codes: np.ndarray, bits: int) -> bytes:
    """Codes below 2^bits (uint8, flat). Eight of them are `bits` whole bytes, put together in one 64-bit word."""
    words = np.zeros(-(-len(codes) // 8), np.uint64)
    for place in range(8):
        column = codes[place::8]
        words[: len(column)] |= column.astype(np.uint64) << np.uint64(place * bits)
    stream = words.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :bits]
    return stream.tobytes()[: packed_length(len(codes), bits)]


def unpack_bits(data: bytes | memoryview, count: int, bits: int) -> np.ndarray:
    """The codes (uint8, flat) of a stream of `packed_length(count, bits)` bytes.

    Raises ValueError where the bits that fill the last byte up are not zero.
    """
    num_words = -(-count // 8)
    stream = np.zeros(num_words * bits, np.uint8)
    stream[: packed_length(count, bits)] = np.frombuffer(data, np.uint8, packed_length(count, bits))
    bytes_of = np.zeros((num_words, 8), np.uint8)
    bytes_of[:, :bits] = stream.reshape(-1, bits)
    words = bytes_of.view("<u8")[:, 0]
    codes = np.empty((num_words, 8), np.uint8)
    for place in range(8):
        codes[:, place] = (words >> np.uint64(place * bits)) & np.uint64(2**bits - 1)
    flat = codes.reshape(-1)
    if flat[count:].any():
        raise ValueError("the bits after the last code are not zero")
    return flat[:count]
