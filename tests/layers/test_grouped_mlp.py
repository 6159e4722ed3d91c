"""Networks over groups: the quick form against the plain one, and both against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sightline import numba_kernels
from sightline.layers.group_kernels import extremes_and_sums, group_gradients, group_sums
from sightline.layers.set_abstraction import GroupedMLP, PlainGroupedMLP
from tests.layers.passes import BOUND, assert_passes_agree, assert_processes_agree, run, unsettle

WIDTHS = (6, 7, 5)


def pair_of_networks(
    widths: tuple[int, ...] = WIDTHS, negative_slope: float = 0.0
) -> tuple[PlainGroupedMLP, GroupedMLP]:
    """One state, both forms, float64; half of the norms' weights are negative, and one of each is exactly 0."""
    torch.manual_seed(0)
    plain, quick = (
        kind(in_channels=3, widths=widths, has_bias=True, negative_slope=negative_slope).double()
        for kind in (PlainGroupedMLP, GroupedMLP)
    )
    unsettle(plain)
    quick.load_state_dict(plain.state_dict())
    return plain, quick


def groups(num_clouds: int = 3, num_points: int = 30, num_groups: int = 11, num_members: int = 4) -> dict[str, Tensor]:
    """Maps of points and centres 30 deviations off the origin, and any members, some of them twice."""
    return {
        "point_terms": torch.randn(num_clouds, num_points, WIDTHS[0], dtype=torch.float64) + 30,
        "of_centres": torch.randn(num_clouds, num_groups, WIDTHS[0], dtype=torch.float64),
        "index": torch.randint(0, num_points, (num_clouds, num_groups, num_members)),
    }


@pytest.mark.parametrize("has_numba", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("negative_slope", [0.0, 0.2])
@pytest.mark.parametrize("widths", [WIDTHS, (6, 5)])
def test_quick_form_agrees_with_the_plain_one(
    widths: tuple[int, ...],
    negative_slope: float,
    is_training: bool,
    has_numba: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    plain, quick = (network.train(is_training) for network in pair_of_networks(widths, negative_slope))
    given, weight = groups(), torch.randn(3, 11, 5, dtype=torch.float64)
    assert_passes_agree(run(quick, given, weight), run(plain, given, weight), BOUND)


def test_one_member_in_every_group() -> None:
    plain, quick = pair_of_networks()
    given, weight = groups(num_members=1), torch.randn(3, 11, 5, dtype=torch.float64)
    assert_passes_agree(run(quick, given, weight), run(plain, given, weight), BOUND)


def test_gradients_agree_with_finite_differences() -> None:
    _, quick = pair_of_networks()
    given = groups(num_clouds=2, num_points=5, num_groups=3, num_members=3)
    index, own = given["index"], [given[name].requires_grad_() for name in ("point_terms", "of_centres")]
    assert torch.autograd.gradcheck(lambda points, centres: quick(points, centres, index), own)


def test_float32_errs_no_more_than_the_plain_form() -> None:
    """Far from the origin the plain form's own error against float64 is the yardstick: both round the same inputs."""
    plain, _ = pair_of_networks()
    given, weight = groups(), torch.randn(3, 11, 5, dtype=torch.float64)
    given = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    exact = run(plain, {name: v.double() if v.is_floating_point() else v for name, v in given.items()}, weight)
    errors = []
    for network in (network.float() for network in pair_of_networks()):
        found = run(network, given, weight.float())
        errors.append((found.output.double() - exact.output).abs().max().item())
    assert errors[1] <= 2 * errors[0]  # as good, give or take the luck of rounding


def test_half_precision_takes_the_plain_form() -> None:
    plain, quick = (network.bfloat16() for network in pair_of_networks())
    given = {name: v.bfloat16() if v.is_floating_point() else v for name, v in groups().items()}
    assert torch.equal(quick(**given), plain(**given))


@pytest.mark.parametrize("is_training", [True, False])
def test_nan_is_not_lost_in_the_maximum(is_training: bool) -> None:
    """One member's NaN is its group's answer in eval, as it is in the plain form; in training it is everyone's."""
    given = groups()
    given["point_terms"][1, 7] = torch.nan
    given["index"][1, 4, 2] = 7
    plain, quick = (network.train(is_training) for network in pair_of_networks())
    assert torch.equal(quick(**given).isnan(), plain(**given).isnan())
    assert quick(**given).isnan().any()


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (0, 2)])
def test_statistics_of_all_processes(sizes: tuple[int, ...]) -> None:
    """Parts on several processes, uneven or empty, against the plain form of the whole batch.

    Without a layer between the first and the last: that one is torch's own, and threads cannot play its backward pass.
    """
    plain, quick = pair_of_networks((6, 5))
    given, weight = groups(num_clouds=sum(sizes)), torch.randn(sum(sizes), 11, 5, dtype=torch.float64)
    expected = run(plain, given, weight)
    assert_processes_agree(quick, given, weight, sizes, expected)


def test_the_same_bits_for_any_number_of_threads() -> None:
    given = {name: v.float() if v.is_floating_point() else v for name, v in groups(num_clouds=5).items()}
    values = torch.randn(5, 11, 4, 6)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            parts = [*group_sums(**given, origin=torch.ones(6))]
            parts += extremes_and_sums(values, sign=torch.ones(6), origin=torch.zeros(6))
            parts += group_gradients(values, values, **given)
            found.append(parts)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


def test_one_value_per_channel_is_refused() -> None:
    _, quick = pair_of_networks()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        quick(**groups(num_clouds=1, num_groups=1, num_members=1))


def test_gradients_are_those_of_the_weights_that_were_used() -> None:
    """Weights that stand in for the network's own during the forward pass alone, as meta-learning has them."""
    networks, given = pair_of_networks(), groups()
    weights = {name: torch.randn_like(value).requires_grad_() for name, value in networks[0].named_parameters()}
    del weights["layers.0.linear.weight"], weights["layers.0.linear.bias"]  # callers apply them
    plain, quick = (
        torch.autograd.grad(
            torch.func.functional_call(network, weights, (), given).square().sum(), list(weights.values())
        )
        for network in networks
    )
    largest = max(gradient.abs().max().item() for gradient in plain)
    for found, expected in zip(quick, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=BOUND, atol=BOUND * largest)


def test_members_that_leave_the_cloud_are_refused() -> None:
    _, quick = pair_of_networks()
    given = groups()
    with pytest.raises(ValueError, match=r"rows 0\.\.30 named in clouds of 30 points"):
        quick(**given | {"index": torch.tensor([0, 30]).expand(3, 11, 2)})
    with pytest.raises(ValueError, match=r"expected \(3, 11, K\)"):
        quick(**given | {"index": given["index"][:, :4]})
    with pytest.raises(ValueError, match=r"of_centres .* do not go with points"):
        quick(**given | {"of_centres": given["of_centres"][:1]})


def test_minus_infinity_is_rectified_to_zero() -> None:
    plain, quick = (network.eval() for network in pair_of_networks())
    given = groups()
    given["index"][0, 0] = 3
    given["point_terms"][0, 3, int(plain.layers[0].norm.weight.argmax())] = -torch.inf  # type: ignore[union-attr, operator]
    torch.testing.assert_close(quick(**given), plain(**given), rtol=BOUND, atol=BOUND)
