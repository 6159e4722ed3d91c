"""Random numbers for whole batches, as a function of (seed, epoch, sample index, stream) alone."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sightline.contract.types import SampleKey

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Draws:
    """Random streams, one independent one per sample, drawn for all samples of a batch at once.

    The numbers of a sample are the same whether it is drawn alone or in any batch, in any worker, on any process.
    Every draw advances the stream; `stream(name)` starts an independent one. The bits are those of SplitMix64 run as
    a counter-based generator: output i is the finaliser of (key + i * golden ratio).
    Source: Steele, Lea and Flood 2014 (the mixing function); Salmon et al. 2011 (counter-based generation).
    """

    def __init__(self, keys_B: np.ndarray, step_key: np.ndarray | None = None) -> None:
        self._keys_B = keys_B
        self._step_key = step_key
        self._position = 0

    @classmethod
    def for_samples(cls, keys: Sequence[SampleKey]) -> Draws:
        """Create the streams of these samples, in this order."""
        steps = {(key.seed, key.step) for key in keys}
        step_key = _hash_rows([*steps]) if len(steps) == 1 else None
        return cls(_hash_rows([(key.seed, key.epoch, key.index) for key in keys]), step_key)

    @classmethod
    def from_seed(cls, seed: int, *, num_samples: int = 1) -> Draws:
        """Create the streams of samples 0, 1, ... of the first epoch, to call a transform without a run."""
        return cls.for_samples([SampleKey(index, 0, seed) for index in range(num_samples)])

    @property
    def keys(self) -> tuple[Tensor, Tensor]:
        """Keys of the samples (B,) and of their one step (1,), or of none (0,), int64: all that draws depend on."""
        step_key = np.zeros(0, dtype=np.uint64) if self._step_key is None else self._step_key
        return torch.from_numpy(self._keys_B.view(np.int64)), torch.from_numpy(step_key.view(np.int64))

    def __len__(self) -> int:
        return len(self._keys_B)

    def stream(self, name: str) -> Draws:
        """Return streams that are independent of this one and of those of any other name."""
        salt = np.uint64(zlib.crc32(name.encode()) + 1)
        return Draws(_mix(self._keys_B ^ salt), None if self._step_key is None else _mix(self._step_key ^ salt))

    @property
    def shared_by_step(self) -> Draws:
        """One stream, the same for all samples of a step: numbers come with a batch of 1.

        Raises ValueError for samples of several steps or seeds.
        """
        if self._step_key is None:
            raise ValueError("these samples are not of one step, so they share no draws")
        return Draws(self._step_key, self._step_key)

    def bits(self, *shape: int) -> np.ndarray:
        """Draw uniform 64-bit integers (B, *shape), uint64."""
        count = int(np.prod(shape, dtype=np.int64))
        steps = np.arange(self._position + 1, self._position + count + 1, dtype=np.uint64)
        self._position += count
        with np.errstate(over="ignore"):
            states = self._keys_B[:, None] + steps * _GOLDEN
        return _mix(states).reshape(len(self._keys_B), *shape)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw uniform numbers in [low, high): (B, *shape) float32, 24 random bits each."""
        unit = (self.bits(*shape) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        return torch.from_numpy(unit).mul_(high - low).add_(low)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers: (B, *shape) float32. Source: Box and Muller 1958."""
        bits = self.bits(*shape)
        radius = ((bits >> np.uint64(40)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)
        angle = (bits & np.uint64(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24 * 2 * np.pi)
        return torch.from_numpy(np.sqrt(np.float32(-2) * np.log(radius)) * np.cos(angle))

    def permutation(self, length: int) -> Tensor:
        """Draw a permutation of 0 .. length-1 for each sample: (B, length) int64."""
        return torch.from_numpy(np.argsort(self.bits(length), axis=-1))


class DeviceDraws(Draws):
    """The streams of `Draws.keys` on their device: the same bits; normal numbers to the last digit of a logarithm."""

    def __init__(self, keys: Tensor, step_key: Tensor) -> None:
        self._keys, self._step = keys, step_key
        self._position = 0

    @property
    def keys(self) -> tuple[Tensor, Tensor]:
        """The keys (B,) of the samples, and the key of their step, from which the streams are drawn."""
        return self._keys, self._step

    def __len__(self) -> int:
        return len(self._keys)

    def stream(self, name: str) -> DeviceDraws:
        salt = zlib.crc32(name.encode()) + 1
        return DeviceDraws(_mix_signed(self._keys ^ salt), _mix_signed(self._step ^ salt))

    @property
    def shared_by_step(self) -> DeviceDraws:
        if not len(self._step):
            raise ValueError("these samples are not of one step, so they share no draws")
        return DeviceDraws(self._step, self._step)

    def _draw(self, *shape: int) -> Tensor:
        """Draw the bits of `bits` as int64 (B, *shape)."""
        count = math.prod(shape)
        steps = torch.arange(self._position + 1, self._position + count + 1, device=self._keys.device)
        self._position += count
        return _mix_signed(self._keys.unsqueeze(1) + steps * _as_signed(_GOLDEN)).view(len(self._keys), *shape)

    def bits(self, *shape: int) -> np.ndarray:
        raise TypeError("bits of a device are not read")

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        unit = _shift(self._draw(*shape), 40).float().mul_(2.0**-24)
        return unit.mul_(high - low).add_(low)

    def normal(self, *shape: int) -> Tensor:
        bits = self._draw(*shape)
        radius = _shift(bits, 40).float().add_(0.5).mul_(2.0**-24)
        angle = (bits & 0xFFFFFF).float().mul_(float(np.float32(2.0**-24 * 2 * np.pi)))
        return radius.log_().mul_(-2).sqrt_().mul_(angle.cos_())

    def permutation(self, length: int) -> Tensor:
        return (self._draw(length) ^ _SIGN).argsort(dim=-1, stable=True)


_SIGN = -(1 << 63)
"""Its exclusive or orders signed numbers as unsigned ones."""


def _as_signed(number: np.uint64) -> int:
    return int(number) - (int(number) >> 63 << 64)


def _shift(values: Tensor, num_bits: int) -> Tensor:
    """Shift int64 to the right, with zeros from the left."""
    return (values >> num_bits) & ((1 << (64 - num_bits)) - 1)


def _mix_signed(values: Tensor) -> Tensor:
    """`_mix` of the same bits as int64, whose products wrap as those of uint64 do."""
    values = (values ^ _shift(values, 30)) * _as_signed(_MIX_1)
    values = (values ^ _shift(values, 27)) * _as_signed(_MIX_2)
    return values ^ _shift(values, 31)


def _hash_rows(rows: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Hash each row of numbers to a key (B,) uint64."""
    mixed = np.zeros(len(rows), dtype=np.uint64)
    for column in zip(*rows, strict=True):
        mixed = _mix((mixed ^ np.array(column, dtype=np.uint64)) + _GOLDEN)
    return mixed


def _mix(values: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finaliser: a bijection of uint64 in which every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        values = values ^ (values >> np.uint64(30))
        values *= _MIX_1
        values ^= values >> np.uint64(27)
        values *= _MIX_2
        values ^= values >> np.uint64(31)
    return values
