"""The point-wise step, synchronised batch norm and stochastic depth, against torch and by hand."""

from __future__ import annotations

import copy
import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from sightline.layers.batch_norm import SynchronisedBatchNorm, convert_sync_batchnorm
from sightline.layers.mlp import JoinedLinearNorm, LinearNorm
from sightline.layers.stochastic_depth import StochasticDepth
from tests.cases import run_each
from tests.layers.passes import BOUND, Ranks, assert_passes_agree, run, unsettle


def test_is_a_convolution_of_size_one_with_batch_norm() -> None:
    ours = LinearNorm(in_channels=5, out_channels=7, has_bias=True, activation=nn.ReLU()).double()
    conv, norm = nn.Conv2d(5, 7, 1).double(), nn.BatchNorm2d(7).double()
    conv.load_state_dict({"weight": ours.linear.weight[:, :, None, None], "bias": ours.linear.bias})
    values = torch.randn(3, 4, 6, 5).double()
    expected = norm(conv(values.permute(0, 3, 1, 2))).relu().permute(0, 2, 3, 1)
    # Sums of 5 and of 72 terms in another order, divided by a standard deviation near 1.
    torch.testing.assert_close(ours(values), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(ours.norm.running_var, norm.running_var, rtol=1e-13, atol=0)


@run_each("is_training", [True, False])
@run_each("has_bias", [True, False])
@run_each("first", ["global_features", "point_features"])
def test_what_a_cloud_has_in_common_need_not_be_repeated(
    first: Literal["global_features", "point_features"], has_bias: bool, is_training: bool
) -> None:
    """Both forms give the same pass; the plain one is a `LinearNorm` over rows put together by hand."""
    plain, fused = (
        JoinedLinearNorm(in_channels=7, out_channels=6, has_bias=has_bias, first=first, fused=fused).double()
        for fused in (False, True)
    )
    unsettle(plain)
    fused.load_state_dict(plain.state_dict())
    given = {"global_features": torch.randn(3, 4).double(), "point_features": torch.randn(3, 5, 3).double()}
    weight = torch.randn(3, 5, 6).double()
    found, expected = (run(layer.train(is_training), given, weight) for layer in (fused, plain))
    assert_passes_agree(found, expected, BOUND)
    repeated = given["global_features"][:, None].repeat(1, 5, 1)
    parts = (repeated, given["point_features"]) if first == "global_features" else (given["point_features"], repeated)
    by_hand = LinearNorm.forward(plain.eval(), torch.cat(parts, dim=-1))
    assert torch.equal(plain(**given), by_hand)


# --- synchronised batch norm ------------------------------------------------------------------------------------------


SAME = 1e-12


def replicas(model: nn.Module, ranks: Ranks) -> list[nn.Module]:
    return [convert_sync_batchnorm(model, ranks.reducer(rank)) for rank in range(ranks.size)]


def network(norm: nn.Module, axes: int) -> nn.Module:
    """Something before the batch norm, so that gradients must pass through the statistics."""
    conv = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    layer = conv(4, 5) if axes == 0 else conv(4, 5, 1)
    return nn.Sequential(layer, norm, nn.Tanh()).double()


CASES = [(nn.BatchNorm1d, ()), (nn.BatchNorm1d, (7,)), (nn.BatchNorm2d, (3, 2)), (nn.BatchNorm3d, (2, 1, 3))]


@run_each("sizes", [(3, 3), (1, 5), (5, 1), (1, 1), (2, 4, 3), (0, 4)])
@run_each("kind, shape", CASES)
def test_parts_equal_the_whole_batch(kind: type[nn.Module], shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    whole = network(kind(5), len(shape))
    ranks = Ranks(len(sizes))
    models = replicas(whole, ranks)
    batch = 3 + 2 * torch.randn(sum(sizes), 4, *shape, dtype=torch.float64)
    weight = torch.randn(sum(sizes), 5, *shape, dtype=torch.float64)
    mine, theirs = batch.clone().requires_grad_(), batch.clone().requires_grad_()

    expected = whole(theirs)
    found = torch.cat(ranks.run(models, mine.split(sizes)))
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME)

    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=SAME)
    for name, parameter in whole.named_parameters():
        total = sum(dict(model.named_parameters())[name].grad for model in models)
        torch.testing.assert_close(total, parameter.grad, rtol=0, atol=10 * SAME)  # sums over the whole batch
    for model in models:
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=SAME)


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"momentum": 0.3, "eps": 0.1}],
)
def test_options_are_taken_over(options: dict) -> None:
    theirs = nn.BatchNorm1d(5, **options).double()
    ours = convert_sync_batchnorm(theirs, lambda tensor: tensor)
    for _ in range(3):
        batch = torch.randn(6, 5).double()
        torch.testing.assert_close(ours(batch), theirs(batch), rtol=0, atol=SAME)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=SAME)
    torch.testing.assert_close(ours.eval()(batch), theirs.eval()(batch), rtol=0, atol=SAME)


def test_large_mean_does_not_cancel() -> None:
    """Mean 1e6, deviation 1, float64: E[x^2] - E[x]^2 would keep 4 digits; centred squares keep 10."""
    batch = 1e6 + torch.randn(4000, 2).double()
    found = SynchronisedBatchNorm(2, affine=False, eps=0.0).double()(batch)
    torch.testing.assert_close(found.var(dim=0, correction=0), torch.ones(2).double(), rtol=0, atol=1e-10)


def test_half_precision_keeps_its_type_and_float32_statistics() -> None:
    norm = SynchronisedBatchNorm(3)
    batch = (100 + torch.randn(512, 3)).to(torch.bfloat16)
    assert norm(batch).dtype == torch.bfloat16
    torch.testing.assert_close(norm.running_mean, 0.1 * batch.float().mean(0), rtol=1e-6, atol=0)


def test_one_value_over_all_processes_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"^1: expected more than 1 value per channel over all processes.*found 1 "):
        convert_sync_batchnorm(model, lambda tensor: tensor)(torch.randn(1, 3))


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"found the shape \(2, 5\), expected \(B, 4\)"):
        SynchronisedBatchNorm(4)(torch.randn(2, 5))


def test_synchronise_leaves_the_model_and_keeps_what_is_shared() -> None:
    shared = nn.BatchNorm1d(3)
    model = nn.ModuleDict(
        {"a": nn.Sequential(nn.Linear(3, 3), shared), "b": shared, "c": shared, "d": nn.BatchNorm2d(2)}
    )
    model["d"].eval().weight.requires_grad_(False)
    result = convert_sync_batchnorm(model, lambda tensor: tensor)
    assert type(model["b"]) is nn.BatchNorm1d
    assert isinstance(result["b"], SynchronisedBatchNorm)
    assert result["a"][1] is result["b"] is result["c"]
    assert not result["d"].training
    assert not result["d"].weight.requires_grad
    assert list(result.state_dict()) == list(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in result.state_dict().items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in result.parameters()}


def test_copies_do_not_copy_what_stands_behind_the_reducer() -> None:
    class Processes:
        def __deepcopy__(self, memo: dict) -> Processes:
            raise AssertionError("the process group must not be copied")

        def all_reduce_sum(self, tensor: Tensor) -> Tensor:
            return tensor

    model = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), Processes().all_reduce_sum)
    assert copy.deepcopy(model)(torch.randn(4, 3)).shape == (4, 3)


# --- stochastic depth -------------------------------------------------------------------------------------------------


def test_a_sample_keeps_its_whole_branch_or_nothing_of_it() -> None:
    branch = torch.rand(64, 5, 3) + 1
    kept = StochasticDepth(0.25)(branch)
    is_kept = kept.flatten(1).any(dim=1)
    assert 0 < is_kept.sum() < 64
    torch.testing.assert_close(kept[is_kept], branch[is_kept] / 0.75)
    assert not kept[~is_kept].any()


def test_the_share_that_is_left_out_is_the_one_asked_for() -> None:
    """Of 10,000 samples, within five standard deviations of a binomial count."""
    count, p = 10_000, 0.3
    left_out = int((StochasticDepth(p)(torch.ones(count, 1)) == 0).sum())
    assert abs(left_out - count * p) <= 5 * math.sqrt(count * p * (1 - p))


def test_nothing_happens_in_evaluation_or_at_probability_zero() -> None:
    branch = torch.rand(8, 2)
    state = torch.get_rng_state()
    assert StochasticDepth(0.9).eval()(branch) is branch
    assert StochasticDepth(0.0)(branch) is branch
    assert torch.equal(torch.get_rng_state(), state)


def test_all_are_left_out_at_probability_one_and_gradients_are_zero() -> None:
    branch = torch.rand(8, 2, requires_grad=True)
    left = StochasticDepth(1.0)(branch)
    left.sum().backward()
    assert not left.any()
    assert branch.grad is not None
    assert not branch.grad.any()


def test_draws_are_those_of_the_global_generator_as_dropouts_are() -> None:
    """So a run's seed and the states in its checkpoints hold for it, and its draws differ from step to step."""
    branch = torch.ones(256, 1)
    layer = StochasticDepth(0.5)
    assert isinstance(layer, nn.Dropout)
    torch.manual_seed(3)
    first, second = layer(branch), layer(branch)
    torch.manual_seed(3)
    assert torch.equal(layer(branch), first)
    assert not torch.equal(first, second)
