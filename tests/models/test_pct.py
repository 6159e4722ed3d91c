"""PCT and its simpler forms against their published sizes, three public implementations, and what they claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.losses.classification import CrossEntropy
from sightline.models.pct import PCT, NaivePCT, PCTParts, SimplePCT
from sightline.published.translation import convert_state_dict, translate_key
from tests.golden_parity import (
    Golden,
    assert_gradients_and_buffers,
    assert_near_largest,
    assert_outputs,
    cloud_inputs,
    each_mode,
    load_golden,
    stored_part,
)
from tests.layers.passes import BOUND, assert_passes_agree, run

GOLDEN: dict[str, tuple[str, float, dict[str, Any]]] = {
    "pct_cls": ("strawberry_pct_cls", 0.2, {"num_classes": 40, "in_channels": 3, "min_squared_norm": 1e-3}),
    "pct_cls_posenc": (
        "strawberry_pct_cls_new",
        0.2,
        {"num_classes": 15, "in_channels": 3, "min_squared_norm": 1e-3, "codes_positions": True},
    ),
    "pct_menghao_sjtu": (
        "qq456cvb_pct_cls",
        0.0,
        {"num_classes": 40, "in_channels": 6, "head_activation": "relu"},
    ),
}
"""Per file: the layout, the label smoothing of its loss, and the arguments of the model."""
TAPS = {"group stage 1": "groups.0", "group stage 2": "groups.1", "fuse": "fuse", "linear1 raw": "head.0.linear"}
TAPS |= {f"attention layer {number}": f"attend.layers.{number - 1}" for number in (1, 4)}


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("num_classes", "in_channels", "expected"),
    [(40, 3, 2_876_136), (15, 3, 2_869_711), (10, 3, 2_868_426), (40, 6, 2_876_328)],
)
def test_size_is_the_published_one(num_classes: int, in_channels: int, expected: int) -> None:
    assert num_parameters(PCT(num_classes=num_classes, in_channels=in_channels)) == expected


def test_size_with_coded_positions_is_the_published_one() -> None:
    assert num_parameters(PCT(num_classes=15, in_channels=3, codes_positions=True)) == 2_804_687


@pytest.mark.parametrize("model", [SimplePCT, NaivePCT])
def test_simple_sizes_are_the_published_one(model: type[nn.Module]) -> None:
    assert num_parameters(model(num_classes=40, in_channels=3)) == 1_360_552


def points_and_features(golden: Golden) -> tuple[Tensor, Tensor | None]:
    """Channels last, whichever way round the reference takes them."""
    channels = golden.tensor("in.x")
    if channels.shape[1] < channels.shape[2]:
        channels = channels.mT
    return channels[..., :3], channels[..., 3:] if channels.shape[-1] > 3 else None


def tap(model: nn.Module, golden: Golden) -> dict[str, Tensor]:
    """What passes the places that the file names, (B, C, N) as there; filled by the next forward pass."""
    seen: dict[str, Tensor] = {}

    def keep(label: str, value: Any) -> None:
        value = value[-1] if isinstance(value, tuple) else value
        seen.setdefault(label, value.mT if value.ndim == 3 else value)

    for label in golden.info["eval_mids"]:
        place = next(module for tapped, module in TAPS.items() if label.startswith(f"eval.mid.{tapped}"))
        hook = lambda module, given, value, label=label: keep(label, value)  # noqa: E731
        model.get_submodule(place).register_forward_hook(hook)
    return seen


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "fused"), [*((name, True) for name in GOLDEN), pytest.param("pct_cls", False, marks=pytest.mark.long)]
)
def test_agrees_with_the_reference(shared: Path, name: str, fused: bool) -> None:
    layout, smoothing, arguments = GOLDEN[name]
    golden = load_golden(shared, name)
    model = PCT(**arguments, fused=fused).double()
    model.load_state_dict(convert_state_dict(golden.state(), layout))
    loss = CrossEntropy(num_classes=arguments["num_classes"], label_smoothing=smoothing)
    (points, features), label = points_and_features(golden), golden.tensor("in.label")

    seen = tap(model, golden)
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            logits = model(points=points, features=features)["logits"]
        mean_loss = loss(logits=logits, label=label) / loss.count(label=label)
        assert_outputs(golden, mode, {"logits": logits}, mean_loss)
    mean_loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, layout))
    for mid, value in seen.items():
        assert_near_largest(stored_part(golden, mid, value.contiguous()), golden.tensor(mid), 1e-10, mid)


def test_size_for_parts_is_the_published_one() -> None:
    assert num_parameters(PCTParts(num_classes=50, in_channels=3, num_categories=16)) == 2_446_130


@pytest.mark.shared
@pytest.mark.parametrize("fused", [True, False])
def test_parts_agree_with_the_reference(shared: Path, fused: bool) -> None:
    golden, layout = load_golden(shared, "pct_partseg_jittor"), "menghaoguo_pct_parts"
    model = PCTParts(num_classes=50, in_channels=3, num_categories=16, fused=fused).double()
    model.load_state_dict(convert_state_dict(golden.state(), layout))
    loss = CrossEntropy(num_classes=50, label_smoothing=0.2)
    given, label = cloud_inputs(golden), golden.tensor("in.label")

    seen: dict[str, Tensor] = {}

    def keep(tapped: str, value: Tensor) -> None:
        seen.setdefault(tapped, value)

    taps = {"attention layer 1": "attend.layers.0", "attention layer 4": "attend.layers.3", "fuse": "fuse"}
    for tapped, place in (taps | {"label embedding (B,64,1)": "category"}).items():
        hook = lambda module, given, value, tapped=tapped: keep(tapped, value)  # noqa: E731
        model.get_submodule(place).register_forward_hook(hook)
    for mode in each_mode(model):
        with torch.set_grad_enabled(mode == "train"):
            logits = model(**given)["logits"]
        mean_loss = loss(logits=logits, label=label) / loss.count(label=label)
        assert_outputs(golden, mode, {"logits": logits.mT}, mean_loss)
    mean_loss.backward()
    assert_gradients_and_buffers(golden, model, lambda key: translate_key(key, layout))
    for mid in golden.info["eval_mids"]:
        value = seen[mid.removeprefix("eval.mid.")]
        value = value.mT.contiguous() if value.ndim == 3 else value[..., None]
        assert_near_largest(stored_part(golden, mid, value), golden.tensor(mid), 1e-10, mid)


def small(**changes: Any) -> PCT:
    arguments: dict[str, Any] = {"num_classes": 4, "in_channels": 3, "num_centres": (16, 8), "num_neighbours": 5}
    return PCT(**arguments | changes).double().eval()


def pointwise(kind: type[nn.Module]) -> nn.Module:
    return kind(num_classes=4, in_channels=3).double().eval()


POINTWISE = pytest.mark.parametrize("kind", [SimplePCT, NaivePCT])


def test_plain_groups_give_the_same_step() -> None:
    """Outputs, gradients and running statistics of a step in training, float64, to 1e-9."""
    fused, plain = small(in_channels=5, dropout=0.0).train(), small(in_channels=5, dropout=0.0, fused=False).train()
    plain.load_state_dict(fused.state_dict())
    given = {"points": torch.randn(3, 30, 3).double(), "features": torch.randn(3, 30, 2).double()}
    weight = torch.randn(3, 4, dtype=torch.float64)
    assert_passes_agree(run(fused, given, weight), run(plain, given, weight), BOUND)


def test_order_of_points_after_the_first_does_not_matter() -> None:
    """Sampling starts at the first point; distances do not tie. Sums of some hundred terms in another order."""
    model, points = small(), torch.randn(2, 40, 3, dtype=torch.float64)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(39)])
    torch.testing.assert_close(
        model(points=points[:, order])["logits"], model(points=points)["logits"], atol=1e-11, rtol=0
    )


@POINTWISE
def test_order_of_points_does_not_matter(kind: type[nn.Module]) -> None:
    model, points = pointwise(kind), torch.randn(2, 40, 3, dtype=torch.float64)
    shuffled = points[:, torch.randperm(40)]
    torch.testing.assert_close(model(points=shuffled)["logits"], model(points=points)["logits"], atol=1e-11, rtol=0)


@POINTWISE
def test_points_that_stand_twice_count_no_more(kind: type[nn.Module]) -> None:
    """Averages and maxima do not see that every point is there twice, but for the 1e-9 that guards a sum."""
    model, points = pointwise(kind), torch.randn(2, 20, 3, dtype=torch.float64)
    twice = torch.cat([points, points], dim=1)
    torch.testing.assert_close(model(points=twice)["logits"], model(points=points)["logits"], atol=1e-7, rtol=0)


def test_copies_of_one_point_give_numbers() -> None:
    """What `drop_points` leaves: most points are copies of the first; gradients are finite too."""
    model, points = small().train(), torch.randn(2, 40, 3, dtype=torch.float64)
    points[:, 5:] = points[:, :1]
    logits = model(points=points)["logits"]
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("fused", [True, False])
def test_neighbours_in_proportion_see_repeated_points_as_one(fused: bool) -> None:
    """Of all points the groups hold as many copies as there are; those of samples are of distinct points before."""
    model = small(neighbours_at=24, fused=fused).eval()
    points = torch.rand(2, 24, 3, dtype=torch.float64)
    repeated = points.repeat_interleave(3, dim=1)
    expected = model(points=points)["logits"]
    torch.testing.assert_close(model(points=repeated)["logits"], expected, rtol=1e-12, atol=1e-12)
    group: Any = model.groups[0]
    group.neighbours_at = None
    assert not torch.allclose(model(points=repeated)["logits"], expected)


def test_neighbours_meant_for_fewer_points_than_neighbours_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"neighbours_at: found 2, expected at least num_neighbours="):
        small(neighbours_at=2)


def test_one_point_and_one_sample() -> None:
    model = small(num_centres=(1, 1), num_neighbours=1)
    assert model(points=torch.randn(1, 1, 3, dtype=torch.float64))["logits"].isfinite().all()


@POINTWISE
def test_one_point_is_enough_without_sampling(kind: type[nn.Module]) -> None:
    assert pointwise(kind)(points=torch.randn(1, 1, 3, dtype=torch.float64))["logits"].isfinite().all()


def test_fewer_points_than_samples_are_refused_with_the_number() -> None:
    with pytest.raises(
        ValueError, match=r"clouds of 500 points, of which 512 .*at least 512 points or lower num_centres"
    ):
        PCT(num_classes=4, in_channels=3)(points=torch.randn(2, 500, 3))


def test_more_neighbours_than_points_are_refused_with_the_number() -> None:
    with pytest.raises(ValueError, match=r"32 neighbours asked for in clouds of 20 points"):
        small(num_neighbours=32)(points=torch.randn(2, 20, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", [PCT, SimplePCT, NaivePCT])
def test_nan_is_refused_with_its_place(kind: type[nn.Module]) -> None:
    model, points = (small() if kind is PCT else pointwise(kind)), torch.randn(2, 20, 3, dtype=torch.float64)
    points[1, 7, 2] = torch.nan
    with pytest.raises(ValueError, match=r"points\[1\]: point 7 is .*nan"):
        model(points=points)
