"""Batches that are finished on a device: the numbers of the host, by operations that no device refuses."""

from __future__ import annotations

import contextlib
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
from sightline.engine.batches.stream import BatchStream
from sightline.engine.device.resident_data import DeviceData, ResidentSamples, find_device_data
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.train import TrainState
from sightline.ops.waits import deferred_checks
from tests.engine.graph_emulator import emulated_graphs
from tests.runs.small import PLAIN, small_run

CPU = torch.device("cpu")
KEYS = [SampleKey(index, 3, 7, 11) for index in (5, 0, 123456)]
TRANSFORMS = {
    "modelnet40_pointnet": "[{name: drop_points}, {name: scale, low: 0.8, high: 1.25, isotropic: true}, "
    "{name: translate, max_shift: 0.1}]",
    "modelnet40_dgcnn": "[{name: scale}, {name: translate}, {name: shuffle_points}]",
    "all": "[{name: sample_points, num_points: 16}, {name: rotate}, {name: jitter}, "
    "{name: flip}, {name: normalize_unit_sphere}, {name: translate, relative: true}]",
}


def make_job(transforms: str, *overrides: str) -> TrainState:
    return small_run(f"transforms.train={TRANSFORMS[transforms]}", *PLAIN, *overrides).job


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


def train_weights(job: TrainState) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    train(job, World(), lambda record, stop: False)
    return job.model.state_dict()


@pytest.mark.parametrize("max_bytes", [0.0, 1e9])
def test_a_training_on_finished_batches_is_the_same(max_bytes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a second epoch all samples are on the device, if they may stay there."""
    jobs = [make_job("modelnet40_pointnet", "train.micro_batches=2") for _ in range(2)]
    received = []

    def find(job: TrainState) -> DeviceData:
        found = find_device_data(job.stream, CPU, job.step, max_bytes=max_bytes)
        assert found is not None

        def keep(batch: Batch) -> Batch:
            received.append(batch)
            return found.keep(batch)

        return dataclasses.replace(found, keep=keep)

    with monkeypatch.context() as patched:
        patched.setattr("sightline.engine.loop._find_device_data", find)
        ours = train_weights(jobs[0])
    for (name, weights), theirs in zip(ours.items(), train_weights(jobs[1]).values(), strict=True):
        assert torch.equal(weights, theirs), name
    are_named = ["points" not in batch for batch in received]
    assert are_named == [max_bytes > 0] + 11 * [False] + 12 * [max_bytes > 0]  # the first one was kept to try it


class OtherReader:
    """Reader whose batches, when they are finished, have another number."""

    can_finish = True

    def __init__(self, reader: Any, change: Any) -> None:
        self.reader, self.change, self.read_raw = reader, change, reader.read_raw
        self.draw_keys, self.make_draw_keys = reader.draw_keys, reader.make_draw_keys
        self.reads_index_alone = reader.reads_index_alone

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


def move(raw: Batch, keys: Any) -> Batch:
    return {**raw, "points": raw["points"] + 0.1 * keys[0].epoch}


class ChangingReader(OtherReader):
    """Reader whose samples are others in each epoch, or as `change` makes them, before all transforms."""

    def __init__(self, reader: Any, change: Any = move) -> None:
        super().__init__(reader, lambda batch: batch)
        self.read_raw = lambda keys: change(reader.read_raw(keys), keys)

    def __call__(self, keys: Any) -> Batch:
        return self.reader.finish(self.read_raw(keys))


REFUSED = {
    "they differ from epoch to epoch": lambda stream: dataclasses.replace(stream, reader=ChangingReader(stream.reader)),
    "they depend on the epoch, the step or the seed": lambda stream: (
        make_job("modelnet40_dgcnn", "data.views={count: 2, size_px: 8}").stream
    ),
    "all of them take": lambda stream: stream,
    "a field has not one row for each sample": lambda stream: dataclasses.replace(
        stream, reader=ChangingReader(stream.reader, lambda raw, keys: {**raw, "one": torch.zeros(1)})
    ),
}


@pytest.mark.parametrize("reason", ["", *REFUSED])
def test_samples_stay_on_a_device_that_has_room_if_nothing_changes_them(
    reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    stream = make_job("modelnet40_dgcnn").stream
    of_points = 60 * 32 * 3 * 4
    with caplog.at_level(logging.INFO):
        found = find_device_data(
            REFUSED[reason](stream) if reason else stream,
            CPU,
            0,
            max_bytes=of_points if reason == "all of them take" else 1e9,
        )
    assert found is not None
    assert isinstance(getattr(found.keep, "__self__", None), ResidentSamples) == (not reason)
    assert ("samples are sent to the device for each step: " + reason if reason else "samples stay") in caplog.text


def test_a_batch_of_another_form_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    """A field that is padded to the longest of a batch, or that only some batches have."""

    def change(raw: Batch, keys: Any) -> Batch:
        extra = {"extra": torch.ones(len(keys))} if 20 < keys[0].index < 40 else {}
        width = 2 if keys[0].index < 20 else 3
        return {**raw, **extra, "padded": raw["label"][:, None].expand(-1, width).float()}

    stream = make_job("modelnet40_dgcnn").stream
    stream = dataclasses.replace(stream, reader=ChangingReader(stream.reader, change))
    found = find_device_data(stream, CPU, 0, max_bytes=1e9)
    assert found is not None
    are_named = assert_finished_batches_are_whole(found, stream, 18)
    assert any(are_named)
    assert not all(are_named[6:])


def assert_finished_batches_are_whole(found: DeviceData, stream: BatchStream, num_steps: int) -> list[bool]:
    """Compare them with what the host reads; return which were named alone, as their samples were on the device."""
    are_named = []
    with contextlib.closing(found.stream.iterate(0, num_steps)) as steps:
        for step, (given,) in enumerate(steps):
            [keys] = stream.step_keys(step)
            expected, batch = stream.reader(keys), found.finish(found.keep(given))
            assert expected.keys() == batch.keys()
            assert all(torch.equal(expected[name], batch[name]) for name in expected)
            are_named.append("points" not in given)
    return are_named


def test_a_graph_of_named_batches_is_not_replayed_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their samples are in no place from which it could gather them."""

    def change(raw: Batch, keys: Any) -> Batch:
        return {**raw, "padded": torch.zeros(len(keys), 2 if keys[0].index < 20 else 3)}

    jobs = [make_job("modelnet40_pointnet", "train.epochs=6") for _ in range(2)]
    for job in jobs:
        reader = ChangingReader(job.stream.reader, change)
        job.stream = dataclasses.replace(job.stream, reader=reader)
    found = find_device_data(jobs[0].stream, CPU, 1, max_bytes=1e9)
    assert found is not None
    received = []

    def keep(batch: Batch) -> Batch:
        received.append(found.keep(batch))
        return received[-1]

    with emulated_graphs(monkeypatch, is_strict=True) as graphs:
        monkeypatch.setattr(
            "sightline.engine.loop._find_device_data", lambda job: dataclasses.replace(found, keep=keep)
        )
        ours = train_weights(jobs[0])
        monkeypatch.undo()
    assert graphs.num_replayed > 5, graphs.reason
    are_named = ["points" not in batch for batch in received]
    assert not all(are_named[12:])
    with emulated_graphs(monkeypatch) as graphs:
        monkeypatch.setattr(graphs, "reason", "not now")
        theirs = train_weights(jobs[1])
        monkeypatch.undo()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_workers_read_what_is_not_on_the_device() -> None:
    stream = dataclasses.replace(make_job("modelnet40_dgcnn").stream, workers=2)
    found = find_device_data(stream, CPU, 0, max_bytes=1e9)
    assert found is not None
    are_named = assert_finished_batches_are_whole(found, stream, 24)
    assert are_named[:6] == [True] + 5 * [False]  # the first one was kept to try it
    assert all(are_named[-6:])
