"""Networks that read a sample's neighbours in the batch, over seeds, and networks that only look so."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.clouds.models.pointnet import PointNetPlainOutput
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.evaluate import Evaluator
from sightline.ops import farthest_points, gather_points, nearest_neighbours
from sightline.workbench.check.checks.model.cross_sample_leak import cross_sample_leak
from sightline.workbench.check.context import Context
from tests.doctor.planting import assert_complete, assert_healthy, caught, make, with_model
from tests.doctor.segmenting import Logits, make_rooms
from tests.marks import long_but

_START_S = 1.5
"""Limit of the dry run's forward pass before a training, by which checks know that they are to be quick."""
Mix = Callable[["Mixing", Tensor], Tensor]


class Mixing(nn.Module):
    """A classifier of clouds whose code between two layers is `mix`: (B, N, C) -> (B, N, C)."""

    def __init__(self, mix: Mix, *, num_classes: int = 12, in_channels: int = 3) -> None:
        super().__init__()
        self.mix = mix
        self.first, self.head = nn.Linear(in_channels, 16), nn.Linear(16, num_classes)
        if mix in (by_batch_norm, by_running_norm):
            self.norm = nn.BatchNorm1d(16, track_running_stats=mix is by_running_norm)
        if mix in (over_the_batch, over_points):
            self.attention = nn.MultiheadAttention(16, 2, batch_first=mix is over_points)

    def forward(self, *, points: Tensor) -> PointNetPlainOutput:
        return {"logits": self.head(self.mix(self, self.first(points).relu()).amax(dim=1))}


def same(model: Mixing, values: Tensor) -> Tensor:
    return values


def centred(model: Mixing, values: Tensor) -> Tensor:
    return values - values.mean(dim=(0, 1))


def a_little(model: Mixing, values: Tensor) -> Tensor:
    """1 % of the mean over the batch."""
    return values - 0.01 * values.mean(dim=0)


def softmax_of_rows(model: Mixing, values: Tensor) -> Tensor:
    return values * values.softmax(dim=0)


def by_batch_norm(model: Mixing, values: Tensor) -> Tensor:
    """Without running statistics, so that evaluation takes the batch's."""
    return model.norm(values.flatten(0, 1)).view(values.shape)


def over_the_batch(model: Mixing, values: Tensor) -> Tensor:
    """Attention that takes the first axis for that of the sequence."""
    attended: Tensor = model.attention(values, values, values)[0]
    return attended


def across_clouds(model: Mixing, values: Tensor) -> Tensor:
    """Neighbours among the points of all clouds."""
    rows = values.reshape(1, -1, values.shape[-1])
    index = nearest_neighbours(rows, num_neighbours=4)
    return gather_points(rows, index).mean(dim=2).view(values.shape)


def reshaped(model: Mixing, values: Tensor) -> Tensor:
    """A view that takes the axes for others."""
    return values.reshape(values.shape[1], values.shape[0], -1).transpose(0, 1)


def shifted(model: Mixing, values: Tensor) -> Tensor:
    return values + 0.1 * values.roll(1, dims=0)


def by_count(model: Mixing, values: Tensor) -> Tensor:
    """Divided by how many samples there are."""
    return values / len(values)


def largest_of_all(model: Mixing, values: Tensor) -> Tensor:
    return values / values.amax()


LEAKS: list[Mix] = [
    *(centred, a_little, softmax_of_rows, by_batch_norm, over_the_batch),
    *(across_clouds, reshaped, shifted, by_count, largest_of_all),
]


def findings_of(built: TrainingSetup, limit_s: float = math.inf) -> list[Finding]:
    return list(cross_sample_leak(Context(built, World(), limit_s)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> TrainingSetup:
    return make(tmp_path_factory.mktemp("small"))


SEEDS = long_but([0], range(5))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mix", LEAKS)
def test_a_leak_is_found_over_seeds(small: TrainingSetup, mix: Mix, seed: int) -> None:
    torch.manual_seed(seed)
    (finding,) = findings_of(with_model(small, Mixing(mix)))
    assert_complete(finding)
    assert finding.cause == ("model.norm_mode" if mix is by_batch_norm else "model.cross_sample_leak")
    assert "'logits' differs" in finding.summary


@pytest.mark.parametrize("mix", LEAKS)
def test_a_leak_is_found_at_the_start_of_a_training(small: TrainingSetup, mix: Mix) -> None:
    """The dry evaluation's batch of four is compared with two of its samples, each alone."""
    for seed in range(3):
        torch.manual_seed(seed)
        (finding,) = findings_of(with_model(small, Mixing(mix)), _START_S)
        assert finding.cause == ("model.norm_mode" if mix is by_batch_norm else "model.cross_sample_leak")
        assert "in a batch with 3 others" in finding.measured


def test_a_start_passes_single_samples_alone(small: TrainingSetup) -> None:
    """After the dry run and the dry evaluation the network sees one sample at a time, three times."""
    sizes: list[int] = []

    def note(model: Mixing, values: Tensor) -> Tensor:
        sizes.append(len(values))
        return values

    context = Context(with_model(small, Mixing(note)), World(), _START_S)
    assert context.dry_evaluations
    sizes.clear()
    assert list(cross_sample_leak(context)) == []
    assert sizes == [1, 1, 1]


def test_the_layer_is_named(tmp_path: Path) -> None:
    finding = caught(with_model(make(tmp_path), Mixing(centred)), "cross-sample-leak", "model.cross_sample_leak")
    assert "first in the inputs of 'head', by the code of 'the model'" in finding.measured
    finding = caught(with_model(make(tmp_path), Mixing(over_the_batch)), "cross-sample-leak", "model.cross_sample_leak")
    assert finding.where.layer == "attention"
    finding = caught(with_model(make(tmp_path), Mixing(by_batch_norm)), "cross-sample-leak", "model.norm_mode")
    assert finding.where.layer == "norm"
    assert "track_running_stats=True" in finding.action


def among_many(model: Mixing, values: Tensor) -> Tensor:
    """Normed by the batch where it is more than the rehearsal's four."""
    return values - values.mean(dim=(0, 1)) if len(values) > 4 else values


def dealt(model: Mixing, values: Tensor) -> Tensor:
    """Even rows, then odd ones: of two samples both stay where they are."""
    return torch.cat([values[::2], values[1::2]])


def from_the_third_on(model: Mixing, values: Tensor) -> Tensor:
    return torch.cat([values[:2], values[2:] + values[:1]])


@pytest.mark.parametrize("mix", [among_many, dealt, from_the_third_on])
def test_a_leak_among_more_than_two_samples_is_found(small: TrainingSetup, mix: Mix) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        (finding,) = findings_of(with_model(small, Mixing(mix)))
        assert_complete(finding)
        assert "in a batch with 4 others" in finding.measured
    assert findings_of(with_model(dataclasses.replace(small, selection_evaluator=of_fours(small)), Mixing(mix))) == []


def of_fours(built: TrainingSetup) -> Evaluator:
    """Evaluates by four samples: no batch is larger."""
    return dataclasses.replace(built.selection_evaluator, batch_size=4)


class Remembering(Mixing):
    """Takes from its features a mean of those seen, which a pass in evaluation mode changes before or after."""

    def __init__(self, *, is_first: bool) -> None:
        super().__init__(same)
        self.norm = nn.Module()
        self.norm.register_buffer("seen", torch.zeros(16))
        self.is_first = is_first

    def forward(self, *, points: Tensor) -> PointNetPlainOutput:
        values = self.first(points).relu()
        mean = 0.9 * self.norm.seen + 0.1 * values.mean(dim=(0, 1))
        logits = self.head((values - (mean if self.is_first else self.norm.seen)).amax(dim=1))
        self.norm.seen.copy_(mean)
        return {"logits": logits}


class Keeping(Mixing):
    """The same in an attribute of Python."""

    kept: Tensor | float = 0.0

    def forward(self, *, points: Tensor) -> PointNetPlainOutput:
        values = self.first(points).relu()
        logits = self.head((values - self.kept).amax(dim=1))
        self.kept = 0.1 * values.mean(dim=(0, 1)).detach()
        return {"logits": logits}


def test_what_an_earlier_pass_leaves_behind_is_found(small: TrainingSetup) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        for is_first in (True, False):
            (finding,) = findings_of(with_model(small, Remembering(is_first=is_first)))
            assert_complete(finding)
            assert "depends on the samples before it: 'logits' differs" in finding.summary
            assert "the pass wrote to buffer 'norm.seen'" in finding.measured
            assert finding.where.layer == "norm"
        (finding,) = findings_of(with_model(small, Keeping(same)))
        assert "depends on the samples before it" in finding.summary


class Counting(Mixing):
    """Draws of a generator of its own, a count of passes, and a table that is made by the first: no samples' traces."""

    def __init__(self) -> None:
        super().__init__(same)
        self.generator = torch.Generator().manual_seed(0)
        self.register_buffer("passes", torch.zeros(()))
        self.table: Tensor | None = None

    def forward(self, *, points: Tensor) -> PointNetPlainOutput:
        self.passes += 1
        self.table = torch.linspace(0, 1, points.shape[1])[:, None] if self.table is None else self.table
        values = self.first(points) + self.table + torch.randn((16,), generator=self.generator)
        return {"logits": self.head(values.amax(dim=1))}


def test_a_state_without_samples_in_it_is_no_leak(small: TrainingSetup) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        assert findings_of(with_model(small, Counting())) == []


def squeezed(model: Mixing, values: Tensor) -> Tensor:
    return values.squeeze()[:, :, :16]


def test_a_network_that_fails_for_one_sample(tmp_path: Path) -> None:
    finding = caught(with_model(make(tmp_path), Mixing(squeezed)), "cross-sample-leak", "model.cross_sample_leak")
    assert "fails for a sample alone, not for two: IndexError" in finding.summary


class HeadOfBatch(Mixing):
    """A norm of rows (B, C) that keeps no statistics: it cannot take one row."""

    def __init__(self) -> None:
        super().__init__(by_batch_norm)

    def forward(self, *, points: Tensor) -> PointNetPlainOutput:
        return {"logits": self.head(self.norm(self.first(points).amax(dim=1)))}


def test_a_norm_without_statistics_fails_for_one_sample(small: TrainingSetup) -> None:
    (finding,) = findings_of(with_model(small, HeadOfBatch()))
    assert (finding.cause, finding.where.layer) == ("model.norm_mode", "norm")


def within_clouds(model: Mixing, values: Tensor) -> Tensor:
    """Neighbours and samples of each cloud in the space of features: decisions."""
    index = nearest_neighbours(values, num_neighbours=4)
    chosen = farthest_points(values[..., :3].contiguous(), num_samples=8)
    return gather_points(values, index).mean(dim=2) + gather_points(values, chosen[:, None]).mean(dim=2)


def stepped(model: Mixing, values: Tensor) -> Tensor:
    """A jump at a value that rounding decides: 0 plus or minus an error of rounding."""
    third = values.sum(dim=-1, keepdim=True) / 3
    rest = (third * 3 - values.sum(dim=-1, keepdim=True)) * 1e30
    return values + rest.clamp(-1, 1)


def drawing(model: Mixing, values: Tensor) -> Tensor:
    """Noise in evaluation mode: other numbers for two samples than for one."""
    return values + 0.1 * torch.randn_like(values)


def by_running_norm(model: Mixing, values: Tensor) -> Tensor:
    return model.norm(values.flatten(0, 1)).view(values.shape)


def over_points(model: Mixing, values: Tensor) -> Tensor:
    attended: Tensor = model.attention(values, values, values)[0]
    return attended


def sorted_points(model: Mixing, values: Tensor) -> Tensor:
    return values.sort(dim=1).values


HEALTHY: list[Mix] = [same, within_clouds, stepped, drawing, by_running_norm, over_points, sorted_points]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mix", HEALTHY)
def test_no_alarm_over_seeds(small: TrainingSetup, mix: Mix, seed: int) -> None:
    torch.manual_seed(seed)
    assert findings_of(with_model(small, Mixing(mix))) == []


class Table(nn.Module):
    """Returns beside its logits what has no row for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.table = nn.Linear(3, 12), nn.Parameter(torch.randn(2, 3))

    def forward(self, *, points: Tensor) -> PointNetPlainOutput:
        centre = points.mean(dim=1)
        extras: Any = {"similarity": centre @ centre.T, "table": self.table, "spread": centre.std()}
        return {"logits": self.head(centre), **extras}


def test_outputs_without_rows_of_samples_are_not_compared(small: TrainingSetup) -> None:
    assert findings_of(with_model(small, Table())) == []


class OfRagged(nn.Module):
    """Labels for points of clouds one after another; `is_mixed` adds the mean over all of them."""

    def __init__(self, *, is_mixed: bool) -> None:
        super().__init__()
        self.is_mixed, self.head = is_mixed, nn.Linear(4, 4)

    def forward(self, *, points: Tensor, grey: Tensor, offsets: Tensor) -> Logits:
        values = torch.cat([points, grey], dim=1)
        sizes = offsets.diff()
        means = torch.stack([part.mean(dim=0) for part in values.split(sizes.tolist())])
        shared = values.mean(dim=0) if self.is_mixed else means.repeat_interleave(sizes, dim=0)
        return {"logits": self.head(values - shared)}


def test_clouds_one_after_another(tmp_path: Path) -> None:
    assert_healthy(make_rooms(tmp_path, model=OfRagged(is_mixed=False)))
    (finding,) = findings_of(make_rooms(tmp_path, model=OfRagged(is_mixed=True)))
    assert finding.cause == "model.cross_sample_leak"
    assert "first in the inputs of 'head'" in finding.measured


class Padding(nn.Module):
    """Clouds of different sizes, filled up to the longest with zeros, which the mean counts."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, *, points: Tensor, grey: Tensor, offsets: Tensor) -> Logits:
        values, sizes = torch.cat([points, grey], dim=1), offsets.diff()
        padded = nn.utils.rnn.pad_sequence(list(values.split(sizes.tolist())), batch_first=True)
        return {"logits": self.head(values - padded.mean(dim=1).repeat_interleave(sizes, dim=0))}


def test_padding_that_counts_is_found(tmp_path: Path) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        (finding,) = findings_of(make_rooms(tmp_path, model=Padding()))
        assert finding.cause == "model.cross_sample_leak"


def test_a_network_of_one_format_alone_is_compared_in_that_format(small: TrainingSetup) -> None:
    class Single(Mixing):
        def forward(self, *, points: Tensor) -> PointNetPlainOutput:
            assert points.dtype == torch.float32
            return super().forward(points=points)

    assert findings_of(with_model(small, Single(same))) == []
    (finding,) = findings_of(with_model(small, Single(centred)))
    assert finding.cause == "model.cross_sample_leak"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
