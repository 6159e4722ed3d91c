"""Memory on the GPU of another process: found by a table of devices that stands in for a machine with two."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.finding import Finding
from sightline.doctor.rules import find_by
from sightline.engine.device import contexts
from sightline.engine.device.contexts import HeldDevice, list_foreign, list_held_devices
from sightline.engine.distributed import World
from sightline.workbench.check import step_rules
from sightline.workbench.check.context import Context
from tests.runs.small import small_run


@pytest.fixture(scope="module")
def run() -> Context:
    return Context(small_run(), World())


def judge(
    run: Context, rank: int, table: list[HeldDevice], monkeypatch: pytest.MonkeyPatch, size: int = 2
) -> list[Finding]:
    world = World(rank, size, torch.device("cuda", rank))
    monkeypatch.setattr(step_rules, "list_held_devices", lambda: table)
    own = dataclasses.replace(run, world=world)
    return find_by(step_rules.foreign_device, foreign_devices=step_rules.foreign_devices(own))


def test_a_process_that_holds_memory_on_the_device_of_another_is_named(
    run: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finding,) = judge(run, 1, [HeldDevice(0, 12_300_000), HeldDevice(1, 5)], monkeypatch)
    assert finding.code == "foreign-device"
    assert finding.severity == "warning"
    assert finding.summary == "process 1 holds memory on cuda:0, the device of process 0 of its machine"
    assert finding.measured == "12.3 MB of tensors, and a context of some 500 MB; its own device is cuda:1"
    assert finding.where.rank == 1


def test_a_context_without_tensors_is_named_too(run: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = judge(run, 0, [HeldDevice(0, 5), HeldDevice(1, 0)], monkeypatch)
    assert "process 0 holds memory on cuda:1, the device of process 1" in finding.summary


def test_own_and_idle_devices_are_no_fault(run: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge(run, 1, [HeldDevice(1, 5)], monkeypatch) == []
    assert judge(run, 1, [HeldDevice(1, 5), HeldDevice(2, 5)], monkeypatch) == []  # of nobody: two processes run
    assert list_foreign([HeldDevice(0, 5)], torch.device("cpu"), 2) == []


def test_devices_beside_those_of_this_machine_are_nobodys(run: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines with two processes each, and three GPUs."""
    held = [HeldDevice(1, 5), HeldDevice(2, 5)]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert judge(run, 1, held, monkeypatch, size=4) == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert len(judge(run, 1, held, monkeypatch, size=4)) == 1


def test_one_process_and_processors_are_not_asked(run: Context) -> None:
    with pytest.raises(NotApplicableError):
        step_rules.foreign_devices(run)
    with pytest.raises(NotApplicableError):
        step_rules.foreign_devices(dataclasses.replace(run, world=World(0, 1, torch.device("cuda", 0))))


def test_contexts_are_read_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list_held_devices() == []  # no GPU is in use here
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(contexts.torch._C, "_cuda_hasPrimaryContext", lambda index: index != 1, raising=False)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda index: 10 * index)
    assert list_held_devices() == [HeldDevice(0, 0), HeldDevice(2, 20)]
