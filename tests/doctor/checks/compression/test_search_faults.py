"""What searches for bits must not do, planted in a small search: its split, its state, its batches, its sizes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sightline.doctor.checks.compression.search import batch_dependence, search_split, size_promise, unreset_episode
from sightline.engine.distributed import World
from sightline.layers.quantisation.parametrised import Codebook, apply_policy, dense, freeze, quantised
from sightline.runs.packed import entries_of, packed_size, ratios, write_packed
from tests.doctor.planting import assert_complete, make

POLICY = {"0.weight": {"kind": "codebook", "bits": 3}}


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    for _ in range(3):
        model(torch.randn(8, 16))
    return model.eval()


class TestSplit:
    def test_parts_of_their_own(self) -> None:
        """The same numbers in another split are other samples."""
        assert search_split([("train", each) for each in range(50)], [("test", each) for each in range(50)]) == []

    @pytest.mark.parametrize("seed", range(10))
    def test_a_search_that_reads_a_sample_of_the_report(self, seed: int) -> None:
        samples = np.random.default_rng(seed).permutation(500)
        (finding,) = search_split(
            [("test", int(each)) for each in samples[:64]], [("test", int(each)) for each in samples[63:]]
        )
        assert_complete(finding)
        assert finding.cause == "eval.protocol"
        assert "1 of 64" in finding.measured

    def test_the_whole_report(self) -> None:
        (finding,) = search_split(range(10), range(10))
        assert "chooses by 10 samples" in finding.summary


def in_training_mode(model: nn.Module, seed: int) -> nn.Module:
    copied = copy.copy(model)
    copied.train()(torch.randn(8, 16))
    return model.eval()


def from_quantised_weights(model: nn.Module, seed: int) -> nn.Module:
    apply_policy(model, POLICY)
    return freeze(model)


def still_quantised(model: nn.Module, seed: int) -> nn.Module:
    apply_policy(model, POLICY)
    return model


def a_step_further(model: nn.Module, seed: int) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(torch.randn(8, 16)).square().sum().backward()
    optimizer.step()
    return model


def loosely_reloaded(model: nn.Module, seed: int) -> nn.Module:
    """The statistics of the norm are not in the state that is loaded again, and no strict name misses them."""
    kept = {name: value.clone() for name, value in model.state_dict().items() if "running" not in name}
    in_training_mode(model, seed)
    model.load_state_dict(kept, strict=False)
    return model


def one_bit(model: nn.Module, seed: int) -> nn.Module:
    """The last bit of one weight."""
    flat = model[3].weight.data.view(-1).view(torch.int32)
    flat[seed % len(flat)] ^= 1
    return model


class TestEpisodes:
    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize(
        "episode",
        [in_training_mode, from_quantised_weights, still_quantised, a_step_further, loosely_reloaded, one_bit],
        ids=lambda episode: episode.__name__,
    )
    def test_what_an_episode_leaves_behind(self, episode, seed: int) -> None:
        model = net(seed)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        (finding,) = unreset_episode(before, episode(model, seed).state_dict())
        assert_complete(finding)
        assert finding.cause == "quant.state_leak"
        assert str(finding.where.param).split(".")[0] in ("0", "1", "3")

    def test_policies_on_copies_leave_nothing(self) -> None:
        model = net()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for bits in (1, 2, 8):
            copied = copy.deepcopy(model)
            apply_policy(copied, {"0.weight": {"kind": "codebook", "bits": bits}})
            copied(torch.randn(4, 16))
        assert unreset_episode(before, model.state_dict()) == []

    def test_nan_is_the_same_as_itself(self) -> None:
        state = {"running": torch.tensor([torch.nan, 1.0])}
        assert unreset_episode(state, {"running": state["running"].clone()}) == []


class Scores:
    """Samples with a loss and a label of 5 classes each; the figures of evaluations that deal them to batches."""

    def __init__(self, seed: int, num_samples: int = 60) -> None:
        draws = np.random.default_rng(seed)
        self.loss = draws.exponential(size=num_samples)
        self.label = draws.choice(5, size=num_samples, p=[0.4, 0.3, 0.15, 0.1, 0.05])
        self.predicted = np.where(draws.random(num_samples) < 0.7, self.label, draws.choice(5, size=num_samples))
        self.order = draws

    def batches(self, size: int) -> list[np.ndarray]:
        return [np.arange(start, min(start + size, len(self.loss))) for start in range(0, len(self.loss), size)]

    def iou(self, rows: np.ndarray) -> float:
        """Of the classes that are there."""
        label, predicted = self.label[rows], self.predicted[rows]
        each = [
            ((label == k) & (predicted == k)).sum() / max(1, ((label == k) | (predicted == k)).sum())
            for k in set(label)
        ]
        return float(np.mean(each))

    def summed(self, size: int) -> Mapping[str, float]:
        return {"loss": sum(self.loss[rows].sum() for rows in self.batches(size)) / len(self.loss)}

    def mean_of_means(self, size: int) -> Mapping[str, float]:
        return {"loss": float(np.mean([self.loss[rows].mean() for rows in self.batches(size)]))}

    def mean_of_ious(self, size: int) -> Mapping[str, float]:
        return {"iou": float(np.mean([self.iou(rows) for rows in self.batches(size)]))}

    def without_the_last(self, size: int) -> Mapping[str, float]:
        full = [rows for rows in self.batches(size) if len(rows) == size]
        return {"loss": float(np.concatenate([self.loss[rows] for rows in full]).mean())}

    def statistics_of_the_batch(self, size: int) -> Mapping[str, float]:
        """As batch norms in training mode do."""
        return {"loss": sum(((self.loss[rows] - self.loss[rows].mean()) ** 2).sum() for rows in self.batches(size))}


class TestBatches:
    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("bug", ["mean_of_means", "mean_of_ious", "without_the_last", "statistics_of_the_batch"])
    def test_figures_of_each_batch(self, bug: str, seed: int) -> None:
        (finding,) = batch_dependence(getattr(Scores(seed), bug), num_samples=60)
        assert_complete(finding)
        assert finding.cause == "eval.aggregation"
        assert "in batches of 7" in finding.measured

    def test_sums_over_all(self) -> None:
        assert batch_dependence(Scores(0).summed, num_samples=60) == []

    def test_the_evaluator_of_a_run(self, tmp_path: Path) -> None:
        built = make(tmp_path, "data.train_size=40", "data.test_size=12")

        def figures(size: int) -> Mapping[str, float]:
            found = dataclasses.replace(built.test, batch_size=size)(built.job.model, World())
            return {**found.metrics, **found.losses}

        assert batch_dependence(figures, num_samples=len(built.test.indices)) == []


class TestSizes:
    @pytest.fixture
    def packed(self, tmp_path: Path) -> tuple[Path, int, dict[str, float], dict]:
        model = net()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        apply_policy(model, POLICY)
        promised = packed_size(entries_of(model)[0], {"name": "net"})
        file = tmp_path / "model.slq"
        size = write_packed(file, model, {"name": "net"})
        given = {"layers": [(512, 3, 16)], "state": state}
        return file, promised, ratios(given["layers"], file_bytes=size, state=state)._asdict(), given

    def test_an_honest_file(self, packed) -> None:
        file, promised, reported, given = packed
        assert size_promise(file, promised=promised, budget=promised, reported=reported, **given) == []
        assert size_promise(file, promised=promised, budget=None, reported=reported, **given) == []

    @pytest.mark.parametrize("extra", [1, -1, 4096])
    def test_a_promise_that_the_file_does_not_keep(self, packed, extra: int) -> None:
        file, promised, reported, given = packed
        (finding,) = size_promise(file, promised=promised + extra, budget=None, reported=reported, **given)
        assert_complete(finding)
        assert finding.cause == "quant.accounting"
        assert f"{promised + extra:,} promised" in finding.measured

    def test_a_budget_that_is_a_byte_short(self, packed) -> None:
        file, promised, reported, given = packed
        (finding,) = size_promise(file, promised=promised, budget=promised - 1, reported=reported, **given)
        assert "1 above the budget" in finding.measured

    @pytest.mark.parametrize("name", ["weights", "codebook", "file"])
    def test_a_ratio_that_is_left_out(self, packed, name: str) -> None:
        file, promised, reported, given = packed
        kept = {each: value for each, value in reported.items() if each != name}
        (finding,) = size_promise(file, promised=promised, budget=None, reported=kept, **given)
        assert f"ratio '{name}' is not reported" in finding.measured

    def test_codes_alone_reported_as_the_file(self, packed) -> None:
        """Without codebooks, biases and norms (trap Q6)."""
        file, promised, reported, given = packed
        wrong = {**reported, "file": reported["weights"], "codebook": reported["weights"]}
        (finding,) = size_promise(file, promised=promised, budget=None, reported=wrong, **given)
        assert "ratio 'codebook'" in finding.measured
        assert "ratio 'file'" in finding.measured


def test_an_empty_cluster_does_not_stop_fine_tuning() -> None:
    """Trap Q1: 27 weights and 8 bits, repeated weights; ten steps, and outputs of two inputs still differ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 3, 3), nn.Flatten(), nn.Linear(18, 4))
    model[2].weight.data = model[2].weight.data.sign() * 0.1
    apply_policy(model, {name: {"kind": "codebook", "bits": 8} for name in ("0.weight", "2.weight")})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8)).square().sum().backward()
        optimizer.step()
    assert all(value.isfinite().all() for value in dense(model).values())
    assert all(isinstance(quantiser, Codebook) for quantiser, _ in quantised(model).values())
    one, other = model(torch.randn(2, 3, 8))
    assert not torch.equal(one, other)
