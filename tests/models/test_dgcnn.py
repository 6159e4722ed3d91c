"""DGCNN against its published size, the authors' code, and the symmetries it claims."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sightline.errors import ConfigError
from sightline.layers.mlp import LinearNorm
from sightline.losses.classification import CrossEntropy
from sightline.models.dgcnn import DGCNN
from sightline.published.translation import convert_state_dict, translate_key
from tests.golden_parity import (
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    each_mode,
    load_golden,
    stored_part,
)

GOLDEN = {
    "dgcnn_cls_antao": ("antao97_dgcnn_cls", {"num_classes": 40, "num_neighbours": 20, "embedding": 1024}),
    "dgcnn_cls_wang": ("wangyueft_dgcnn_cls", {"num_classes": 15, "num_neighbours": 10, "embedding": 256}),
}


def small(**changes: int) -> DGCNN:
    arguments = {"num_classes": 4, "in_channels": 3, "num_neighbours": 5, "embedding": 32} | changes
    return DGCNN(**arguments).double().eval()


@pytest.mark.parametrize(("num_classes", "expected"), [(40, 1_809_576), (15, 1_803_151), (10, 1_801_866)])
def test_size_is_the_published_one(num_classes: int, expected: int) -> None:
    model = DGCNN(num_classes=num_classes, in_channels=3)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.shared
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", GOLDEN)
def test_agrees_with_the_reference(shared: Path, name: str, fused: bool) -> None:
    layout, arguments = GOLDEN[name]
    golden = load_golden(shared, name)
    model = DGCNN(in_channels=3, fused=fused, **arguments).double()
    model.load_state_dict(convert_state_dict(golden.state(), layout))
    loss = CrossEntropy(num_classes=arguments["num_classes"], label_smoothing=0.2)
    points, label = golden.tensor("in.x").mT, golden.tensor("in.label")

    embedded = []
    model.embed.register_forward_pre_hook(
        lambda module, given: None if module.training else embedded.append(LinearNorm.forward(module, *given))
    )
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            logits = model(points=points)["logits"]
        mean_loss = loss(logits=logits, label=label) / loss.count(label=label)
        assert_outputs(golden, mode, {"logits": logits}, mean_loss)
    mean_loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, layout))
    mid = "eval.mid.conv5 (B,emb,N)"
    assert_near_largest(stored_part(golden, mid, embedded[0].mT.contiguous()), golden.tensor(mid), 1e-10, mid)


def test_order_of_points_does_not_matter() -> None:
    model, points = small(), torch.randn(2, 30, 3, dtype=torch.float64)
    shuffled = points[:, torch.randperm(30)]
    # Sums over 30 points in another order: 30 roundings of 1e-16 each, amplified less than tenfold per layer in eval.
    torch.testing.assert_close(model(points=shuffled)["logits"], model(points=points)["logits"], rtol=0, atol=1e-12)


def test_first_graph_reads_coordinates_alone() -> None:
    """Features a hundred times as large leave the first graph as it is."""
    model, points = small(in_channels=5), torch.randn(1, 20, 3, dtype=torch.float64)
    features = torch.randn(1, 20, 2, dtype=torch.float64)
    seen = []
    model.edges[0].register_forward_hook(lambda module, given, output: seen.append(given[1]))
    model(points=points, features=features)
    model(points=points, features=100 * features)
    assert torch.equal(seen[0], seen[1])


def test_one_point_and_one_sample() -> None:
    logits = small(num_neighbours=1)(points=torch.randn(1, 1, 3, dtype=torch.float64))["logits"]
    assert logits.shape == (1, 4)
    assert logits.isfinite().all()


def test_more_neighbours_than_points_is_refused() -> None:
    with pytest.raises(ValueError, match=r"5 neighbours asked for in clouds of 4 points"):
        small()(points=torch.randn(2, 4, 3, dtype=torch.float64))


@pytest.mark.parametrize("copies", [2, 4])
@pytest.mark.parametrize("fused", [True, False])
def test_neighbours_in_proportion_see_repeated_points_as_one(copies: int, fused: bool) -> None:
    torch.manual_seed(3)
    model = DGCNN(num_classes=4, in_channels=3, num_neighbours=5, neighbours_at=24, embedding=32, fused=fused)
    model = model.double().eval()
    points = torch.rand(2, 24, 3, dtype=torch.float64)
    repeated = points.repeat_interleave(copies, dim=1)
    expected = model(points=points)["logits"]
    torch.testing.assert_close(model(points=repeated)["logits"], expected, rtol=1e-12, atol=1e-12)
    model.neighbours_at = None
    assert not torch.allclose(model(points=repeated)["logits"], expected)


@pytest.mark.parametrize(
    ("num_points", "expected"), [(256, 10), (1024, 40), (512, 20), (128, 5), (2, 1), (243, 9), (244, 10)]
)
def test_neighbours_in_proportion_are_rounded(num_points: int, expected: int) -> None:
    model = small(num_neighbours=10)
    given = small(num_neighbours=expected)
    given.load_state_dict(model.state_dict())
    model.neighbours_at = 256
    points = torch.rand(1, num_points, 3, dtype=torch.float64)
    assert torch.equal(model(points=points)["logits"], given(points=points)["logits"])


def test_neighbours_meant_for_fewer_points_than_neighbours_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"neighbours_at: found 8, expected at least num_neighbours=10"):
        small(num_neighbours=10, neighbours_at=8)


def test_channels_first_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"found the shape \(2, 3, 30\), expected \(B, N, 3\).*transpose"):
        small()(points=torch.randn(2, 3, 30, dtype=torch.float64))


@pytest.mark.parametrize(("in_channels", "width"), [(6, None), (6, 2), (3, 3)])
def test_wrong_width_is_refused_with_both_shapes(in_channels: int, width: int | None) -> None:
    features = None if width is None else torch.randn(2, 30, width, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"features: found .*expected \(2, 30, {in_channels - 3}\)"):
        small(in_channels=in_channels)(points=torch.randn(2, 30, 3, dtype=torch.float64), features=features)
