"""Features carried over edges: a plain loop in NumPy, the quick form against the plain one, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.layers.edge_conv import EdgePropagation
from tests.layers.passes import BOUND, assert_passes_agree, run


def pair() -> tuple[EdgePropagation, EdgePropagation]:
    """The quick and the plain form with the same state, norms off their start."""
    quick, plain = (
        EdgePropagation(channels=6, hidden=8, out_channels=12, num_neighbours=3, fused=fused).double()
        for fused in (True, False)
    )
    for norm in quick.norms:
        assert isinstance(norm, nn.GroupNorm)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    plain.load_state_dict(quick.state_dict())
    return quick, plain


def clouds() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        "points": draw(2, 11, 3),
        "own": draw(2, 11, 6),
        "coarse_points": draw(2, 5, 3),
        "coarse": draw(2, 5, 6),
    }


def by_loops(layer: EdgePropagation, given: dict[str, Tensor]) -> np.ndarray:
    """Edge by edge, from the definition."""
    results = []
    for points, own, coarse_points, coarse in zip(*(value.numpy() for value in given.values()), strict=True):
        others, theirs, values = coarse_points, coarse, own
        for linear, norm in zip(layer.linears, layer.norms, strict=True):
            weight, scale, shift = (p.detach().numpy() for p in (linear.weight, norm.weight, norm.bias))
            edges = np.zeros((len(points), layer.num_neighbours, len(weight)))
            for i, point in enumerate(points):
                near = np.argsort(((others - point) ** 2).sum(axis=1), kind="stable")[: layer.num_neighbours]
                for k, j in enumerate(near):
                    edges[i, k] = weight @ np.concatenate([theirs[j] - values[i], values[i]])
            for channels in np.split(np.arange(len(weight)), 4):
                part = edges[..., channels]
                edges[..., channels] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
            edges = edges * scale + shift
            values = np.where(edges > 0, edges, 0.2 * edges).max(axis=1)
            others, theirs = points, values
        results.append(values)
    return np.stack(results)


@pytest.mark.parametrize("place", [0, 1])
def test_it_is_what_loops_over_edges_give(place: int) -> None:
    """Some hundred sums of at most 16 terms near 1, twice."""
    layer, given = pair()[place], clouds()
    found = layer(**given).detach().numpy()
    np.testing.assert_allclose(found, by_loops(layer, given), rtol=0, atol=1e-12)


def test_the_quick_form_gives_the_same_step() -> None:
    quick, plain = pair()
    weight = torch.randn(2, 11, 12, dtype=torch.float64)
    assert_passes_agree(run(quick, clouds(), weight), run(plain, clouds(), weight), BOUND)


def test_too_few_coarse_points_are_refused() -> None:
    given = clouds()
    few = given | {name: given[name][:, :2] for name in ("coarse_points", "coarse")}
    with pytest.raises(ValueError, match=r"3 neighbours asked for in clouds of 2 points"):
        pair()[0](**few)
