"""Odd but correct loops raise nothing; their broken twins, which a second blind exam asked for, are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.workbench.watch.plain.loss import judge_loss, run_batch
from tests.runtime import odd_healthy_loops as loops

_SLOW = (loops.slots_that_start_at_random, loops.a_mixture_of_probabilities_and_their_logarithm)


@pytest.mark.parametrize(
    "run", [pytest.param(run, marks=pytest.mark.long) if run in _SLOW else run for run in loops.LOOPS]
)
def test_an_odd_loop_raises_nothing(run: Callable[[], list[Any]]) -> None:
    torch.manual_seed(0)
    assert [str(finding) for finding in run()] == []


@pytest.mark.parametrize(
    ("run", "code", "cause"),
    [
        (lambda: loops.play(clears=False), "gradients-kept", "optim.grad_accumulation"),
        (lambda: loops.fine_tune(holds=False), "mode", "model.norm_mode"),
        (lambda: loops.schedule(is_factor=False), "schedule", "optim.scheduler"),
        (lambda: loops.compute_shortly(keeps_weights=False), "no-update", "model.numerics"),
    ],
    ids=["gradients of another loss", "statistics of a frozen part", "a rate as a factor", "weights in bfloat16"],
)
def test_a_broken_twin_of_a_loop_is_named(run: Callable[[], list[Any]], code: str, cause: str) -> None:
    torch.manual_seed(0)
    assert [(finding.code, finding.cause) for finding in run()] == [(code, cause)]


def judge(model: nn.Module, loss: Any, pair: Any) -> list[str]:
    passed = run_batch(model, loss, pair, torch.device("cpu"))
    return [rule.code for rule, _ in judge_loss(passed, model, loss, [pair])]


@pytest.mark.parametrize("is_broken", [True, False])
def test_padded_tokens_do_not_count(is_broken: bool) -> None:
    model, loss, pairs = loops.tag(ignored=0 if is_broken else -100)
    assert judge(model, loss, pairs[0]) == (["padded-points"] if is_broken else [])


@pytest.mark.parametrize("is_broken", [True, False])
def test_maps_are_not_read_as_rows(is_broken: bool) -> None:
    model, loss, pairs = loops.read_maps(moves=not is_broken)
    assert judge(model, loss, pairs[0]) == (["exchanged-axes"] if is_broken else [])


@pytest.mark.parametrize("is_broken", [True, False])
def test_empty_boxes_do_not_count(is_broken: bool) -> None:
    torch.manual_seed(0)
    boxes = torch.rand(8, 16, 4) * (torch.rand(8, 16, 1) < 0.2)

    def loss(predicted: Tensor, wanted: Tensor) -> Tensor:
        kept = torch.ones(8, 16, dtype=torch.bool) if is_broken else wanted[..., 2] > 0
        return F.smooth_l1_loss(predicted[kept], wanted[kept])

    model = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (16, 4)))
    assert judge(model, loss, (torch.randn(8, 4), boxes)) == (["loss-form"] if is_broken else [])


@pytest.mark.parametrize("is_broken", [True, False])
def test_a_peak_of_a_map_is_pushed_up(is_broken: bool) -> None:
    torch.manual_seed(0)
    axis = torch.arange(12.0)
    centres = torch.rand(8, 2) * 8 + 2
    centres = centres if is_broken else centres.round()
    x, y = centres[:, :1, None], centres[:, 1:, None]
    heat = torch.exp(-((axis - x) ** 2 + (axis[:, None] - y) ** 2) / 2)[:, None]

    def loss(logits: Tensor, wanted: Tensor) -> Tensor:
        p, is_peak = logits.sigmoid(), wanted.eq(1)
        low = (-(1 - p).log() * p**2 * (1 - wanted) ** 4)[~is_peak].sum()
        return low - (p.log() * (1 - p) ** 2)[is_peak].sum()

    model = nn.Conv2d(1, 1, 3, padding=1)
    assert judge(model, loss, (torch.rand(8, 1, 12, 12), heat)) == (["loss-form"] if is_broken else [])


@pytest.mark.parametrize("is_broken", [True, False])
def test_a_weight_of_a_sample_meets_its_row(is_broken: bool) -> None:
    torch.manual_seed(0)

    def loss(outputs: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        weight = target[1] if is_broken else target[1][:, None]
        return ((outputs - target[0]).abs() * weight).mean()

    pair = torch.randn(8, 5), (torch.randn(8, 8), torch.rand(8))
    assert judge(nn.Linear(5, 8), loss, pair) == (["loss-form"] if is_broken else [])


@pytest.mark.parametrize("is_broken", [True, False])
def test_degrees_are_not_read_as_radians(is_broken: bool) -> None:
    torch.manual_seed(0)
    heading = torch.linspace(0, 360, 96)[torch.randperm(96)]

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        turn = wanted if is_broken else wanted.deg2rad()
        return (outputs - torch.stack([turn.sin(), turn.cos()], dim=-1)).square().mean()

    assert judge(nn.Linear(5, 2), loss, (torch.randn(96, 5), heading)) == (["loss-form"] if is_broken else [])


@pytest.mark.parametrize("is_broken", [True, False])
def test_a_divergence_from_a_certain_teacher(is_broken: bool) -> None:
    torch.manual_seed(0)
    wanted = (torch.randn(16, 5) * 8).softmax(dim=1)  # some rows are almost one class

    def loss(logits: Tensor, wanted: Tensor) -> Tensor:
        first = logits.softmax(dim=1) if is_broken else logits.log_softmax(dim=1)
        return F.kl_div(first, wanted, reduction="batchmean")

    assert judge(nn.Linear(5, 5), loss, (torch.randn(16, 5), wanted)) == (["loss-form"] if is_broken else [])
