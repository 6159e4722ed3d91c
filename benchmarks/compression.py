"""Benchmarks of weight clustering against textbook Lloyd iterations, and of bit packing against a bit matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.bench.case import BenchmarkCase, implementation
from sightline.layers.quantisation.clustering import cluster_weight
from sightline.runs.packed_bits import pack_bits

_NUM_ITERATIONS = 50
"""Number of iterations of HAQ's final model; not enough to converge on a million weights."""


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="compress",
            label="kmeans_{weights}_to_{centres}",
            size={"weights": 1_000_000, "centres": 16},
            quick={"weights": 3000},
            make=_make_weights,
            baseline=implementation("textbook", _cluster_lloyd, _is_no_worse),
            variants=(implementation("sightline", _cluster, _is_no_worse),),
        ),
        *(
            BenchmarkCase(
                suite="compress",
                label="pack_{weights}x{bits}",
                size={"weights": 1_000_000, "bits": bits},
                quick={"weights": 3001},
                make=_make_codes,
                baseline=implementation("packbits", _pack_reference, _are_same_bytes),
                variants=(implementation("sightline", _pack, _are_same_bytes),),
            )
            for bits in (3, 4)
        ),
    ]


def _make_weights(*, weights: int, centres: int) -> dict[str, Any]:
    return {"weights": torch.randn(weights, generator=torch.Generator().manual_seed(0)), "centres": centres}


def _cluster_lloyd(inputs: dict[str, Any]) -> Tensor:
    """Cluster weights (N,) by Lloyd's iterations from quantiles: all distances, the nearest, the means."""
    weights, number = inputs["weights"], inputs["centres"]
    quantile_index = (torch.arange(number) + 0.5) * len(weights) / number
    centres = weights.sort().values[quantile_index.long()]
    for _ in range(_NUM_ITERATIONS):
        labels = (weights[:, None] - centres).square().argmin(dim=1)
        counts = torch.bincount(labels, minlength=number)
        sums = torch.zeros(number).index_add_(0, labels, weights)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return labels


def _cluster(inputs: dict[str, Any]) -> Tensor:
    bits = (inputs["centres"] - 1).bit_length()
    return cluster_weight(inputs["weights"], bits=bits, name="weights").labels


def _is_no_worse(inputs: dict[str, Any], expected: Tensor, actual: Tensor) -> str | None:
    expected_inertia, inertia = (_inertia(inputs["weights"].double(), labels.long()) for labels in (expected, actual))
    return (
        None if inertia <= expected_inertia * (1 + 1e-9) else f"inertia {inertia:.9g}, {expected_inertia:.9g} is needed"
    )


def _inertia(weights: Tensor, labels: Tensor) -> float:
    counts = torch.bincount(labels).clamp(min=1)
    means = torch.zeros(len(counts), dtype=weights.dtype).index_add_(0, labels, weights) / counts
    return float((weights - means[labels]).square().sum())


def _make_codes(*, weights: int, bits: int) -> dict[str, Any]:
    codes = np.random.default_rng(0).integers(0, 2**bits, weights)
    return {"codes": torch.from_numpy(codes.astype(np.uint8)), "bits": bits}


def _pack(inputs: dict[str, Any]) -> bytes:
    return pack_bits(inputs["codes"].numpy(), inputs["bits"])


def _pack_reference(inputs: dict[str, Any]) -> bytes:
    """Pack codes by definition: a row of bits per code, eight bits per byte."""
    rows = inputs["codes"].numpy()[:, None] >> np.arange(inputs["bits"], dtype=np.uint8)
    return np.packbits(rows & 1, bitorder="little").tobytes()


def _are_same_bytes(inputs: dict[str, Any], expected: bytes, actual: bytes) -> str | None:
    return None if actual == expected else f"{len(actual)} other bytes than {len(expected)}"
