"""What searches for bits must not do, planted in a small search: its split, its state, its sizes."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sightline.doctor.rules import find_by
from sightline.parts.quantisation.parametrised import (
    apply_policy,
    bake_quantised_weights,
)
from sightline.runs.packed import compression_ratios, packed_size, tensor_specs, write_packed
from sightline.workbench.check.compress_rules import search_split, size_promise, unreset_episode
from tests.doctor.planting import assert_complete

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
        assert find_by(search_split, searched=[("train", 1), ("train", 2)], reported=[("test", 1), ("test", 2)]) == []

    @pytest.mark.parametrize("seed", range(10))
    def test_a_search_that_reads_a_sample_of_the_report(self, seed: int) -> None:
        samples = np.random.default_rng(seed).permutation(500)
        (finding,) = find_by(
            search_split,
            searched=[("test", int(each)) for each in samples[:64]],
            reported=[("test", int(each)) for each in samples[63:]],
        )
        assert_complete(finding)
        assert finding.cause == "eval.protocol"
        assert "1 of 64" in finding.measured

    def test_the_whole_report(self) -> None:
        (finding,) = find_by(search_split, searched=range(10), reported=range(10))
        assert "uses 10 samples" in finding.summary


def in_training_mode(model: nn.Module, seed: int) -> nn.Module:
    copied = copy.copy(model)
    copied.train()(torch.randn(8, 16))
    return model.eval()


def from_quantised_weights(model: nn.Module, seed: int) -> nn.Module:
    apply_policy(model, POLICY)
    return bake_quantised_weights(model)


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
        (finding,) = find_by(unreset_episode, before=before, after=episode(model, seed).state_dict())
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
        assert find_by(unreset_episode, before=before, after=model.state_dict()) == []

    def test_nan_is_the_same_as_itself(self) -> None:
        state = {"running": torch.tensor([torch.nan, 1.0])}
        assert find_by(unreset_episode, before=state, after={"running": state["running"].clone()}) == []


class TestSizes:
    @pytest.fixture
    def packed(self, tmp_path: Path) -> tuple[Path, int, dict[str, float], dict]:
        model = net()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        apply_policy(model, POLICY)
        promised = packed_size(tensor_specs(model)[0], {"name": "net"})
        file = tmp_path / "model.slq"
        size = write_packed(file, model, {"name": "net"})
        given = {"layers": [(512, 3, 16)], "state": state}
        return file, promised, compression_ratios(given["layers"], file_bytes=size, state=state)._asdict(), given

    def test_an_honest_file(self, packed) -> None:
        file, promised, reported, given = packed
        assert find_by(size_promise, file=file, promised=promised, budget=promised, reported=reported, **given) == []
        assert find_by(size_promise, file=file, promised=promised, budget=None, reported=reported, **given) == []

    @pytest.mark.parametrize("extra", [1, -1, 4096])
    def test_a_promise_that_the_file_does_not_keep(self, packed, extra: int) -> None:
        file, promised, reported, given = packed
        (finding,) = find_by(
            size_promise, file=file, promised=promised + extra, budget=None, reported=reported, **given
        )
        assert_complete(finding)
        assert finding.cause == "quant.accounting"
        assert f"{promised + extra:,} promised" in finding.measured

    def test_a_budget_that_is_a_byte_short(self, packed) -> None:
        file, promised, reported, given = packed
        (finding,) = find_by(
            size_promise, file=file, promised=promised, budget=promised - 1, reported=reported, **given
        )
        assert "1 above the budget" in finding.measured

    @pytest.mark.parametrize("name", ["weights", "codebook", "file"])
    def test_a_ratio_that_is_left_out(self, packed, name: str) -> None:
        file, promised, reported, given = packed
        kept = {each: value for each, value in reported.items() if each != name}
        (finding,) = find_by(size_promise, file=file, promised=promised, budget=None, reported=kept, **given)
        assert f"ratio '{name}' is not reported" in finding.measured

    def test_codes_alone_reported_as_the_file(self, packed) -> None:
        """Without codebooks, biases and norms (trap Q6)."""
        file, promised, reported, given = packed
        wrong = {**reported, "file": reported["weights"], "codebook": reported["weights"]}
        (finding,) = find_by(size_promise, file=file, promised=promised, budget=None, reported=wrong, **given)
        assert "ratio 'codebook'" in finding.measured
        assert "ratio 'file'" in finding.measured
