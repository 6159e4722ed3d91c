"""Synchronised batch norm: parts on several processes against torch's batch norm of the whole batch, in float64."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from sightline.layers.batch_norm import SynchronisedBatchNorm, convert_sync_batchnorm
from tests.cases import run_each

BOUND = 1e-12


class Ranks:
    """Threads that play processes: each reduction meets at a barrier, and autograd runs through the joint sum."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=10)
        self._parts: list[Tensor | None] = [None] * size

    def reducer(self, rank: int) -> Callable[[Tensor], Tensor]:
        def all_reduce_sum(tensor: Tensor) -> Tensor:
            self._parts[rank] = tensor
            self._barrier.wait()
            total = torch.stack([part for part in self._parts if part is not None]).sum(0)
            self._barrier.wait()
            return total

        return all_reduce_sum

    def run(self, models: Sequence[nn.Module], parts: Sequence[Tensor]) -> list[Tensor]:
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(lambda model, part: model(part), models, parts))


def replicas(model: nn.Module, ranks: Ranks) -> list[nn.Module]:
    return [convert_sync_batchnorm(model, ranks.reducer(rank)) for rank in range(ranks.size)]


def network(norm: nn.Module, axes: int) -> nn.Module:
    """Something before the batch norm, so that gradients must pass through the statistics."""
    conv = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    layer = conv(4, 5) if axes == 0 else conv(4, 5, 1)
    return nn.Sequential(layer, norm, nn.Tanh()).double()


CASES = [(nn.BatchNorm1d, ()), (nn.BatchNorm1d, (7,)), (nn.BatchNorm2d, (3, 2)), (nn.BatchNorm3d, (2, 1, 3))]


@run_each("sizes", [(3, 3), (1, 5), (5, 1), (2, 4, 3), (0, 4)])
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
    torch.testing.assert_close(found, expected, rtol=0, atol=BOUND)

    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=BOUND)
    for name, parameter in whole.named_parameters():
        total = sum(dict(model.named_parameters())[name].grad for model in models)
        torch.testing.assert_close(total, parameter.grad, rtol=0, atol=10 * BOUND)  # sums over the whole batch
    for model in models:
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=BOUND)


def test_alone_it_is_batch_norm_in_both_modes() -> None:
    theirs, ours = nn.BatchNorm1d(5).double(), SynchronisedBatchNorm(5).double()
    batch = torch.randn(6, 5, 3).double()
    for _ in range(3):
        torch.testing.assert_close(ours(batch), theirs(batch), rtol=0, atol=BOUND)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.eval().load_state_dict(theirs.state_dict())
    assert torch.equal(ours(batch), theirs.eval()(batch))


@pytest.mark.parametrize(
    "options", [{"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"momentum": 0.3, "eps": 0.1}]
)
def test_options_are_taken_over(options: dict) -> None:
    theirs = nn.BatchNorm1d(5, **options).double()
    ours = convert_sync_batchnorm(theirs, lambda tensor: tensor)
    for _ in range(3):
        batch = torch.randn(6, 5).double()
        torch.testing.assert_close(ours(batch), theirs(batch), rtol=0, atol=BOUND)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=BOUND)
    torch.testing.assert_close(ours.eval()(batch), theirs.eval()(batch), rtol=0, atol=BOUND)


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


def test_gradients_agree_with_finite_differences() -> None:
    norm = SynchronisedBatchNorm(3, track_running_stats=False).double()
    assert torch.autograd.gradcheck(norm, (torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True),))


def test_one_value_over_all_processes_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"^1: expected more than 1 value per channel over all processes.*found 1 "):
        convert_sync_batchnorm(model, lambda tensor: tensor)(torch.randn(1, 3))


def test_one_value_here_and_one_there_are_enough() -> None:
    ranks = Ranks(2)
    outputs = ranks.run(replicas(nn.BatchNorm1d(4), ranks), torch.randn(2, 4).split(1))
    assert torch.cat(outputs).isfinite().all()


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
