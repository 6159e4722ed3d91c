"""What searches for bits must not do, planted in a small search: its split, its state, its sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_parts_of_their_own_are_no_fault() -> None:
    """The same numbers in another split are other samples."""
    assert (
        find_by(
            search_split,
            searched=[("train", each) for each in range(50)],
            reported=[("test", each) for each in range(50)],
        )
        == []
    )


@pytest.mark.parametrize("seed", range(10))
def test_a_search_that_reads_a_sample_of_the_report(seed: int) -> None:
    samples = [("test", int(each)) for each in np.random.default_rng(seed).permutation(500)]
    (finding,) = find_by(search_split, searched=samples[:64], reported=samples[63:])
    assert_complete(finding)
    assert finding.cause == "eval.protocol"
    assert "1 of 64" in finding.measured
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


EPISODES = [in_training_mode, from_quantised_weights, still_quantised, a_step_further, loosely_reloaded, one_bit]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("episode", EPISODES, ids=lambda episode: episode.__name__)
def test_what_an_episode_leaves_behind(episode: Callable[[nn.Module, int], nn.Module], seed: int) -> None:
    model = net(seed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (finding,) = find_by(unreset_episode, before=before, after=episode(model, seed).state_dict())
    assert_complete(finding)
    assert finding.cause == "quant.state_leak"
    assert str(finding.where.param).split(".")[0] in ("0", "1", "3")


def test_policies_on_copies_leave_nothing_and_nan_is_itself() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for bits in (1, 2, 8):
        copied = copy.deepcopy(model)
        apply_policy(copied, {"0.weight": {"kind": "codebook", "bits": bits}})
        copied(torch.randn(4, 16))
    assert find_by(unreset_episode, before=before, after=model.state_dict()) == []
    state = {"running": torch.tensor([torch.nan, 1.0])}
    assert find_by(unreset_episode, before=state, after={"running": state["running"].clone()}) == []


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A packed model, and what is told of it."""
    model = net()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    apply_policy(model, POLICY)
    promised, file = packed_size(tensor_specs(model)[0], {"name": "net"}), tmp_path / "model.slq"
    size = write_packed(file, model, {"name": "net"})
    ratios = compression_ratios([(512, 3, 16)], file_bytes=size, state=state)._asdict()
    return file, {"layers": [(512, 3, 16)], "state": state, "promised": promised, "budget": None, "reported": ratios}


def test_an_honest_file_is_no_fault(packed: tuple[Path, dict[str, Any]]) -> None:
    file, given = packed
    assert find_by(size_promise, file=file, **given) == []
    assert find_by(size_promise, file=file, **{**given, "budget": given["promised"]}) == []


Reported = dict[str, Any]


def promise(extra: int) -> Callable[[Reported], Reported]:
    return lambda given: {"promised": given["promised"] + extra}


def leave_out(name: str) -> Callable[[Reported], Reported]:
    return lambda given: {"reported": {each: value for each, value in given["reported"].items() if each != name}}


def report_codes_alone(given: Reported) -> Reported:
    """Without codebooks, biases and norms (trap Q6)."""
    share = given["reported"]["weights"]
    return {"reported": {**given["reported"], "file": share, "codebook": share}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        *((promise(extra), ["promised"]) for extra in (1, -1, 4096)),
        (lambda given: {"budget": given["promised"] - 1}, ["1 above the budget"]),
        *((leave_out(name), [f"ratio '{name}' is not reported"]) for name in ("weights", "codebook", "file")),
        (report_codes_alone, ["ratio 'codebook'", "ratio 'file'"]),
    ],
)
def test_a_report_that_the_file_does_not_keep(
    packed: tuple[Path, dict[str, Any]], change: Callable[[Reported], Reported], told: list[str]
) -> None:
    file, given = packed
    (finding,) = find_by(size_promise, file=file, **{**given, **change(given)})
    assert_complete(finding)
    assert finding.cause == "quant.accounting"
    assert all(text in finding.measured for text in told)
