"""The usual forms against independent references: they are what speed is told against, so they must be right."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from benchmarks import networks, textbook
from benchmarks.textbook import TextbookPointTransformer
from sightline.bench.networks import IN_FLOAT64, make_parts
from tests.marks import long_but


@pytest.fixture
def clouds() -> torch.Tensor:
    return torch.rand((3, 200, 3), generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def test_both_forms_of_neighbours_agree_with_scipy(clouds: torch.Tensor) -> None:
    """In float64: random distances do not tie, and the expansion's 1e-15 is far below their gaps of 1e-5."""
    expected = np.stack([cKDTree(cloud).query(cloud, k=9)[1] for cloud in clouds.numpy()])
    assert torch.equal(
        textbook.neighbours_by_topk(clouds.transpose(1, 2), 9)[..., 1:], torch.from_numpy(expected)[..., 1:]
    )
    assert torch.equal(textbook.neighbours_by_topk_in_blocks(clouds, 9)[..., 1:], torch.from_numpy(expected)[..., 1:])


def test_blocks_of_queries_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch, clouds: torch.Tensor) -> None:
    whole = textbook.neighbours_by_topk_in_blocks(clouds, 5)
    monkeypatch.setattr(textbook, "_CHUNK_SIZE", 37)
    assert torch.equal(textbook.neighbours_by_topk_in_blocks(clouds, 5), whole)


def test_farthest_points_of_a_line_worked_by_hand() -> None:
    """At 0 1 2 7 10, from 2: farthest is 10; then 0 and 7 are 2 and 3 away from a chosen one, so 7; then 0; then 1."""
    line = torch.tensor([[[0.0], [1.0], [2.0], [7.0], [10.0]]])
    assert textbook.masked_farthest_points(line, 5, 2).tolist() == [[2, 4, 3, 0, 1]]


def test_balls_agree_with_a_search_by_numpy(clouds: torch.Tensor) -> None:
    centres = clouds[:, :20]
    found = textbook.first_in_ball(clouds, centres, 0.25, 6)
    for cloud, places, rows in zip(clouds.numpy(), centres.numpy(), found.numpy(), strict=True):
        for centre, row in zip(places, rows, strict=True):
            inside = np.flatnonzero(np.linalg.norm(cloud - centre, axis=1) <= 0.25)[:6]
            assert row.tolist() == [*inside, *[inside[0]] * (6 - len(inside))]


def test_interpolation_agrees_with_numpy(clouds: torch.Tensor) -> None:
    features, queries = clouds.flip(1), clouds[:, :30] + 0.01
    found = textbook.interpolate_three(features, clouds, queries).numpy()
    for cloud in range(len(clouds)):
        distance, index = cKDTree(clouds[cloud]).query(queries[cloud], k=3)
        weight = 1 / (distance**2 + 1e-8)
        expected = (features[cloud].numpy()[index] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
        np.testing.assert_allclose(found[cloud], expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "points"), long_but([("dgcnn", 64)], [("dgcnn", 64), ("pct", 512), ("pointnet2", 512)])
)
def test_networks_agree_with_ours_in_float64(name: str, points: int) -> None:
    """Logits in training, where batch norm sees the batch; the benchmark compares gradients as well."""
    kind, theirs = networks.MODELS[name]
    inputs: dict[str, Any] = IN_FLOAT64.narrow(networks.make_inputs(kind)(batch=2, points=points))
    with torch.no_grad():
        found, expected = (
            build(inputs["model"]).train()(points=inputs["points"])["logits"] for build in (theirs, copy.deepcopy)
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.long
def test_the_point_transformer_agrees_with_ours_in_float64() -> None:
    """Logits in training, and the gradient of every weight, parameters in the same order."""
    inputs = IN_FLOAT64.narrow(make_parts(batch=2, points=512))
    forms = [build(inputs["model"]).train() for build in (TextbookPointTransformer, copy.deepcopy)]
    found, expected = (form(points=inputs["points"])["logits"] for form in forms)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.detach().abs().max()))
    for logits in (found, expected):
        logits.square().sum().backward()
    largest = max(float(each.grad.abs().max()) for each in forms[1].parameters() if each.grad is not None)
    for one, two in zip(*(form.parameters() for form in forms), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-9 * largest)


def test_parameters_stand_in_the_same_order() -> None:
    """So the gradients are compared pair by pair."""
    for kind, theirs in networks.MODELS.values():
        ours = kind(num_classes=4, in_channels=3)
        pairs = zip(ours.parameters(), theirs(ours).parameters(), strict=True)
        assert all(torch.equal(one.flatten(), two.flatten()) for one, two in pairs)
