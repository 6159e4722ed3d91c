"""Bit packing of codes of 1 to 8 bits: element i takes bits [i b, (i + 1) b) of the stream, lowest bit first."""

from __future__ import annotations

import numpy as np


def packed_length(count: int, bits: int) -> int:
    """Return the number of bytes of `count` codes; the last byte is padded with zeros."""
    return -(-count * bits // 8)


def pack_bits(codes: np.ndarray, bits: int) -> bytes:
    """Pack codes (n,) uint8 below 2^bits: eight of them are `bits` bytes, combined in one 64-bit word."""
    words_64 = np.zeros(-(-len(codes) // 8), np.uint64)
    for slot in range(8):
        column = codes[slot::8]
        words_64[: len(column)] |= column.astype(np.uint64) << np.uint64(slot * bits)
    stream = words_64.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :bits]
    return stream.tobytes()[: packed_length(len(codes), bits)]


def unpack_bits(data: bytes | memoryview, count: int, bits: int) -> np.ndarray:
    """Unpack the codes (count,) uint8 of a stream of `packed_length(count, bits)` bytes.

    Raises ValueError if the padding bits of the last byte are not zero.
    """
    num_words = -(-count // 8)
    stream = np.zeros(num_words * bits, np.uint8)
    stream[: packed_length(count, bits)] = np.frombuffer(data, np.uint8, packed_length(count, bits))
    word_bytes = np.zeros((num_words, 8), np.uint8)
    word_bytes[:, :bits] = stream.reshape(-1, bits)
    words_64 = word_bytes.view("<u8")[:, 0]
    codes = np.empty((num_words, 8), np.uint8)
    for slot in range(8):
        codes[:, slot] = (words_64 >> np.uint64(slot * bits)) & np.uint64(2**bits - 1)
    flat = codes.reshape(-1)
    if flat[count:].any():
        raise ValueError("the bits after the last code are not zero")
    return flat[:count]
