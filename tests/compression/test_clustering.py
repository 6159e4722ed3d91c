"""Clusters of weights: the least inertia, none of them empty, and the numbers of HAQ's clustering."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.compression import clustering
from sightline.compression.codebooks import Clusters, cluster_weight
from sightline.contract.errors import UserError
from tests.compression.drawn_weights import drawn, random_layers
from tests.golden_parity import load_golden

INERTIA_BOUND = 1e-5
"""Of the least inertia (the issue's); where every value is a cell of the programme 1e-9, for rounding."""


def inertia(values: np.ndarray, cuts: np.ndarray) -> float:
    parts = np.split(np.sort(values).astype(np.longdouble), cuts[1:-1])
    assert all(map(len, parts))
    return float(sum(((part - part.mean()) ** 2).sum() for part in parts))


def cuts_of(values: np.ndarray, most: int) -> np.ndarray:
    cuts = np.zeros(most + 1, np.int64)
    return cuts[: clustering.cut_sorted(np.sort(values), most, cuts) + 1]


def least_inertia(values: np.ndarray, most: int) -> float:
    """The optimum by plain dynamic programming over distinct values, in extended precision."""
    distinct, counts = np.unique(values.astype(np.longdouble), return_counts=True)
    weight, total, square = (
        np.concatenate([[0], np.cumsum(counts * power)]) for power in (distinct**0, distinct, distinct**2)
    )

    def spread(ends: np.ndarray) -> np.ndarray:
        """(E, N) the inertia of the values from each begin to each end; infinite where none lie between."""
        means_of = (total[ends, None] - total[:-1]) ** 2 / np.maximum(weight[ends, None] - weight[:-1], 1)
        found = np.maximum(square[ends, None] - square[:-1] - means_of, 0)
        return np.where(np.arange(len(distinct)) < ends[:, None], found, np.inf)

    ends = np.arange(1, len(distinct) + 1)
    blocks = [spread(ends[first : first + 128]) for first in range(0, len(ends), 128)]
    least = np.concatenate([[np.inf], *(block[:, 0] for block in blocks)])
    for _ in range(min(most, len(distinct)) - 1):
        least = np.concatenate([[np.inf], *((least[:-1] + block).min(axis=1) for block in blocks)])
    return float(least[-1])


def least_inertia_of_many(values: np.ndarray, most: int) -> float:
    """The optimum by the kernels' own programme with every value a cell: held to the plain one by the tests above."""
    ordered = np.sort(values)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1, [len(ordered)]])
    table, cuts = np.zeros((len(ordered) // 16 + 1, 4)), np.zeros(most + 1, np.int64)
    clustering._fill_sums(ordered, table)
    clustering._best_cuts(ordered, table, edges, cuts)
    return inertia(values, cuts)


def test_random_layers_have_the_least_inertia_and_no_empty_cluster() -> None:
    for kind, bits, values in random_layers(120, most=90):
        cuts = cuts_of(values, 2**bits)
        assert len(cuts) - 1 == min(2**bits, len(np.unique(values))), (kind, bits)
        best = least_inertia(values, 2**bits)
        # Extended precision leaves 1e-19 of the squares, which is more than the inertia of single values.
        rounding = 1e-16 * float((values.astype(np.float64) ** 2).sum())
        assert inertia(values, cuts) <= best * (1 + 1e-9) + rounding, (kind, bits)


@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "tight", "pruned", "uniform"])
def test_layers_with_more_values_than_cells_are_within_the_bound(kind: str) -> None:
    draw = np.random.default_rng(3)
    for bits, count in ((1, 1200), (2, 2200)):
        values = drawn(draw, kind, count)
        assert inertia(values, cuts_of(values, 2**bits)) <= least_inertia(values, 2**bits) * (1 + INERTIA_BOUND)
    for bits, count in ((4, 20_000), (6, 40_000), *([(8, 140_000)] if kind == "normal" else [])):
        values = drawn(draw, kind, count)
        best = least_inertia_of_many(values, 2**bits)
        assert inertia(values, cuts_of(values, 2**bits)) <= best * (1 + INERTIA_BOUND), bits


def test_optima_of_one_price_are_joined() -> None:
    """Copies of one pattern far apart: each further centre saves the same, so no price gives most of the numbers."""
    pattern = np.array([0, 1, 2, 5, 6, 7, 8, 9], np.float32)
    values = np.concatenate([pattern + 1000 * turn for turn in range(40)]).astype(np.float32)
    for most in (3, 41, 99):
        assert inertia(values, cuts_of(values, most)) == pytest.approx(least_inertia(values, most), rel=1e-9)


def test_kernels_give_what_their_plain_forms_give(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal(1500).astype(np.float32)
    compiled = cuts_of(values, 3)
    monkeypatch.setattr("sightline.ops.numba_kernels._has_numba", lambda: False)
    assert np.array_equal(cuts_of(values, 3), compiled)


def test_signs_and_extremes_are_sorted() -> None:
    values = np.tile(np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1, -1], np.float32), 1000)
    np.random.default_rng(0).shuffle(values)
    found = cluster_weight(torch.from_numpy(values), bits=8, name="w")
    assert found.is_float32
    assert torch.equal(weights_of(found), torch.from_numpy(values) + 0.0)


def weights_of(found: Clusters) -> Tensor:
    """The centre of each weight."""
    if found.centres.ndim == 1:
        return found.centres[found.labels.long()]
    return found.centres.gather(1, found.labels.flatten(1).long()).view(found.labels.shape)


def members(found: Clusters) -> Tensor:
    return torch.bincount(found.labels.flatten().long(), minlength=len(found.centres))


def test_codebooks_by_hand() -> None:
    weight = torch.tensor([[1.0, 1.0, 9.0], [2.0, 8.0, 9.0]])
    found = cluster_weight(weight, bits=1, name="w")
    assert found.centres.tolist() == [np.float16(4 / 3), np.float16(26 / 3)]
    assert found.labels.tolist() == [[0, 0, 1], [0, 1, 1]]
    rows = cluster_weight(weight, bits=2, name="w", per_channel=True)
    assert rows.centres.tolist() == [[1, 9, 9], [2, 8, 9]]
    assert torch.equal(weights_of(rows), weight)
    same = cluster_weight(torch.full((4, 7), 0.25), bits=8, name="w")
    assert same.centres.tolist() == [0.25]
    assert not same.labels.any()


def test_centres_are_numbers_of_half_precision_and_equal_ones_are_one() -> None:
    close = torch.tensor([1.0, 1.0 + 2**-12, 1.0 + 2**-11, 2.0, 3.0])
    found = cluster_weight(close, bits=3, name="w")
    assert found.centres.tolist() == [1, 2, 3]
    assert found.labels.tolist() == [0, 0, 0, 1, 2]
    for kind, bits, values in random_layers(200, most=2000):
        found = cluster_weight(torch.from_numpy(values), bits=bits, name="w")
        assert members(found).min() >= 1, (kind, bits)
        assert (found.centres.diff() > 0).all()
        if not found.is_float32:
            assert torch.equal(found.centres.half().float(), found.centres)
        assert torch.equal(weights_of(cluster_weight(weights_of(found), bits=8, name="w")), weights_of(found))


@pytest.mark.parametrize(
    ("values", "is_wide"),
    [([1e5, 1.0], True), ([1e-9, 1.0], True), ([3e-6, 5e-6], True), ([0.0, 1.0], False), ([0.0, 0.0], False)],
)
def test_codebooks_that_half_precision_cannot_hold_are_flagged(values: list[float], is_wide: bool) -> None:
    found = cluster_weight(torch.tensor(values), bits=1, name="w")
    assert found.is_float32 is is_wide
    assert torch.equal(weights_of(found), torch.tensor(values))


def test_what_cannot_be_clustered_is_refused_by_name() -> None:
    weight = torch.zeros(2, 3)
    weight[1, 2] = torch.inf
    with pytest.raises(
        UserError, match=r"^blocks\.0\.weight: 1 of 6 weights are not finite, the first at \[1, 2\] \(inf"
    ):
        cluster_weight(weight, bits=2, name="blocks.0.weight")
    with pytest.raises(UserError, match=r"^w: has no elements of shape \[0, 3\]"):
        cluster_weight(torch.zeros(0, 3), bits=2, name="w")


# --- HAQ's clustering -------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_no_clustering_of_the_reference_has_less_inertia(shared: Path) -> None:
    """Lloyd's, from three kinds of starts, for one to many steps; ours has no empty cluster where theirs has one."""
    golden = load_golden(shared, "kmeans", area="compress")
    for case in golden.info["cases"]:
        prefix = f"case{case['case']:02d}/"
        weight, recorded = golden.arrays[f"{prefix}weight"], float(golden.arrays[f"{prefix}inertia"])
        values = weight.astype(np.float32).ravel()
        found = inertia(values, cuts_of(values, min(2 ** case["bits"], values.size)))
        assert found <= recorded * (1 + 1e-5) + 1e-9, case
        clusters = cluster_weight(torch.from_numpy(weight), bits=case["bits"], name="w")
        assert clusters.centres.isfinite().all()
        assert set(clusters.labels.unique().tolist()) == set(range(len(clusters.centres)))
