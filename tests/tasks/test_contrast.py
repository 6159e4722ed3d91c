"""The contrast task: whose rows are negatives, what several micro-batches may hold, what is refused, what is told."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.areas.contrast.task import Contrast
from sightline.contract.binding import AvailableKeys
from sightline.contract.errors import ConfigError
from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.distributed import World
from sightline.parts.losses.classification import CrossEntropy
from sightline.parts.losses.contrast import IntraModal, nt_xent
from tests.doctor.pairing import make_pairs


class Two(TypedDict):
    first: Tensor
    second: Tensor


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 4))

    def forward(self, *, points: Tensor, other_points: Tensor) -> Two:
        first, second = self.layers(torch.cat([points, other_points])).chunk(2)
        return {"first": first, "second": second}


KEYS = AvailableKeys("the data", ("points", "other_points", "sample_index"))
OUTPUTS = AvailableKeys("the model", ("first", "second"))


def task_of(model: nn.Module, negatives: str = "gathered", micro_batches: int = 1) -> Contrast:
    return Contrast(
        model=model,
        losses={"intra_modal": IntraModal()},
        batch_keys=KEYS,
        output_keys=OUTPUTS,
        micro_batches=micro_batches,
        negatives=negatives,  # type: ignore[arg-type]
    )


def batch(count: int, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    points, other = (torch.randn(count, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    return {"points": points, "other_points": other, "sample_index": torch.arange(count)}


def net(dropout: float = 0.0) -> Net:
    torch.manual_seed(0)
    return Net(dropout).double()


def test_one_batch_is_the_plain_loss_and_its_gradient() -> None:
    model = net()
    twin = copy.deepcopy(model)
    task, given = task_of(model), batch(6)
    counts, around = task.prepare(model, [given], World())
    assert int(counts["intra_modal"]) == 6
    total = task.losses(model, given, around[0])["intra_modal"]
    total.backward()
    outputs = twin(points=given["points"], other_points=given["other_points"])
    plain = nt_xent(outputs["first"], outputs["second"], temperature=0.1).sum()
    plain.backward()
    torch.testing.assert_close(total, plain, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_a_pair_without_others_does_not_count(tmp_path: Path) -> None:
    """Its loss is 0 whatever the network computes, so that it would only make a mean smaller."""
    with pytest.raises(
        ConfigError, match=r"train.batch_size: the task 'contrast' compares each sample with the others"
    ):
        make_pairs(tmp_path, "train.batch_size=1")
    task = task_of(net().eval())
    assert int(task.prepare(net(), [batch(1)], World())[0]["intra_modal"]) == 0
    assert int(task.prepare(net().eval(), [batch(1), batch(1)], World())[0]["intra_modal"]) == 2


def test_the_extra_pass_of_micro_batches_leaves_running_averages_alone() -> None:
    model = net()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    task_of(model).prepare(model, [batch(4), batch(4, seed=1)], World())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_the_extra_pass_takes_a_buffer_that_is_made_in_it() -> None:
    class Lazy(Net):
        def forward(self, *, points: Tensor, other_points: Tensor) -> Two:
            if not hasattr(self, "table"):
                self.register_buffer("table", torch.ones(3, dtype=points.dtype), persistent=False)
            return super().forward(points=points + self.table, other_points=other_points + self.table)

    model = Lazy(0.0).double()
    counts, _ = task_of(model).prepare(model, [batch(4), batch(4, seed=1)], World())
    assert int(counts["intra_modal"]) == 8
    assert torch.equal(model.get_buffer("table"), torch.ones(3, dtype=torch.float64))


def test_dropout_is_refused_where_rows_are_embedded_twice() -> None:
    task_of(net(dropout=0.3))
    with pytest.raises(ConfigError, match=r"train.micro_batches: layers.2 drops out at random"):
        task_of(net(dropout=0.3), micro_batches=2)


class Pretended(World):
    """One of two processes, the other of which holds the rows that are given."""

    def gather_rows(self, rows: Tensor, *, operation: str = "rows") -> tuple[Tensor, int]:
        return torch.cat([torch.ones_like(rows[:2]), rows.detach()]), 2

    def all_reduce_sum(self, tensors: dict, *, operation: str = "sums") -> dict:  # type: ignore[override]
        return {name: tensor + 2 for name, tensor in tensors.items()}


def test_negatives_are_everyones_or_those_of_the_process() -> None:
    model, given, world = net(), batch(4), Pretended(rank=1, size=2)
    sums = {}
    for negatives in ("gathered", "process"):
        task = task_of(model, negatives)
        counts, around = task.prepare(model, [given], world)
        assert int(counts["intra_modal"]) == 6  # the mean is over everyone's pairs, whatever their negatives
        sums[negatives] = task.losses(model, given, around[0])["intra_modal"].item()
    outputs = net()(points=given["points"], other_points=given["other_points"])
    own = nt_xent(outputs["first"], outputs["second"], temperature=0.1)
    more = {name: torch.cat([torch.ones_like(rows[:2]), rows]) for name, rows in outputs.items()}
    everyone = nt_xent(more["first"], more["second"], temperature=0.1)
    assert sums["process"] == pytest.approx(own.sum().item(), rel=1e-12)
    assert sums["gathered"] == pytest.approx(everyone[2:].sum().item(), rel=1e-12)


@pytest.mark.parametrize(("negatives", "expected"), [("gathered", 46), ("process", 10)])
def test_gauges_tell_the_true_number_of_negatives(negatives: str, expected: int) -> None:
    told = task_of(net(), negatives).step_metrics({"intra_modal": 1.5}, num_samples=24, num_processes=4)
    assert told["negatives"] == expected
    assert told["chance"] == pytest.approx(math.log(expected + 1))
    assert told["intra_modal_of_chance"] == pytest.approx(1.5 / math.log(expected + 1))


def test_gauges_of_uneven_processes_are_means_over_the_pairs() -> None:
    """11 pairs on two processes: 6 with 10 negatives each, 5 with 8."""
    told = task_of(net(), "process").step_metrics({}, num_samples=11, num_processes=2)
    assert told["negatives"] == pytest.approx((6 * 10 + 5 * 8) / 11)
    assert told["chance"] == pytest.approx((6 * math.log(11) + 5 * math.log(9)) / 11)


@pytest.mark.parametrize(("size", "micro_batches", "num_processes"), [(6, 2, 2), (10, 4, 2), (11, 3, 3), (3, 4, 2)])
def test_gauges_of_micro_batches_are_those_of_the_streams_division(
    size: int, micro_batches: int, num_processes: int
) -> None:
    """Six pairs in two micro-batches of three are two and one twice: four on the first process, two on the other."""
    plan = BatchSampler(np.arange(size), size, 0, micro_batches=micro_batches, num_processes=num_processes)
    sizes = [sum(len(part[rank]) for part in plan.step_keys(0)) for rank in range(num_processes)]
    told = task_of(net(), "process", micro_batches).step_metrics({}, num_samples=size, num_processes=num_processes)
    assert told["negatives"] == pytest.approx(sum(own * (2 * own - 2) for own in sizes) / size)


def test_features_that_the_model_would_not_compare_are_refused() -> None:
    keys = AvailableKeys("the data", (*KEYS.keys, "features"))
    with pytest.raises(ConfigError, match=r"data: the data gives points features .* leave them out \(normals: none\)"):
        Contrast(model=net(), losses={"intra_modal": IntraModal()}, batch_keys=keys, output_keys=OUTPUTS)


def test_other_losses_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"losses.cross_entropy: the task 'contrast' takes losses between rows"):
        Contrast(
            model=net(), losses={"cross_entropy": CrossEntropy(num_classes=3)}, batch_keys=KEYS, output_keys=OUTPUTS
        )
