"""Codings of boxes: published and hand-worked values, exact inverses, and bounds of what is decoded."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.geometry.boxes.overlaps import (
    box_centres,
    box_sizes,
    centreness,
    decode_deltas,
    decode_distances,
    encode_deltas,
    encode_distances,
)
from tests.cases import run_each
from tests.geometry.boxes.crowds import aligned_pairs
from tests.golden_parity import load_golden

PLUS_ONE = torch.tensor([0, 0, 1, 1])
"""A box of the old convention, whose width is x2 - x1 + 1, as a half-open one."""


def assert_near(found: Tensor, expected: Tensor, bound: float) -> None:
    """No entry is off by more than `bound` times the largest of its row, or times 1; rows may be none."""
    assert found.shape == expected.shape
    scale = expected.abs().amax(dim=1, keepdim=True).clamp(min=1)
    assert ((found - expected).abs() <= bound * scale).all()


def test_numbers_worked_by_hand() -> None:
    prior, box = torch.tensor([0.0, 0, 10, 20]), torch.tensor([2.0, 3, 14, 23])
    assert encode_deltas(prior, box).tolist() == pytest.approx([0.3, 0.15, 0.182322, 0], abs=1e-6)
    distances = encode_distances(torch.tensor([6.0, 10.0]), box)
    assert distances.tolist() == [4, 7, 8, 13]
    assert float(centreness(distances)) == pytest.approx(0.518875, abs=1e-6)
    assert float(centreness(torch.tensor([3.0, 2, 3, 2]))) == 1
    assert centreness(torch.tensor([[0.0, 2, 3, 2], [-1, 2, 3, 2], [0, 0, 0, 0]])).tolist() == [0, 0, 0]


@run_each("case", range(10))
def test_deltas_are_the_published_ones(shared: Path, case: int) -> None:
    golden = load_golden(shared, "box_coding", area="detect")
    stored = {key.partition("/")[2]: golden.tensor(key) for key in golden.arrays if key.startswith(f"delta{case}/")}
    weights = tuple(golden.info["cases"][case]["weights"])
    anchors, boxes, drawn = stored["anchors"], stored["gt"], stored["random_deltas"]
    assert_near(encode_deltas(anchors, boxes, weights=weights), stored["deltas"], 1e-12)
    for name, deltas in (("decoded", drawn), ("decoded_of_deltas", stored["deltas"])):  # theirs decodes in float32
        assert_near(decode_deltas(anchors.float(), deltas.float(), weights=weights), stored[name], 1e-6)
    old = encode_deltas(anchors + PLUS_ONE, boxes + PLUS_ONE)
    assert_near(old, stored["crowddet_plus1_deltas"], 1e-12)
    assert_near(decode_deltas(anchors + PLUS_ONE, drawn), stored["crowddet_plus1_decoded"], 1e-12)


@run_each("case", range(10))
def test_distances_are_the_published_ones(shared: Path, case: int) -> None:
    """Theirs may be in sizes of the prior, ours are in strides; theirs decode negative distances as 0."""
    golden = load_golden(shared, "box_coding", area="detect")
    stored = {key.partition("/")[2]: golden.tensor(key) for key in golden.arrays if key.startswith(f"ltrb{case}/")}
    points = box_centres(stored["source"])
    unit = box_sizes(stored["source"]).repeat(1, 2) if golden.info["ltrb_normalised"][case] else 1.0
    found = encode_distances(points, stored["gt"], strides=unit)
    assert_near(found, stored["ltrb"], 1e-12)
    assert_near(decode_distances(points, found.relu(), strides=unit), stored["decoded"], 1e-12)
    assert_near(centreness(found)[:, None], stored["centerness"][:, None], 1e-12)


def test_decoding_is_the_inverse_of_encoding() -> None:
    priors, boxes = aligned_pairs()
    weights = (10.0, 10.0, 5.0, 5.0)
    assert (decode_deltas(priors, encode_deltas(priors, boxes)) - boxes).abs().max() < 1e-13
    deltas = encode_deltas(priors, boxes, weights=weights)
    assert (decode_deltas(priors, deltas, weights=weights) - boxes).abs().max() < 1e-13
    strides = torch.tensor([[8.0], [16.0]]).repeat(20, 1)
    distances = encode_distances(box_centres(priors), boxes, strides=strides)
    assert (decode_distances(box_centres(priors), distances, strides=strides) - boxes).abs().max() < 1e-13


def test_decoded_boxes_are_bounded_and_finite() -> None:
    prior = torch.tensor([0.0, 0, 16, 16])
    found = decode_deltas(prior, torch.tensor([0, 0, 1e4, -1e4]))
    assert found.tolist() == pytest.approx([-492, 8, 508, 8])
    assert box_sizes(decode_deltas(prior, torch.tensor([0, 0, math.log(62), 0])))[0] == pytest.approx(62 * 16)
    assert encode_deltas(prior, torch.tensor([3.0, 3, 3, 3])).isfinite().all()
    half = decode_deltas(prior.half(), torch.full((4,), 6.0).half())
    assert half.dtype == torch.float32
    assert half.isfinite().all()


def test_codings_are_differentiable() -> None:
    priors, boxes = aligned_pairs(5)
    deltas = encode_deltas(priors, boxes).requires_grad_()
    assert torch.autograd.gradcheck(decode_deltas, (priors, deltas))
    points = box_centres(priors)
    distances = encode_distances(points, boxes).detach().requires_grad_()
    assert torch.autograd.gradcheck(decode_distances, (points, distances))
