"""What a network computes of points alone is made where batches are read: with the same bits, in few forms, unread."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from sightline.contract.types import PREPARED, Batch
from sightline.engine.batches.stream import Preparation
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.layers.voxel_levels import VoxelMaps, VoxelPreparation, build_voxel_levels, choose_capacities
from sightline.parts.models.ptv3 import PTv3
from sightline.parts.models.voxel_network import VoxelNetwork
from sightline.parts.models.voxel_unet import SpUNet
from tests.recipe_steps import SmallStep, small_recipe
from tests.waits import DeviceMode, device_form

ROOMS = "segment/synthetic_rooms_spunet"


def read_batches(folder: Path, workers: int) -> list[Batch]:
    stream = build(small_recipe(ROOMS, folder), World()).job.stream
    with contextlib.closing(dataclasses.replace(stream, workers=workers).iterate(0, 2)) as steps:
        return [batch for step in steps for batch in step]


def without(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != PREPARED}


def assert_same_step(one: SmallStep, other: SmallStep) -> None:
    torch.manual_seed(1)
    one.run()
    torch.manual_seed(1)
    other.run()
    theirs = other.numbers()
    assert [name for name, value in one.numbers().items() if not torch.equal(value, theirs[name])] == []


@pytest.mark.parametrize("overrides", [(), ("train.precision=float64",), ("train.micro_batches=3",)])
def test_a_step_has_the_bits_of_one_that_prepares_nothing(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    prepared, plain = (SmallStep(ROOMS, tmp_path, *overrides) for _ in range(2))
    assert all(PREPARED in batch for batch in prepared.micro_batches)
    plain.micro_batches = [without(batch) for batch in plain.micro_batches]
    assert_same_step(prepared, plain)


def test_workers_make_the_maps_of_this_process(tmp_path: Path) -> None:
    maps = [[batch[PREPARED]["voxel_maps"] for batch in read_batches(tmp_path, number)] for number in (0, 1)]
    for ours, theirs in zip(*maps, strict=True):
        assert [level.num_voxels for level in ours.levels] == [level.num_voxels for level in theirs.levels]
        for one, other in zip(ours.levels, theirs.levels, strict=True):
            assert all(torch.equal(table, other.tables[size]) for size, table in one.tables.items())
            assert (one.down is None) == (other.down is None)
            assert one.down is None or other.down is None or all(map(torch.equal, one.down, other.down))
        assert all(map(torch.equal, ours.voxels, theirs.voxels))


def test_only_steps_are_prepared(tmp_path: Path) -> None:
    """What checks, comparisons and evaluations read has no maps, which changed points would part from."""
    job = build(small_recipe(ROOMS, tmp_path), World()).job
    batch = job.stream.reader(job.stream.plan.first_keys(2))
    assert PREPARED not in batch
    assert job.stream.prepare is not None
    assert set(job.stream.prepare(batch)) == {*batch, PREPARED}


def test_maps_of_another_network_are_not_used() -> None:
    """A teacher on a finer grid gets the batch of its student."""
    points = torch.rand(300, 3, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 300])
    facts: dict[str, Any] = {"num_classes": 3, "in_channels": 3}
    sizes: dict[str, Any] = {f"{part}_{kind}": (4,) for part in ("encoder", "decoder") for kind in ("widths", "blocks")}
    networks = [SpUNet(grid_m=grid_m, stem_width=4, **facts, **sizes).eval() for grid_m in (0.1, 0.05)]
    maps = [network.make_preparation()(points=points, offsets=offsets)["voxel_maps"] for network in networks]
    for network, own, foreign in zip(networks, maps, reversed(maps), strict=True):
        expected = network(points=points, offsets=offsets)["logits"]
        for given in (own, foreign):
            found = network(points=points, offsets=offsets, voxel_maps=given)["logits"]
            assert torch.equal(found, expected)


def break_points(batch: Batch) -> Batch:
    points = batch["points"].clone()
    points[5, 1] = np.nan
    return {**batch, "points": points}


def test_points_that_have_no_maps_are_refused_by_the_step(tmp_path: Path) -> None:
    """In its words, as without a preparation: not as a failure of the reading, or of a worker."""
    step = SmallStep(ROOMS, tmp_path)
    prepare = step.job.stream.prepare
    assert prepare is not None
    broken = prepare(break_points(without(step.micro_batches[0])))
    assert PREPARED not in broken
    step.micro_batches = [broken]
    with pytest.raises(ValueError, match=r"points and features\[0\]: point 5 is \["):
        step.run()


def test_maps_are_those_of_the_numbers_that_are_sent() -> None:
    """A coordinate in float64 that float32 rounds up to the next cell is in that one."""
    points = torch.tensor([[0.0, 0, 0], [1 - 1e-12, 0, 0]], dtype=torch.float64)
    preparation = VoxelPreparation(1.0, ((3,),))
    counts = []
    for dtype in (torch.float64, torch.float32):
        bound: Any = type("Bound", (), {"function": preparation, "select": lambda self, batch: batch})()
        batch = Preparation(bound, dtype)({"points": points, "offsets": torch.tensor([0, 2])})
        counts.append(batch[PREPARED]["voxel_maps"].levels[0].num_voxels)
    assert counts == [1, 2]


# --- forms ------------------------------------------------------------------------------------------------------------


def count_forms(config: Any, *, epoch: int, num_steps: int | None = None) -> Counter[tuple[int, ...]]:
    """Count the capacities of the levels in the steps of an epoch, which its batches alone decide."""
    job = build(config, World()).job
    per_epoch = job.stream.plan.steps_per_epoch
    first, forms = epoch * per_epoch, Counter[tuple[int, ...]]()
    with contextlib.closing(job.stream.iterate(first, first + (num_steps or per_epoch))) as steps:
        for step in steps:
            maps: list[VoxelMaps] = [batch[PREPARED]["voxel_maps"].fill_up() for batch in step]
            forms[tuple(level.capacity for each in maps for level in each.levels)] += 1
    return forms


class Shapes(DeviceMode):
    """Digest of all operators that make numbers, with their shapes; views and fills of rows make none."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = hashlib.sha256()

    def see(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if not function.is_view and name != "aten::fill_":
            shapes = [tuple(one.shape) for one in tree_flatten(result)[0] if isinstance(one, Tensor)]
            self.digest.update(f"{function}{shapes}".encode())
        return result


def _build_spunet() -> VoxelNetwork:
    sizes: dict[str, Any] = {f"{part}_{kind}": (4, 8) for part in ("encoder", "decoder") for kind in ("widths",)}
    blocks: dict[str, Any] = {"encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}
    return SpUNet(num_classes=3, in_channels=3, grid_m=0.1, stem_width=4, **sizes, **blocks)


def _build_ptv3() -> VoxelNetwork:
    sizes: dict[str, Any] = {"encoder_widths": (16, 32), "decoder_widths": (16,)}
    blocks: dict[str, Any] = {"encoder_blocks": (1, 1), "decoder_blocks": (1,), "patch_size": 16}
    return PTv3(num_classes=3, in_channels=3, grid_m=0.1, **sizes, **blocks)


@pytest.mark.parametrize("build_network", [_build_spunet, _build_ptv3])
def test_steps_of_one_form_compute_tables_of_the_same_shapes(
    build_network: Callable[[], VoxelNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward pass of the network on other clouds with the capacities of the first, and on larger ones."""
    network = build_network().train()
    digests, forms = [], []
    for seed, (count, reach) in enumerate(((700, 1.0), (500, 0.9), (3000, 2.0))):
        points = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * reach
        maps = network.make_preparation()(points=points, offsets=torch.tensor([0, count]))["voxel_maps"].fill_up()
        values = maps.voxels.average(points, maps.levels[0].capacity)
        model = copy.deepcopy(network)
        with device_form(monkeypatch), Shapes() as shapes:
            model.compute(values, maps.levels).sum().backward()
        digests.append(shapes.digest.hexdigest())
        forms.append((maps.levels[0].num_voxels, tuple(level.capacity for level in maps.levels)))
    assert forms[0][0] != forms[1][0]
    assert forms[0][1] == forms[1][1] != forms[2][1]
    assert digests[0] == digests[1] != digests[2]


def test_averages_beyond_the_voxels_are_zero() -> None:
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    made: Callable[..., dict[str, VoxelMaps]] = VoxelPreparation(0.5, ((3,), (3,)))
    voxels = made(points=points, offsets=torch.tensor([0, 50]))["voxel_maps"].voxels
    values = points.clone().requires_grad_()
    plain, filled = voxels.average(values), voxels.average(values, 64)
    assert torch.equal(filled[: len(plain)], plain)
    assert filled.shape == (64, 3)
    assert not filled[len(plain) :].any()
    gradients: list[Tensor] = [torch.autograd.grad(each.square().sum(), values)[0] for each in (plain, filled)]
    assert torch.equal(*gradients)


def test_capacities_are_those_of_all_levels() -> None:
    cells = torch.cartesian_prod(*[torch.arange(12)] * 3)
    levels = build_voxel_levels(cells, torch.tensor([0, len(cells)]), sizes=[[3], [3]])
    capacities = choose_capacities([level.num_voxels for level in levels])
    filled = [level.fill_up(*rows) for level, rows in zip(levels, (capacities, [capacities[1], 0]), strict=True)]
    assert [len(level.tables[3]) for level in filled] == capacities
    assert [len(side) for side in (filled[0].down or ())] == [capacities[1], capacities[0]]


@pytest.mark.parametrize("recipe", [ROOMS, "segment/synthetic_rooms_ptv3"])
def test_an_epoch_of_rooms_has_few_forms(recipe: str, tmp_path: Path) -> None:
    """Of small rooms; those of the recipe itself: tests/long/test_networks.py."""
    forms = count_forms(small_recipe(recipe, tmp_path, "data.train_size=24"), epoch=2)
    assert sum(forms.values()) == 8
    assert len(forms) <= 4
