"""Collectives of real processes against NumPy, torch on the whole batch, and numbers worked by hand."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sightline.contract.errors import ConfigError, RunError, UserError
from sightline.engine import distributed
from sightline.engine.build import build
from sightline.engine.distributed import World, _select_device, start_world
from sightline.engine.run_data import build_data
from tests.engine.collectives import DTYPES, PARTS, ROWS, TEXTS, Uneven, network, random_numbers, whole_batch
from tests.processes import free_port, run_ranks
from tests.runs.small import small_config

# Sums of at most a few dozen float64 terms of order 10 to 1000, in another order.
BOUND = 1e-11

Found = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 3])
def rank_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each process got: two with a launcher's variables and in debug mode, three with SLURM's."""
    folder, size = tmp_path_factory.mktemp("ranks"), request.param
    run_ranks(
        ["-W", "error", "-m", "tests.engine.collectives", str(folder)],
        size,
        is_slurm=size == 3,
        environment={"SIGHTLINE_DEBUG_COLLECTIVES": "1" if size == 2 else "0"},
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.parametrize(
    ("rank", "address", "expected"),
    [("1", "127.0.0.1", "Connection refused"), ("0", "no-such-host.invalid", "Name or service not known")],
)
def test_a_first_process_that_cannot_be_reached_is_one_line_in_time(
    rank: str, address: str, expected: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    _launch_as(monkeypatch, rank, address, port)
    with pytest.raises(RunError) as caught, start_world(timeout_s=0.3):
        pass
    assert str(caught.value) == (
        f"rank {rank} cannot reach the first process at {address}:{port}, tried for 0.3 s: {expected}; "
        "start that process, or correct MASTER_ADDR and MASTER_PORT"
    )
    assert capfd.readouterr() == ("", "")  # torch's store prints its C++ frames


def test_a_silent_address_is_waited_for_no_longer_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt may take the time that is left, and a second at least: a host that does not reply blocks so long."""
    limits, clock = list[float](), [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    def time_out(address: tuple[str, int], timeout: float) -> None:
        limits.append(timeout)
        sleep(0.4)
        raise TimeoutError("timed out")

    monkeypatch.setattr("socket.create_connection", time_out)
    monkeypatch.setattr(distributed, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    _launch_as(monkeypatch, "1", "127.0.0.1", free_port())
    with pytest.raises(RunError, match="timed out"), start_world(timeout_s=1.5):
        pass
    assert limits == pytest.approx([1.5, 1.05, 1, 1])


def test_an_address_that_cannot_be_a_hosts_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _launch_as(monkeypatch, "1", "a" * 64 + ".org", free_port())
    with pytest.raises(UserError, match=r"^MASTER_ADDR: 'a{64}\.org' is not a valid host"), start_world(timeout_s=60):
        pass


@pytest.mark.parametrize("leave", [sys.exit, exit])
def test_code_that_ends_the_program_is_named(leave: Any) -> None:
    """Its code is 0: else a command would end as if all were well, without a word."""
    with pytest.raises(RunError, match=rf"code called sys.exit\(0\) at {__file__}:\d+, before the end"), start_world():
        leave(0)


def _launch_as(monkeypatch: pytest.MonkeyPatch, rank: str, address: str, port: int) -> None:
    monkeypatch.setattr("sightline.engine.distributed._MIN_START_S", 0.0)
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": port}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))


def each(found: Found, name: str) -> list[Any]:
    return [one[name] for one in found]


@pytest.mark.processes
def test_sums_are_exact_and_keep_dtype_and_shape(rank_results: Found) -> None:
    """1 + 2 (+ 3) in every format; halves of 0 + 1 (+ 2); a transposed tensor; an empty one."""
    size = len(rank_results)
    total = size * (size + 1) // 2
    for sums in each(rank_results, "sums"):
        for name in DTYPES:
            assert sums[name] == [f"torch.{name}", [2, 3], np.full((2, 3), float(total)).tolist()]
        assert sums["scalar"] == ["torch.float32", [], 0.5 * (total - size)]
        assert sums["empty"] == ["torch.float32", [0], []]
        assert sums["turned"][2] == (np.eye(3)[:2].T * (total - size)).tolist()


@pytest.mark.processes
def test_sums_of_any_numbers_have_the_same_bits_everywhere(rank_results: Found) -> None:
    numbers = [sums["numbers"] for sums in each(rank_results, "sums")]
    expected = np.sum([random_numbers(rank).numpy() for rank in range(len(rank_results))], axis=0)
    assert all(other == numbers[0] for other in numbers)
    np.testing.assert_allclose(numbers[0], expected, rtol=0, atol=4 * np.finfo(float).eps * np.abs(expected).max())


@pytest.mark.processes
def test_rows_come_in_rank_order_however_many_each_holds(rank_results: Found) -> None:
    size = len(rank_results)
    expected = []
    for counts in ROWS[size]:
        for name in (*DTYPES, "bool"):
            for shape in ((), (2,), (2, 0)):
                parts = [np.full((count, *shape), rank + 1.0) for rank, count in enumerate(counts)]
                joined = np.concatenate(parts)
                joined = joined.astype(bool).astype(float) if name == "bool" else joined
                expected.append([f"torch.{name}", list(joined.shape), joined.tolist()])
    turned = np.concatenate([np.arange(6.0).reshape(2, 3).T + rank for rank in range(size)])
    starts = [
        [sum(counts[:rank]) for counts in ROWS[size] for _ in range(3 * (len(DTYPES) + 1))] for rank in range(size)
    ]
    for rank, rows in enumerate(each(rank_results, "rows")):
        assert [row[:3] for row in rows[:-1]] == expected
        assert [row[3] for row in rows[:-1]] == starts[rank]
        assert rows[-1] == turned.tolist()


@pytest.mark.processes
def test_texts_travel_whole(rank_results: Found) -> None:
    assert each(rank_results, "texts") == [TEXTS[len(rank_results)]] * len(rank_results)
    assert each(rank_results, "broadcast") == ["from 0"] * len(rank_results)


@pytest.mark.processes
def test_only_the_first_process_does_what_is_for_one(rank_results: Found) -> None:
    others = len(rank_results) - 1
    assert each(rank_results, "from first") == ["made by 0"] * len(rank_results)
    assert each(rank_results, "on first") == [[[0], 7], *([[[], None]] * others)]


@pytest.mark.processes
def test_gradients_add_up_and_stay_none_where_nobody_has_one(rank_results: Found) -> None:
    """1 from the step before, and 10 + 100 (+ 1000); `some` is used by rank 1 alone."""
    total = sum(10.0 ** (rank + 1) for rank in range(len(rank_results)))
    names = [name for name, _ in Uneven().named_parameters()]
    for alone, summed in each(rank_results, "gradients"):
        assert dict(zip(names, alone, strict=True)) == {
            "used": np.ones((3, 2)).tolist(), "some": None, "nowhere": None, "fixed": None,
        }  # fmt: skip
        assert dict(zip(names, summed, strict=True)) == {
            "used": np.full((3, 2), total + len(rank_results)).tolist(), "some": [100.0] * 4,
            "nowhere": None, "fixed": None,
        }  # fmt: skip


@pytest.mark.processes
def test_synchronised_batch_norm_is_batch_norm_of_the_whole_batch(rank_results: Found) -> None:
    """Uneven parts, one of them empty; outputs, every gradient and the running statistics, in float64."""
    size = len(rank_results)
    model, (batch, weight) = network(), whole_batch(size)
    batch.requires_grad_()
    output = model(batch)
    (output * weight).sum().backward()
    ours = each(rank_results, "statistics")
    for name, expected in (("output", output), ("batch", batch.grad)):
        parts = [
            np.reshape(one[name], (count, *expected.shape[1:])) for one, count in zip(ours, PARTS[size], strict=True)
        ]
        np.testing.assert_allclose(np.concatenate(parts), expected.detach().numpy(), rtol=0, atol=BOUND)
    for one in ours:
        for name, parameter in model.named_parameters():
            np.testing.assert_allclose(one["gradients"][name], parameter.grad.numpy(), rtol=0, atol=BOUND)
        for name, tensor in model.state_dict().items():
            np.testing.assert_allclose(one["state"][name], tensor.numpy(), rtol=0, atol=BOUND)


@pytest.mark.processes
def test_buffers_and_first_weights_become_those_of_the_first_process(rank_results: Found) -> None:
    for rank, models in enumerate(each(rank_results, "models")):
        for name, kept in (("equal", float(rank)), ("replica", 0.0)):
            state = models[name]
            assert state["weight"] == np.full((2, 3), kept).tolist()  # make_equal leaves weights alone
            for number in range(5):
                assert state[f"b{number}"] == np.ones((number, 2)).tolist()


@pytest.mark.processes
def test_models_that_differ_between_processes_are_refused_everywhere(rank_results: Found) -> None:
    for refusal in each(rank_results, "models"):
        assert refusal["refusal"].startswith(
            "processes differ: the model's weight is float32[3, 2] on rank 0 and float32[4, 2] on rank 1"
        )


@pytest.mark.processes
def test_debug_mode_names_processes_that_disagree(rank_results: Found) -> None:
    if len(rank_results) == 3:
        assert each(rank_results, "disagreement") == [""] * 3  # debug mode is off there
        return
    first, second = each(rank_results, "disagreement")
    assert first == second
    assert "rank 0 is about to enter collective" in first
    assert "all_reduce of barrier 'one thing' (here) [here] of int64[1] at " in first
    assert "all_reduce of other things (a, b) [a, b] of float32[3] at " in first
    assert first.count("tests/engine/collectives.py:") == 2


@pytest.mark.processes
def test_no_thread_of_the_process_group_is_left(rank_results: Found) -> None:
    """One that still gives back a tensor while the interpreter ends aborts the process, now and then."""
    for threads in each(rank_results, "threads"):
        assert [name for name in threads if "gloo" in name] == []


# --- a world of one ---------------------------------------------------------------------------------------------------


def test_a_world_of_one_changes_nothing_and_needs_no_network() -> None:
    world, model = World(), nn.BatchNorm1d(3)
    tensors = {"a": torch.ones(2), "b": torch.zeros((), dtype=torch.int64)}
    totals = world.all_reduce_sum(tensors)
    assert all(torch.equal(totals[name], tensor) for name, tensor in tensors.items())
    everyone, start = world.gather_rows(tensors["a"])
    assert (everyone.tolist(), start) == ([1.0, 1.0], 0)
    assert world.gather_text("x") == ["x"]
    assert (
        world.broadcast_text("x")
        == world.broadcast_from_rank_zero(lambda: "x")
        == world.rank_zero_only(str)("x")
        == "x"
    )
    assert world.broadcast_weights(model) is world.convert_sync_batchnorm(model) is model
    with world.reduce_gradients(model, is_last_micro_batch=True):
        pass
    world.broadcast_buffers(model)
    world.barrier("here")
    world.close()
    assert not torch.distributed.is_initialized()


def test_an_unknown_device_is_refused() -> None:
    with (
        pytest.raises(UserError, match="--device: found 'tpu', allowed are auto, cpu, cuda"),
        start_world(device="tpu"),
    ):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda: torch sees no CUDA device"), start_world(device="cuda"):
            pass
    with start_world(device=torch.device("cpu")) as world:
        assert world.device == torch.device("cpu"), "as a call from Python may give it"


def test_compiling_synchronised_batch_norm_is_refused() -> None:
    """torch 2.13 reads memory that is not there when it replays the views around a reduction."""
    config = small_config("train.compile=true", "distributed.sync_batch_norm=true")
    with pytest.raises(
        ConfigError, match=r"train.compile: torch cannot compile the reductions of distributed.sync_batch"
    ):
        build(config, World(rank=0, size=2), data=build_data(config))


@pytest.mark.parametrize(("environment", "expected"), [({"SLURM_PROCID": "1"}, 0), ({}, None)])
def test_a_task_that_sees_one_gpu_takes_it(
    environment: dict[str, str], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM's --gpus-per-task=1 shows each task its own GPU only; elsewhere a second process has none."""
    chosen: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if expected is None:
        with pytest.raises(UserError, match="no GPU of its own"):
            _select_device("auto", 1)
    else:
        assert _select_device("auto", 1).index == expected
        assert chosen == [expected]
