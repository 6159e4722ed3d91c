"""Gradients that travel during the backward pass: the bits of a sum after it, in every order of use; never a hang."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sightline.engine.distributed import World
from tests.engine.gradients import PASSES, Normed, break_off
from tests.limits import HANG_S
from tests.processes import forked, free_port, run_ranks

pytestmark = pytest.mark.processes

Found = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 3])
def rank_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each process got: two in debug mode, three without."""
    folder, size = tmp_path_factory.mktemp("ranks"), request.param
    run_ranks(
        ["-W", "error", "-m", "tests.engine.gradients", str(folder)],
        size,
        environment={"SIGHTLINE_DEBUG_COLLECTIVES": "1" if size == 2 else "0"},
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.parametrize("use", [use.__name__ for use in PASSES])
def test_early_sums_have_the_bits_of_sums_after_the_pass(rank_results: Found, use: str) -> None:
    for one in rank_results:
        assert one[use]["early"] == one[use]["afterwards"]
        assert one[use]["early"] == rank_results[0][use]["early"]
    assert (None in rank_results[0][use]["early"][0]) == (use == "use_frozen")


def test_collectives_of_the_pass_itself_do_not_mix_with_gradients(rank_results: Found) -> None:
    for one in rank_results:
        assert one["norms"]["early"] == one["norms"]["afterwards"] == rank_results[0]["norms"]["early"]


def test_buckets_are_sent_in_one_order_as_soon_as_they_are_complete(rank_results: Found) -> None:
    """Eight parameters, one a bucket. Where layer 3 has no gradient, all wait for the end of the pass."""
    names = [f"layers.{layer}.{kind}" for layer in (3, 2, 1, 0) for kind in ("bias", "weight")]
    for one in rank_results:
        assert one["sent"] == [*names, "end of pass", "end of pass", *names]


def test_a_gradient_that_changes_after_it_was_sent_is_an_error(rank_results: Found) -> None:
    for one in rank_results:
        assert one["late"].startswith("the gradient of 'layers.3.bias' changed after it was sent"), one["late"]
        assert one["late"].endswith(
            "call torch.utils.checkpoint.checkpoint with use_reentrant=False, or train in one process"
        )


def test_a_process_that_breaks_during_the_pass_ends_all(tmp_path: Path) -> None:
    """Where a collective is waited for without end."""
    port, log = free_port(), tmp_path / "log"
    processes = [forked(break_off, port, rank, str(log)) for rank in range(2)]
    for process in processes:
        process.join(HANG_S)
    codes = [process.exitcode for process in processes]  # None for one that still runs
    for process in processes:
        process.kill()
    assert codes == [1, 1]
    assert "rank 1 failed: the pass broke; this process was in all_reduce of gradients" in log.read_text()


@pytest.mark.parametrize("is_synchronised", [False, True])
def test_on_a_gpu_gradients_stay_behind_collectives_of_the_pass(is_synchronised: bool) -> None:
    """NCCL may not run two groups at once: there is one, whose order the batch norms would mix up."""
    world = World(rank=0, size=2, device=torch.device("cuda"))
    model: nn.Module = world.convert_sync_batchnorm(Normed()) if is_synchronised else Normed()
    assert world._can_send_early(model) != is_synchronised
