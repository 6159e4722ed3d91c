"""Batches that are finished on a device: the numbers of the host, by operations that no device refuses."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sightline.contract.draws import DeviceDraws, Draws
from sightline.contract.pytree import tree_map
from sightline.contract.types import Batch, SampleKey
from sightline.engine.batch_stream import find_device_data
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.train import TrainState
from sightline.ops.waits import deferred_checks
from tests.runs.small import small_run

CPU = torch.device("cpu")
KEYS = [SampleKey(index, 3, 7, 11) for index in (5, 0, 123456)]
TRANSFORMS = {
    "modelnet40_pointnet": "[{name: drop_points}, {name: scale, low: 0.8, high: 1.25, isotropic: true}, "
    "{name: translate, max_shift: 0.1}]",
    "modelnet40_dgcnn": "[{name: scale}, {name: translate}, {name: shuffle_points}]",
    "all": "[{name: sample_points, num_points: 16}, {name: rotate}, {name: perturb_rotation}, {name: jitter}, "
    "{name: flip}, {name: normalize_unit_sphere}, {name: translate, relative: true}]",
}


def make_job(transforms: str, *overrides: str) -> TrainState:
    return small_run(f"transforms.train={TRANSFORMS[transforms]}", "train.steps=6", *overrides).job


@pytest.mark.parametrize("shape", [(), (5,), (33, 3)])
def test_draws_of_a_device_are_those_of_the_host(shape: tuple[int, ...]) -> None:
    host = Draws.for_samples(KEYS).stream("a stream")
    device = DeviceDraws(*Draws.for_samples(KEYS).keys).stream("a stream")
    for one, other in ((host, device), (host.shared_by_step, device.shared_by_step)):
        for _ in range(2):  # each draw advances the stream
            assert torch.equal(one.uniform(*shape, low=-2.0, high=3.0), other.uniform(*shape, low=-2.0, high=3.0))
            assert torch.allclose(one.normal(*shape), other.normal(*shape), rtol=1e-6, atol=1e-6)
        assert torch.equal(one.permutation(200), other.permutation(200))
    bits = torch.from_numpy(Draws.for_samples(KEYS).bits(50).view(np.int64))
    assert torch.equal(DeviceDraws(*Draws.for_samples(KEYS).keys)._draw(50), bits)


def test_samples_of_several_steps_share_no_draws() -> None:
    device = DeviceDraws(*Draws.for_samples([KEYS[0], dataclasses.replace(KEYS[1], step=12)]).keys)
    with pytest.raises(ValueError, match="not of one step"):
        _ = device.shared_by_step


@pytest.mark.parametrize("transforms", TRANSFORMS)
def test_a_batch_that_is_finished_later_is_the_same(transforms: str) -> None:
    reader = make_job(transforms).stream.reader
    whole, finished = reader(KEYS[:2]), reader.finish(reader.read_raw(KEYS[:2]))
    assert whole.keys() == finished.keys()
    for name, values in whole.items():
        is_exact = transforms != "all" or not values.is_floating_point()
        same = torch.equal if is_exact else lambda one, other: torch.allclose(one, other, rtol=1e-6, atol=1e-6)
        assert same(values, finished[name]), name


@pytest.mark.parametrize("transforms", ["modelnet40_pointnet", "modelnet40_dgcnn"])
def test_transforms_ask_the_host_for_nothing(transforms: str) -> None:
    """With tensors that have the device of a GPU and no numbers: one of the host beside them is an error.

    Torch for CPUs takes no slices of such tensors, so other transforms are left to the comparison on the device.
    """
    reader = make_job(transforms).stream.reader
    raw = reader.read_raw(KEYS[:2])
    with FakeTensorMode(allow_non_fake_inputs=True), deferred_checks():
        sent = tree_map(raw, lambda path, tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))
        finished = reader.finish(sent)
    assert {tensor.device.type for tensor in finished.values()} == {"cuda"}


def test_a_training_on_finished_batches_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [make_job("modelnet40_pointnet") for _ in range(2)]
    monkeypatch.setattr(
        "sightline.engine.loop._find_device_data", lambda job: find_device_data(job.stream, CPU, job.step)
    )
    torch.manual_seed(0)
    train(jobs[0], World(), lambda record, stop: False)
    monkeypatch.undo()
    torch.manual_seed(0)
    train(jobs[1], World(), lambda record, stop: False)
    for (name, ours), theirs in zip(
        jobs[0].model.state_dict().items(), jobs[1].model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


class OtherReader:
    """Reader whose batches, when they are finished, have another number."""

    can_finish = True

    def __init__(self, reader: Any, change: Any) -> None:
        self.reader, self.change, self.read_raw = reader, change, reader.read_raw

    def __call__(self, keys: Any) -> Batch:
        return self.reader(keys)

    def finish(self, raw: Batch) -> Batch:
        return self.change(self.reader.finish(raw))


def refuse(batch: Batch) -> Batch:
    raise RuntimeError("expected all tensors to be on the same device")


CHANGES = {
    "on the device 'points' has other numbers": lambda batch: {**batch, "points": batch["points"] + 1e-3},
    "on the device 'label' has other numbers": lambda batch: {name: v for name, v in batch.items() if name != "label"},
    "expected all tensors to be on the same device": refuse,
}


@pytest.mark.parametrize("reason", CHANGES)
def test_the_host_transforms_where_a_device_does_otherwise(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    stream = make_job("modelnet40_dgcnn").stream
    other = dataclasses.replace(stream, reader=OtherReader(stream.reader, CHANGES[reason]))
    with caplog.at_level(logging.INFO):
        assert find_device_data(other, CPU, 0) is None
    assert f"transforms run on the host: {reason}" in caplog.text


def test_samples_that_are_read_one_by_one_are_transformed_on_the_host() -> None:
    stream = small_run("train.steps=1").job.stream
    assert stream.reader.can_finish
    alone = dataclasses.replace(stream, reader=lambda keys: stream.reader(keys))
    assert find_device_data(alone, CPU, 0) is None
