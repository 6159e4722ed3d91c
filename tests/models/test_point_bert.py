"""Point-BERT, for classes and parts: a slow reading in NumPy, the authors' numbers, what it claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.areas.clouds.models.point_bert import (
    EdgePropagation,
    MiniPointNet,
    PointBERT,
    PointBERTParts,
    group_points,
)
from sightline.layers.stochastic_depth import StochasticDepth
from sightline.layers.transformer import TransformerBlock
from sightline.published.translation import convert_state_dict, translate_key
from sightline.runs.weights import load_weights
from tests.golden_parity import (
    Golden,
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    each_mode,
    load_golden,
)
from tests.layers.passes import BOUND, assert_passes_agree, run, unsettle

# --- Point-BERT for classes -------------------------------------------------------------------------------------------


LAYOUT = "lulutang0608_point_bert_cls"
SMALL: dict[str, Any] = {"in_channels": 3, "width": 24, "depth": 2, "num_heads": 4, "num_groups": 6, "group_size": 5}


def small(**changes: Any) -> PointBERT:
    return PointBERT(**SMALL | {"num_classes": 4} | changes).double().eval()


# --- the quick form of the groups' network ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_training", [True, False])
def test_the_quick_form_of_the_groups_network_gives_the_same_step(is_training: bool) -> None:
    """Outputs, gradients and running statistics, float64, to 1e-9."""
    quick, slow = (MiniPointNet(in_channels=5, out_channels=6, fused=fused).double() for fused in (True, False))
    unsettle(quick)
    slow.load_state_dict(quick.state_dict())
    given = {"groups": torch.randn(9, 4, 5, dtype=torch.float64)}
    weight = torch.randn(9, 6, dtype=torch.float64)
    found, expected = (run(layer.train(is_training), given, weight) for layer in (quick, slow))
    assert_passes_agree(found, expected, BOUND)


# --- the authors' numbers --------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("case", ["case0", "case1", "case2"])
def test_groups_are_those_of_the_reference(shared: Path, case: str) -> None:
    golden = load_golden(shared, "fn_pointbert_group")
    num_groups, group_size = (int(golden.arrays[f"{case}.{name}"]) for name in ("num_group", "group_size"))
    points = golden.tensor(f"{case}.xyz")
    centres, index = group_points(points, num_groups=num_groups, group_size=group_size, min_squared_norm=1e-3)
    assert torch.equal(centres, golden.tensor(f"{case}.centre"))
    rows = torch.arange(len(points))[:, None, None]
    relative = points[rows, index] - centres[:, :, None]
    assert_near_largest(relative, golden.tensor(f"{case}.neighbourhood"), 1e-15, case)


def part_of(golden: Golden, prefix: str, ours: str) -> dict[str, Tensor]:
    """The state of one of the network's parts, recorded alone under names without the prefix."""
    translated = convert_state_dict({f"{prefix}.{name}": value for name, value in golden.state().items()}, LAYOUT)
    return {name.removeprefix(f"{ours}."): value for name, value in translated.items()}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "prefix", "ours", "given"),
    [
        ("pointbert_mini_pointnet", "encoder", "embed.patches", "groups"),
        ("pointbert_block", "blocks.blocks.0", "trunk.blocks.0", "x"),
    ],
)
def test_parts_agree_with_the_reference(shared: Path, name: str, prefix: str, ours: str, given: str) -> None:
    golden = load_golden(shared, name)
    values, weight = golden.tensor(f"in.{given}"), golden.tensor("in.w")
    module: nn.Module = TransformerBlock(width=24, num_heads=4, qkv_bias=False)
    if given == "groups":
        values = values.flatten(0, 1)
        module = MiniPointNet(in_channels=3, out_channels=48)
    module.double().load_state_dict(part_of(golden, prefix, ours))
    for mode in each_mode(module):
        output = module(values).view(weight.shape)
        loss = (output * weight).sum()
        assert_outputs(golden, mode, {"out": output}, loss)
    loss.backward()
    assert_gradients_and_buffers(
        golden, module, lambda key: str(translate_key(f"{prefix}.{key}", LAYOUT)).removeprefix(f"{ours}.")
    )


# --- what it claims --------------------------------------------------------------------------------------------------


def test_branches_are_left_out_more_often_in_later_blocks() -> None:
    layers = [module for module in small(depth=5, drop_path=0.2).modules() if isinstance(module, StochasticDepth)]
    assert [layer.p for layer in layers] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_groups": 31}, r"clouds of 30 points, of which 31 are to be chosen as centres; .* lower num_groups"),
        ({"group_size": 31}, r"clouds of 30 points, of which 31 are to form a group; .* lower group_size"),
    ],
)
def test_too_few_points_are_refused_with_the_argument(changes: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        small(**changes)(points=torch.randn(2, 30, 3, dtype=torch.float64))


# --- Point-BERT for parts: what it shares with the classifier ---------------------------------------------------------


def test_what_was_pretrained_for_classes_fits_by_name() -> None:
    """`init.from` a run of point_bert fills embed and trunk; propagations, edges and head are the model's own."""
    parts = PointBERTParts(num_classes=5, in_channels=3, num_categories=2, width=12)
    classes = PointBERT(num_classes=4, in_channels=3, width=12).state_dict()
    report = load_weights(parts, classes, may_be_missing=("propagations", "edges", "head"))
    given = {name for name in classes if not name.startswith("head.")}
    assert report.matched == len(given) == 160
    assert all(torch.equal(parts.state_dict()[name], classes[name]) for name in given)


def test_too_few_points_for_parts_are_refused_with_the_argument() -> None:
    model = PointBERTParts(num_classes=5, in_channels=3, num_categories=2, width=12, num_groups=8, num_centres=(64, 16))
    with pytest.raises(ValueError, match=r"clouds of 40 points, of which 64 are to be chosen .* lower num_centres"):
        model(points=torch.randn(1, 40, 3), category=torch.tensor([1]))


# --- features carried over edges --------------------------------------------------------------------------------------


def pair_of_propagations() -> tuple[EdgePropagation, EdgePropagation]:
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


def draw_levels() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        "points": draw(2, 11, 3),
        "features": draw(2, 11, 6),
        "coarse_points": draw(2, 5, 3),
        "coarse_features": draw(2, 5, 6),
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
    layer, given = pair_of_propagations()[place], draw_levels()
    found = layer(**given).detach().numpy()
    np.testing.assert_allclose(found, by_loops(layer, given), rtol=0, atol=1e-12)


def test_the_quick_form_gives_the_same_step() -> None:
    quick, plain = pair_of_propagations()
    weight = torch.randn(2, 11, 12, dtype=torch.float64)
    assert_passes_agree(run(quick, draw_levels(), weight), run(plain, draw_levels(), weight), BOUND)
